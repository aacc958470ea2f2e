r"""Path laws: Markov chains of transition kernels on a grid, as Pyro distributions."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, constraints

from .kernels import TransitionKernels

__all__ = ["DrivenPath", "PathDistribution", "check_initial"]


class PathDistribution(TorchDistribution, ABC):
    r"""Law of a path :math:`z_0, \dots, z_K`: an initial law and transition kernels.

    .. math:: \log p(z) = \log p_0(z_0) + \sum_{k=0}^{K-1} \log p_k(z_{k+1} \mid z_k)

    Sampling is sequential; density, divergence and their gradients are one batched call over all steps. The value of
    the site is the whole path, a plain tensor, so every inference algorithm of Pyro applies to it unchanged.

    Subclasses implement `simulate` and `kernels`.

    Args:
        initial: law of the first state, event shape ``(D,)``, reparameterised if the paths are to be.
        batch_shape: batch shape of the path law.
        num_points: number of grid points T = K + 1.
        validate_args: as for every torch distribution.

    Shape:
        value: ``(*sample, *batch, T, D)``.

    Raises:
        ValueError: if `initial` has another event shape than ``(D,)``.

    References:
        Särkkä (2013), Bayesian Filtering and Smoothing, section 4.1 (the Markov property).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # type: ignore[override]
    site_name: str | None = None  # set on the copy that an evidence bound samples from, for its messages

    def __init__(
        self,
        initial: Distribution,
        batch_shape: torch.Size,
        num_points: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_initial(initial)
        self.initial = _expand_law(initial, batch_shape)
        self.has_rsample = initial.has_rsample
        self._sampled: list[weakref.ref[Tensor]] = []
        event_shape = torch.Size((num_points, *initial.event_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def has_density(self) -> bool:
        """Whether any path has a log-density, and not only a divergence beside another law."""
        return True

    @abstractmethod
    def simulate(self, initial: Tensor) -> Tensor:
        """Sample the rest of the path; ``(..., D) -> (..., T, D)``, reparameterised."""

    @abstractmethod
    def kernels(self, path: Tensor) -> TransitionKernels:
        """Transition kernels along a path ``(..., T, D)``, all steps at once, time leftmost."""

    def first_state(self, path: Tensor) -> Tensor:
        """First states of paths, ``(..., D)``."""
        return path[..., 0, :]

    def sampled_kernels(self, path: Tensor) -> TransitionKernels:
        """`kernels` of a path that this law sampled, for gradients with respect to parameters through the sampling.

        What sampling has computed may be used again. Derivatives with respect to the path itself are then not those of
        the kernels: its coefficients hang on the sampling, not on this tensor.
        """
        return self.kernels(path)

    def kernels_beside(self, path: Tensor, law: PathDistribution, kernels: TransitionKernels) -> TransitionKernels:
        """`kernels` along a path, where those of another law on the same grid are known: what is shared is reused."""
        del law, kernels
        return self.kernels(path)

    @abstractmethod
    def check_same_grid(self, other: PathDistribution) -> None:
        """Raise ValueError if `other` lives on another grid."""

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Real paths."""
        return constraints.independent(constraints.real, 2)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised paths ``(*sample_shape, *batch, T, D)``.

        Raises:
            ValueError: if a path is not finite; the message names the first time and dimension.
        """
        shape = torch.Size(sample_shape)
        initial = self.initial.rsample(shape) if self.initial.has_rsample else self.initial.sample(shape)
        path = self.simulate(initial)
        self._sampled = [ref for ref in self._sampled if ref() is not None]
        self._sampled.append(weakref.ref(path))
        return path

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Paths without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of paths with respect to Lebesgue measure on the noisy directions; ``(..., *batch)``.

        Raises:
            ValueError: if the value has a wrong shape, is NaN, or leaves the support on directions without noise.
            TypeError: if its dtype is not that of states.
        """
        if self._validate_args:
            self._validate_sample(value)
        return self.initial.log_prob(value[..., 0, :]) + self.kernels(value).log_prob().sum(0)

    def check_path(self, name: str, path: Tensor) -> None:
        """Raise unless a tensor has the event shape of paths of this law and a dtype that states have."""
        if not isinstance(path, Tensor):
            msg = f"`{name}` must be a tensor, received {type(path).__name__}."
            raise TypeError(msg)
        shape, count = tuple(self.event_shape), len(self.event_shape)
        if path.dim() < count or tuple(path.shape[path.dim() - count :]) != shape:
            wanted = f"(..., {', '.join(map(str, shape))})"
            msg = f"`{name}` must be a path of shape {wanted} on the grid of this law, received {tuple(path.shape)}."
            raise ValueError(msg)
        if path.is_complex() or not (path.is_floating_point() or self.support.is_discrete):
            msg = f"`{name}` must be a path of floating-point numbers, received {path.dtype}."
            raise TypeError(msg)

    def _validate_sample(self, value: Tensor) -> None:
        self.check_path("value", value)
        super()._validate_sample(value)

    def score_parts(self, x: Tensor) -> ScoreParts:
        r"""Score parts with the gradient of sticking the landing, for this site alone.

        The entropy term has the value of :math:`\log q_\phi(z)` and the gradient of :math:`\log q_{\bar\phi}(z_\phi)`,
        with the parameters of the density held fixed. `PathELBO` does the same jointly for all sites of a guide.

        References:
            Roeder, Wu, Duvenaud (2017), Sticking the landing, arXiv 1703.09194, eq. (8).
        """
        if not self.has_rsample:
            log_prob = self.log_prob(x)
            return ScoreParts(log_prob, log_prob, 0)  # type: ignore[arg-type]
        shape = torch.broadcast_shapes(x.shape[: -self.event_dim], self.batch_shape)
        path = x.expand(*shape, *self.event_shape)
        log_prob = self.log_prob(path)
        if not torch.is_grad_enabled():
            return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        entropy = log_prob.detach()
        if torch.jit.is_tracing():  # TorchScript cannot record the gradient below if the density has learned tensors
            fixed = self.log_prob(path.detach())
            return ScoreParts(log_prob, 0, log_prob - fixed + fixed.detach())  # type: ignore[arg-type]
        if path.requires_grad:
            (gradient,) = torch.autograd.grad(log_prob.sum(), path, retain_graph=True, allow_unused=True)
            if gradient is not None:
                entropy = entropy + (gradient * (path - path.detach())).sum((-2, -1))
        return ScoreParts(log_prob, 0, entropy)  # type: ignore[arg-type]

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: PathDistribution | None = None
    ) -> PathDistribution:
        """The same law with a larger batch shape; the class is kept.

        Raises:
            ValueError: if this law's batch shape does not broadcast to `batch_shape`.
        """
        batch_shape = torch.Size(batch_shape)
        aligned = zip(reversed(self.batch_shape), reversed(batch_shape), strict=False)
        fits = len(batch_shape) >= len(self.batch_shape) and all(old in (1, new) for old, new in aligned)
        if not fits or min(batch_shape, default=0) < 0:
            msg = f"cannot expand a path law of batch shape {tuple(self.batch_shape)} to {tuple(batch_shape)}."
            raise ValueError(msg)
        new = copy.copy(self) if _instance is None else _instance
        new.initial = _expand_law(self.initial, batch_shape)
        Distribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def named(self, name: str) -> PathDistribution:
        """Copy that names its sample site in error messages."""
        new = copy.copy(self)
        new.site_name = name
        return new

    def last_sample(self) -> Tensor | None:
        """The one sampled path that is still alive, None if there is none or more than one."""
        alive = [path for ref in self._sampled if (path := ref()) is not None]
        return alive[0] if len(alive) == 1 else None

    def __getstate__(self) -> dict[str, object]:
        """State without links to sampled paths, for copies and pickles."""
        return {**self.__dict__, "_sampled": []}

    def __repr__(self) -> str:
        """Class and shapes."""
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


class DrivenPath(PathDistribution):
    """Path law whose paths are functions of their first state and of standard normal noise, which can be exchanged.

    Subclasses implement `noise_shape`, `solve` and `noise_of`. `PathNoiseReparam` serves them.
    """

    @abstractmethod
    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape ``(*batch, K, W)`` of the noise that drives a path."""

    @abstractmethod
    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        """Path ``(..., T, D)`` of first states ``(..., D)`` and noise ``(..., K, W)``."""

    @abstractmethod
    def noise_of(self, path: Tensor) -> Tensor:
        """Noise ``(..., K, W)`` that drives a path; the inverse of `solve`."""


def check_initial(initial: Distribution) -> None:
    """Raise ValueError unless `initial` is a law of one state, event shape ``(D,)``."""
    if not isinstance(initial, Distribution):
        msg = f"`initial` must be a distribution over the first state, received {type(initial).__name__}."
        raise TypeError(msg)
    if len(initial.event_shape) != 1:
        advice = " Add `.to_event(1)`." if not initial.event_shape else ""
        msg = (
            f"`initial` must have event shape (D,), received event shape {tuple(initial.event_shape)} and batch shape "
            f"{tuple(initial.batch_shape)}.{advice}"
        )
        raise ValueError(msg)


def _expand_law(law: Distribution, batch_shape: torch.Size) -> Distribution:
    return law if law.batch_shape == batch_shape else law.expand(batch_shape)
