r"""The deep Markov model: prior, guide, emission and likelihood in one object."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..data.series import TimeSeries
from ..distributions.base import PathDistribution
from ..guides.combiner import CombinerGuide
from ..infer.elbo import PathELBO
from ..infer.fit import FitOptions, FitResult, fit
from ..infer.held_out import HeldOut
from ..infer.streams import minibatches, seeded
from ..nn.base import check_positive, check_widths
from ..nn.mlp import MLP
from ..ops._arguments import is_finite
from ..priors.deep_markov import DeepMarkovPrior
from .alignment import Data, as_series
from .likelihoods import Likelihood, make_likelihood
from .prediction import PathSamples, blocks
from .predictor import PathPredictor
from .step_prediction import StepParts, continue_steps, step_positions
from .training import split_off

__all__ = ["DeepMarkovModel", "SequenceBatch"]

_BLOCK = 2**22  # decoder outputs in memory at a time while scoring
_ENTRIES = 2**10  # values of a series that count as one row of a block while predicting


class SequenceBatch(NamedTuple):
    """Padded series of steps.

    Attributes:
        values: ``(B, T, O)``, finite; 0 where not observed.
        lengths: number of steps of every series, ``(B,)``, 1 to T.
        mask: True = observed, ``(B, T, O)``, False behind the end of a series.
    """

    values: Tensor
    lengths: Tensor
    mask: Tensor

    @classmethod
    def of(cls, series: TimeSeries) -> SequenceBatch:
        """Steps of a record: one per time, up to the last one with an observation; gaps in time are not looked at."""
        valid = series.valid_times
        steps = torch.arange(1, valid.shape[1] + 1, device=valid.device)
        return cls(series.filled(), (valid * steps).amax(-1), series.mask)

    def select(self, index: Tensor) -> SequenceBatch:
        """Some of the series, cut to the longest of them."""
        lengths = self.lengths[index]
        longest = int(lengths.max())
        return SequenceBatch(self.values[index, :longest], lengths, self.mask[index, :longest])


class DeepMarkovModel(PathPredictor, PyroModule):
    r"""Deep Markov model: a series is a noisy view of a Markov chain with a learned non-linear transition.

    .. math:: z_1 \sim p(\cdot \mid s), \qquad z_t \sim p(\cdot \mid z_{t-1}), \qquad
        y_t \sim p(y \mid \mathrm{emission}(z_t))

    Prior and guide are modules of their own and may be replaced: `DeepMarkovPrior` with a `CombinerGuide` is the deep
    Markov model, `StochasticRNNPrior` with a `ResidualGuide` the stochastic recurrent network, `VariationalRNNPrior`
    with a `VariationalRNNGuide` the variational one. `model` and `guide` are plain Pyro functions with one path site
    "z" and one observed site "y" in the plate "series"; `fit`, `evaluate`, `smooth`, `forecast` and `impute` are sugar,
    as for `LatentSDE`.

    Series are steps, whatever the times between them; they may have different lengths and missing entries. Cost: the
    chain of the guide is sampled step by step, in which only series that go on take part; transition, emission and
    divergence are one batched call each over the steps that exist.

    Args:
        state_dim: number D of state dimensions.
        value_dim: number O of observed channels.
        likelihood: "bernoulli", "normal", "laplace", "poisson", or a `Likelihood`.
        hidden: widths of the transition's hidden layers, of the emission's two, and of the guide's recurrent layers.
        prior: module of ``(length, lengths)``, or of ``(length, lengths, values)`` if it reads past observations; a
            `DeepMarkovPrior` if None.
        posterior: module of ``(prior, values, mask)``; a `CombinerGuide` "ST-R" if None.
        emission: maps states, or what ``prior.features`` makes of them, to what the likelihood needs; an `MLP` if None.

    Shape:
        values, mask: ``(B, T, O)`` · lengths: ``(B,)`` · z: ``(B, T, D)``.

    Raises:
        TypeError: if `hidden` is no sequence.
        ValueError: if a size is not positive, `hidden` has not three widths, or a likelihood is unknown.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, arXiv
        1609.09869, eqs. (1), (2) and (6).

    Example:
        >>> from pyro_sde.data import synthetic
        >>> series = synthetic.ornstein_uhlenbeck(seed=0, num_series=8, num_times=10)
        >>> model = DeepMarkovModel(2, 1, likelihood="normal", hidden=(8, 8, 8))
        >>> result = model.fit(series, steps=3, options=FitOptions(progress=False))
        >>> sorted(model.evaluate(series, num_samples=5, seed=0).losses)
        ['bound', 'importance, 5 samples']
        >>> model.forecast(series, series.times[:, -1:] + 10 / 9, num_samples=7).y.shape
        torch.Size([7, 8, 1, 1])
    """

    def __init__(
        self,
        state_dim: int,
        value_dim: int,
        *,
        likelihood: str | Likelihood = "bernoulli",
        hidden: tuple[int, int, int] = (200, 100, 200),
        prior: nn.Module | None = None,
        posterior: nn.Module | None = None,
        emission: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__("deep_markov_model")
        widths = check_widths("hidden", hidden)
        if len(widths) != 3:
            msg = f"`hidden` must be the widths of transition, emission and guide, three numbers; received {hidden!r}."
            raise ValueError(msg)
        check_positive("state_dim", state_dim)  # before a part draws its weights
        transition, emitted, recurrent = widths
        self.likelihood = make_likelihood(likelihood, value_dim)
        self.prior = DeepMarkovPrior(state_dim, transition) if prior is None else prior
        features = self.likelihood.feature_dim
        self.posterior = CombinerGuide(features, state_dim, hidden=recurrent) if posterior is None else posterior
        if emission is None:
            width = getattr(self.prior, "feature_dim", state_dim)
            emission = MLP(width, self.likelihood.output_dim, (emitted, emitted), activation="relu")
        self.emission = emission

    # ------------------------------------------------------------------------------------------------- model and guide
    @pyro_method
    def model(self, values: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pyro model of a batch of series.

        Args:
            values: observations ``(B, T, O)``; anything, also NaN, where they are not observed.
            lengths: number of steps of every series, ``(B,)``.
            mask: True = observed, ``(B, T, O)``; every step of every series if None.

        Returns:
            Observations ``(B, T, O)``, 0 where not observed.

        Raises:
            ValueError: if shapes do not fit, a length is beyond the padding, or an observed value is outside the
                support of the likelihood.
        """
        batch = self._checked(values, lengths, mask)
        with pyro.plate("series", len(batch.values), dim=-1):
            law = self._prior_law(batch)
            z = pyro.sample("z", law)
            output = self._outputs(law, z, batch)
            return pyro.sample("y", self.likelihood(output).mask(batch.mask).to_event(2), obs=batch.values)

    @pyro_method
    def guide(self, values: Tensor, lengths: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pyro guide with the arguments of `model`; returns the path ``(B, T, D)``."""
        batch = self._checked(values, lengths, mask)
        with pyro.plate("series", len(batch.values), dim=-1):
            return pyro.sample("z", self._posterior_law(batch))

    # -------------------------------------------------------------------------------------------------------- training
    def fit(
        self,
        data: Data,
        *,
        steps: int = 1000,
        batch_size: int = 20,
        learning_rate: float = 3e-3,
        validation: float | Data = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
        options: FitOptions | None = None,
    ) -> FitResult:
        r"""Train all parts on a set of series, by `pyro_sde.infer.fit`.

        Losses are negative evidence bounds in nats per step, all steps of a batch counted alike; those of training
        contain the weight decay. The modules are in training mode (dropout) for training steps and in evaluation mode
        for validation, and afterwards.

        Args:
            data: a `TimeSeries`, or tensors as for `LatentSDE.fit`.
            steps: number of training steps.
            batch_size: series per step.
            learning_rate: of Adam: the largest, at the first step or at the end of a warm-up.
            validation: share of the series to keep back, or other data; the parameters of the lowest validation loss
                are then kept.
            weight_decay: w >= 0 of the penalty :math:`w |\theta|^2 / 2` on all parameters, in nats per step.
            seed: same seed, same result.
            options: the finer settings; the loss is ``PathELBO(kl="closed")`` if they name none, "full" with flows.

        Raises:
            ValueError: if an argument is out of range, an observed value is outside the support of the likelihood, or
                training fails (the message names the step).
        """
        if not is_finite(weight_decay) or weight_decay < 0:
            msg = f"`weight_decay` must be a finite number >= 0, received {weight_decay!r}."
            raise ValueError(msg)
        series, held_back = as_series(data, self._like), None
        if not isinstance(validation, float | int):
            held_back = as_series(validation, self._like)
        elif validation:
            series, held_back = split_off(series, validation, seed)
        options = options or FitOptions()
        if options.elbo is None:
            options = replace(options, elbo=PathELBO("full" if len(getattr(self.posterior, "flows", ())) else "closed"))
        train = SequenceBatch.of(series)
        choose = minibatches(len(series), batch_size, seed)

        def batch(step: int) -> tuple[Any, ...]:
            part = train.select(choose(step))
            return 1 / int(part.lengths.sum()), weight_decay, *part

        test = None
        if held_back is not None:
            part = SequenceBatch.of(held_back)
            test = (1 / int(part.lengths.sum()), None, *part)
        try:
            with pyro.get_param_store().scope():
                return fit(
                    self._for_fit(self.model, penalised=True),
                    self._for_fit(self.guide, penalised=False),
                    batch,
                    steps=steps,
                    learning_rate=learning_rate,
                    validation=test,
                    seed=seed,
                    options=options,
                )
        finally:
            self.eval()

    def _for_fit(self, function: Callable[..., Any], *, penalised: bool) -> Callable[..., Any]:
        """The function of a weight on its log-probabilities, a weight decay (None: not training) and its arguments."""

        @functools.wraps(function)
        def run(weight: float, decay: float | None, *args: Any) -> Any:  # noqa: ANN401
            if self.training is not (decay is not None):
                self.train(decay is not None)
            with poutine.scale(scale=weight):
                result = function(*args)
            if penalised and decay:
                squares = torch.stack([parameter.square().sum() for parameter in self.parameters()])
                pyro.factor("weight_decay", -0.5 * decay * squares.sum())
            return result

        return run

    # ------------------------------------------------------------------------------------------------------ evaluation
    def evaluate(self, data: Data, *, num_samples: int = 100, seed: int | None = None) -> HeldOut:
        """Bound and importance-sampled negative log-likelihood of series, in nats per step.

        Args:
            data: B series, as in `fit`.
            num_samples: number S of paths per series.
            seed: same seed, same figures; torch's global state if None.

        Returns:
            "bound": mean over S paths of the evidence bound, and "importance, S samples", with both averages over steps
            and series that the literature uses.
        """
        batch, training = SequenceBatch.of(as_series(data, self._like)), self.training
        self.eval()
        with torch.no_grad(), seeded(seed, "sampling"), pyro.get_param_store().scope():
            weights = self._log_weights(self._checked(*batch), num_samples)
        self.train(training)
        losses = {
            "bound": -weights.mean(0),
            f"importance, {num_samples} samples": math.log(num_samples) - weights.logsumexp(0),
        }
        return HeldOut(losses, batch.lengths)

    def _log_weights(self, batch: SequenceBatch, num_samples: int) -> Tensor:
        """Log-ratios of joint density and guide for paths of the guide, ``(S, B)``."""
        p, q = self._prior_law(batch), self._posterior_law(batch)
        block = max(1, _BLOCK // batch.values.numel())
        parts = []
        for begin in range(0, num_samples, block):
            z = q.rsample(torch.Size([min(block, num_samples - begin)]))
            terms = self.likelihood(self._outputs(p, z, batch)).log_prob(batch.values)
            likelihood = torch.where(batch.mask, terms, terms.new_zeros(())).sum((-2, -1))
            parts.append(likelihood + p.log_prob(z) - q.log_prob(z))
        return torch.cat(parts)

    # ------------------------------------------------------------------------------------------------------ prediction
    def record(self, data: Data) -> TimeSeries:
        """The data as a record in the dtype and on the device of the model."""
        return as_series(data, self._like)

    def draw(self, series: TimeSeries, queries: Tensor, num_samples: int) -> PathSamples:
        """Paths at the steps that have the times ``(B, Q)``: the guide up to the last observation, then the prior.

        Times are those of the record, whose columns are the steps; later steps need columns that are equally spaced.
        A prior that reads past observations is fed those that it draws, at the cost of one run over all steps before
        for each step ahead; without that a step ahead is one call of the transition. What is missing inside a series
        it reads as 0, as in training.

        Raises:
            ValueError: if a time is not that of a step.
            TypeError: if the law of the prior cannot be continued.
        """
        positions, batch, training = step_positions(series, queries), SequenceBatch.of(series), self.training
        self.eval()
        try:
            with pyro.get_param_store().scope():
                batch = self._checked(*batch)
                law = self._posterior_law(batch)
                parts = StepParts(self.prior, self.emission, self.likelihood)
                rows = max(1, len(series) * batch.values[0].numel() // _ENTRIES)
                drawn = [
                    continue_steps(parts, law.sample(torch.Size([n])), batch.values, batch.lengths, queries, positions)
                    for n in blocks(num_samples, rows)
                ]
        finally:
            self.train(training)
        return PathSamples(queries, *(torch.cat(tensors) for tensors in list(zip(*drawn, strict=True))[1:]))

    # ---------------------------------------------------------------------------------------------------------- inside
    @property
    def _like(self) -> Tensor:
        return next(self.parameters())

    def _prior_law(self, batch: SequenceBatch) -> PathDistribution:
        given = (batch.values,) if getattr(self.prior, "reads_values", False) else ()
        return self.prior(batch.values.shape[1], batch.lengths, *given)

    def _posterior_law(self, batch: SequenceBatch) -> PathDistribution:
        features, mask = self.likelihood.features(batch.values), batch.mask
        mask = mask.repeat_interleave(self.likelihood.features_per_channel, -1)
        return self.posterior(self._prior_law(batch), features, mask)

    def _outputs(self, law: PathDistribution, z: Tensor, batch: SequenceBatch) -> Tensor:
        """What the emission makes of the states of steps that exist, ``(..., B, T, .)``; 0 elsewhere."""
        read: Callable[..., Tensor] | None = getattr(self.prior, "features", None)
        features = z if read is None else read(law, z)
        num_series, num_times = batch.values.shape[:2]
        exist = torch.arange(num_times, device=z.device) < batch.lengths.unsqueeze(-1)
        rows = exist.flatten().nonzero().squeeze(-1)
        lead = features.shape[:-3]
        flat = features.expand(*lead, num_series, num_times, features.shape[-1]).flatten(-3, -2)
        output = self.emission(flat.index_select(-2, rows))
        padded = output.new_zeros(*lead, num_series * num_times, output.shape[-1])
        return padded.index_copy(-2, rows, output).unflatten(-2, (num_series, num_times))

    def _checked(self, values: Tensor, lengths: Tensor, mask: Tensor | None) -> SequenceBatch:
        """The arguments of `model` with 0 where nothing is observed."""
        channels = self.likelihood.value_dim
        if values.dim() != 3 or values.shape[-1] != channels or lengths.shape != values.shape[:1]:
            msg = (
                f"`values` must have shape (B, T, {channels}) and `lengths` (B,); received {tuple(values.shape)} and "
                f"{tuple(lengths.shape)}."
            )
            raise ValueError(msg)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != values.shape):
            msg = f"`mask` must be bool of shape {tuple(values.shape)}, received {mask.dtype} {tuple(mask.shape)}."
            raise ValueError(msg)
        exist = (torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
        mask = exist.expand(values.shape) if mask is None else mask & exist
        values = torch.where(mask, values, values.new_zeros(()))
        support: Any = self.likelihood(values.new_zeros(self.likelihood.output_dim)).support
        inside = support.check(values)
        if not bool(inside.all()):
            series, step, channel = (~inside).nonzero()[0].tolist()
            msg = (
                f"`values` must be in the support {support} of {type(self.likelihood).__name__}; series {series}, step "
                f"{step}, channel {channel} is {values[series, step, channel].item():g}. Choose another likelihood, or "
                "mask what is not observed."
            )
            raise ValueError(msg)
        return SequenceBatch(values, lengths, mask)
