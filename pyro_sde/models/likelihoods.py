r"""Laws of an observation given the output of a decoder, elementwise over times and channels."""

from __future__ import annotations

import abc
import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..nn.base import check_positive, inverse_softplus
from ..ops._arguments import check_numbers

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
    "NormalLikelihood",
    "PoissonLikelihood",
    "make_likelihood",
]


class Likelihood(nn.Module, abc.ABC):
    r"""Law of every channel of an observation, :math:`p(y_{io} \mid \mathrm{output}_i)`.

    ``forward`` returns an *elementwise* distribution, batch shape ``(..., N, O)`` and event shape ``()``, so that a
    mask per channel applies: ``likelihood(output).mask(mask).to_event(2)``. 0 is in the support of every likelihood
    here, and stands in for missing values.

    Subclasses implement `forward`, and override `features` and `mean` where values are not plain numbers.

    Args:
        value_dim: number O of channels.

    Attributes:
        outputs_per_channel: numbers that the decoder must give for each channel.
        features_per_channel: numbers that `features` gives the encoder for each channel.

    Shape:
        output: ``(..., N, output_dim)`` · law: batch ``(..., N, O)``, event ``()`` · values: ``(..., N, O)``.
    """

    outputs_per_channel: int = 1
    features_per_channel: int = 1

    def __init__(self, value_dim: int) -> None:
        super().__init__()
        self.value_dim = check_positive("value_dim", value_dim)

    @property
    def output_dim(self) -> int:
        """Size of the last dimension of the decoder's output."""
        return self.value_dim * self.outputs_per_channel

    @property
    def feature_dim(self) -> int:
        """Number of channels that the encoder reads."""
        return self.value_dim * self.features_per_channel

    @abc.abstractmethod
    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """Law of the values given the decoder's output."""

    def features(self, values: Tensor) -> Tensor:
        """What the encoder reads instead of `values`, ``(..., O) -> (..., feature_dim)``; the values themselves."""
        return values

    def mean(self, output: Tensor) -> Tensor:
        """Point prediction of every channel, ``(..., O)``: the mean of the law."""
        return self(output).mean

    def _check_output(self, output: Tensor) -> None:
        if output.shape[-1] != self.output_dim:
            msg = (
                f"`output` of the decoder must have {self.output_dim} = {self.value_dim} x {self.outputs_per_channel} "
                f"entries on its last dimension for {type(self).__name__}, received {tuple(output.shape)}."
            )
            raise ValueError(msg)


class _ScaledLikelihood(Likelihood):
    """A location from the decoder and a learned scale per channel."""

    law: Any

    def __init__(self, value_dim: int, *, initial_scale: float = 0.3, floor: float = 0.01) -> None:
        super().__init__(value_dim)
        check_numbers(initial_scale=initial_scale, floor=floor)
        if not (0 < floor < initial_scale and math.isfinite(initial_scale)):
            msg = (
                "`floor` and `initial_scale` must satisfy 0 < floor < initial_scale: without a floor the likelihood "
                f"of a constant channel has no bound; received {floor} and {initial_scale}."
            )
            raise ValueError(msg)
        self.floor = floor
        self.raw_scale = nn.Parameter(torch.full((value_dim,), inverse_softplus(initial_scale - floor)))

    @property
    def scale(self) -> Tensor:
        """Scale of every channel, ``(O,)``, in the unit of the values."""
        return self.floor + nn.functional.softplus(self.raw_scale)

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """Law around the decoder's output ``(..., O)``."""
        self._check_output(output)
        return self.law(output, self.scale)


class NormalLikelihood(_ScaledLikelihood):
    r"""Gaussian noise :math:`y_o \sim N(\mathrm{output}_o, s_o^2)` with a learned standard deviation per channel.

    Args:
        value_dim: number O of channels.
        initial_scale: standard deviation before training, in the unit of the values.
        floor: lower bound of the standard deviation, ``0 < floor < initial_scale``.

    Raises:
        ValueError: if `value_dim` is not positive or the scales are not as described.

    Example:
        >>> likelihood = NormalLikelihood(2)
        >>> likelihood(torch.zeros(5, 2)).batch_shape
        torch.Size([5, 2])
    """

    law = dist.Normal


class LaplaceLikelihood(_ScaledLikelihood):
    r"""Noise with heavier tails, density :math:`\frac{1}{2 b_o} e^{-|y_o - \mathrm{output}_o| / b_o}`, learned b.

    Use it if some observations are outliers. The standard deviation is :math:`\sqrt2\, b_o`.

    Args:
        value_dim: number O of channels.
        initial_scale: b before training, in the unit of the values.
        floor: lower bound of b, ``0 < floor < initial_scale``.

    Raises:
        ValueError: if `value_dim` is not positive or the scales are not as described.
    """

    law = dist.Laplace


class BernoulliLikelihood(Likelihood):
    r"""Zeros and ones with :math:`P(y_o = 1) = 1 / (1 + e^{-\mathrm{output}_o})`.

    Args:
        value_dim: number O of channels.
    """

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """Law with the decoder's output ``(..., O)`` as logits."""
        self._check_output(output)
        return dist.Bernoulli(logits=output)


class PoissonLikelihood(Likelihood):
    r"""Counts with rate :math:`\lambda_o = e^{b \tanh(\mathrm{output}_o / b)}`, :math:`b = \log \mathrm{max\_rate}`.

    Near 0 this is the log link; far out the rate is bounded by ``1 / max_rate`` and `max_rate`, so that no path makes
    it overflow. The rate is per observation, not per unit of time. The encoder reads :math:`\log(1 + y)`.

    Args:
        value_dim: number O of channels.
        max_rate: largest rate, ``> 1``; some times the largest count expected.

    Raises:
        ValueError: if `value_dim` is not positive or `max_rate` not a finite number above 1.
    """

    def __init__(self, value_dim: int, *, max_rate: float = 1e6) -> None:
        super().__init__(value_dim)
        check_numbers(max_rate=max_rate)
        if not 1 < max_rate < math.inf:
            msg = f"`max_rate` must be a finite number > 1, received {max_rate}."
            raise ValueError(msg)
        self.bound = math.log(max_rate)

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """Law with the decoder's output ``(..., O)`` as bounded log-rates."""
        self._check_output(output)
        return dist.Poisson((self.bound * torch.tanh(output / self.bound)).exp())

    def features(self, values: Tensor) -> Tensor:
        """Logarithm of one plus the count.

        Raises:
            ValueError: if a value is negative.
        """
        if (values < 0).any():
            msg = f"`values` must be counts >= 0, received {values.min().item():g}."
            raise ValueError(msg)
        return values.log1p()


class CategoricalLikelihood(Likelihood):
    r"""Classes :math:`0, \dots, J - 1` with :math:`P(y_o = j) \propto e^{\mathrm{output}_{oj}}`.

    Each channel holds one class index, as a number of the dtype of the values (2.0 for class 2); the decoder gives J
    logits per channel, those of channel 0 first. The encoder reads the classes one-hot. A class has no mean: `mean` is
    the most probable one.

    Args:
        value_dim: number O of channels, each with its own class index.
        num_classes: number J of classes, ``>= 2``, the same for every channel.

    Raises:
        ValueError: if `value_dim` is not positive or `num_classes` not an integer above 1.
    """

    def __init__(self, value_dim: int, num_classes: int) -> None:
        super().__init__(value_dim)
        if check_positive("num_classes", num_classes) < 2:
            msg = f"`num_classes` must be at least 2, received {num_classes}."
            raise ValueError(msg)
        self.outputs_per_channel = self.features_per_channel = num_classes

    def forward(self, output: Tensor) -> TorchDistributionMixin:
        """Law with the decoder's output ``(..., O * J)`` as logits."""
        self._check_output(output)
        return dist.Categorical(logits=output.unflatten(-1, (self.value_dim, -1)))  # (..., O, J)

    def features(self, values: Tensor) -> Tensor:
        """One-hot classes, ``(..., O) -> (..., O * J)``.

        Raises:
            ValueError: if a value is no class index.
        """
        classes = values.long()
        wrong = (classes != values) | (classes < 0) | (classes >= self.features_per_channel)
        if wrong.any():
            msg = (
                f"`values` must hold class indices 0 ... {self.features_per_channel - 1}, received "
                f"{values[wrong][0].item():g}."
            )
            raise ValueError(msg)
        return nn.functional.one_hot(classes, self.features_per_channel).flatten(-2).to(values.dtype)

    def mean(self, output: Tensor) -> Tensor:
        """Most probable class of every channel, ``(..., O)``."""
        self._check_output(output)
        return output.unflatten(-1, (self.value_dim, -1)).argmax(-1).to(output.dtype)


_BY_NAME: dict[str, type[Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "laplace": LaplaceLikelihood,
    "normal": NormalLikelihood,
    "poisson": PoissonLikelihood,
}


def make_likelihood(likelihood: str | Likelihood, value_dim: int) -> Likelihood:
    """The likelihood called "bernoulli", "laplace", "normal" or "poisson", or `likelihood` itself if it is one.

    Raises:
        ValueError: if the name is none of them, or the likelihood is of another number of channels.
        TypeError: if `likelihood` is neither a name nor a `Likelihood`.
    """
    if isinstance(likelihood, str):
        if likelihood not in _BY_NAME:
            msg = (
                f"`likelihood` must be one of {', '.join(_BY_NAME)} or a Likelihood, received {likelihood!r}. For "
                "classes pass CategoricalLikelihood(value_dim, num_classes)."
            )
            raise ValueError(msg)
        return _BY_NAME[likelihood](value_dim)
    if not isinstance(likelihood, Likelihood):
        msg = f"`likelihood` must be a name or a Likelihood, received {type(likelihood).__name__}."
        raise TypeError(msg)
    if likelihood.value_dim != value_dim:
        msg = f"`likelihood` has {likelihood.value_dim} channels, but `value_dim` is {value_dim}."
        raise ValueError(msg)
    return likelihood
