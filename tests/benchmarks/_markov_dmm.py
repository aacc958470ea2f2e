"""A deep Markov model with one sample site per step, as Pyro's example has it, on the networks of ours."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyro_sde.models.deep_markov_model import DeepMarkovModel


class MarkovDMM(nn.Module):
    """Model and guide of Pyro's `examples/dmm.py` for an "ST-R" guide, written with `pyro.markov`.

    Transition, emission and combiner are those of `ours`, so parameters are shared; the recurrent layer is a
    `torch.nn.RNN` with copies of its weights.

    Args:
        ours: the model with one site.
        normal: the Normal law of the guide, a function of location and scale with the index of the step.
    """

    def __init__(
        self, ours: DeepMarkovModel, normal: Callable[[Tensor, Tensor, int], dist.Normal] | None = None
    ) -> None:
        super().__init__()
        self.prior, self.posterior, self.emission = ours.prior, ours.posterior, ours.emission
        self.normal = normal or (lambda loc, scale, step: dist.Normal(loc, scale))
        reader = self.posterior.readers["right"]
        self.rnn = nn.RNN(reader.inward.in_features, len(reader.first), nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            self.rnn.weight_ih_l0.copy_(reader.inward.weight)
            self.rnn.bias_ih_l0.copy_(reader.inward.bias)
            self.rnn.weight_hh_l0.copy_(reader.recurrent)
            self.rnn.bias_hh_l0.zero_()
        self.h_0 = nn.Parameter(reader.first.detach().clone())

    def model(self, values: Tensor, lengths: Tensor, mask: Tensor, weight: float = 1.0) -> None:
        pyro.module("dmm", self)
        z = self.prior.start.expand(len(values), -1)
        with pyro.plate("series", len(values)):
            for t in pyro.markov(range(values.shape[1])):
                loc, scale = self.prior.transition(z)
                here = mask[:, t : t + 1, 0]
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).mask(here).to_event(1))
                law = dist.Bernoulli(logits=self.emission(z)).mask(here).to_event(1)
                pyro.sample(f"y_{t}", law, obs=values[:, t])

    def guide(self, values: Tensor, lengths: Tensor, mask: Tensor, weight: float = 1.0) -> None:
        pyro.module("dmm", self)
        combiner = self.posterior
        summary = self.summary(values, lengths)
        z = combiner.start.expand(len(values), -1)
        with pyro.plate("series", len(values)):
            for t in pyro.markov(range(values.shape[1])):
                combined = 0.5 * (torch.tanh(combiner.from_state(z)) + summary[:, t])
                loc, raw_scale = combiner.head(combined).chunk(2, -1)
                law = self.normal(loc, 1e-3 + nn.functional.softplus(raw_scale), t)
                with poutine.scale(scale=weight):
                    z = pyro.sample(f"z_{t}", law.mask(mask[:, t : t + 1, 0]).to_event(1))

    def summary(self, values: Tensor, lengths: Tensor) -> Tensor:
        """States of the recurrent layer that reads every series from its end, ``(B, T, H)``."""
        turned = self.turned(values, lengths)
        packed = pack_padded_sequence(turned, lengths, batch_first=True, enforce_sorted=False)
        start = self.h_0.expand(1, len(values), -1).contiguous()
        states, _ = pad_packed_sequence(self.rnn(packed, start)[0], batch_first=True, total_length=values.shape[1])
        return self.turned(states, lengths)

    @staticmethod
    def turned(values: Tensor, lengths: Tensor) -> Tensor:
        """Series in reversed order, each from its own end."""
        steps = torch.arange(values.shape[1])
        index = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
        return values.gather(1, index.unsqueeze(-1).expand(values.shape))
