r"""Transition kernels that are any distributions, for all steps of a path at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)

from ._markov_steps import StepLayout
from .gaussian_kernels import GaussianKernels
from .kernels import EulerKernels, TransitionKernels

__all__ = ["GaussianLaw", "MarkovKernels", "SampledSteps", "ScoredKernels", "family", "has_learned_flow", "is_discrete"]


class GaussianLaw(NamedTuple):
    """Location and scale of a Normal law of a state.

    Attributes:
        loc: ``(..., D)``.
        scale: standard deviations ``(..., D)``, or a lower triangular factor ``(..., D, D)``.
        full: whether the scale is a factor.
    """

    loc: Tensor  # (..., D)
    scale: Tensor  # (..., D), or a lower triangular factor (..., D, D)
    full: bool  # whether the scale is a factor

    @classmethod
    def of(cls, law: Distribution) -> GaussianLaw | None:
        """Parts of ``Normal(...).to_event(1)`` and of `MultivariateNormal`, None for other laws."""
        if isinstance(law, Independent):
            base = law.base_dist
            if law.reinterpreted_batch_ndims == 1 and isinstance(base, Normal) and _is_plain(base, Normal):
                return cls(base.loc, base.scale, False)
        elif isinstance(law, MultivariateNormal) and _is_plain(law, MultivariateNormal):
            return cls(law.loc, law._unbroadcasted_scale_tril, True)
        return None

    def law(self) -> Distribution:
        """The law of these parts."""
        if self.full:
            return dist.MultivariateNormal(self.loc, scale_tril=self.scale, validate_args=False)
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)

    def widened(self) -> Distribution:
        """The same law as a `MultivariateNormal`."""
        return self.law() if self.full else self._replace(scale=torch.diag_embed(self.scale), full=True).law()

    def draw(self, noise: Tensor) -> Tensor:
        """Loc plus scale times standard normal noise ``(..., D)``."""
        if self.full:
            return self.loc + (self.scale @ noise.unsqueeze(-1)).squeeze(-1)
        return torch.addcmul(self.loc, self.scale, noise)

    def standardise(self, value: Tensor) -> Tensor:
        """The noise that `draw` makes the value of; both are ``(..., D)``."""
        centred = value - self.loc
        if self.full:
            factor = self.scale.expand(*centred.shape, centred.shape[-1])
            return torch.linalg.solve_triangular(factor, centred.unsqueeze(-1), upper=False).squeeze(-1)
        return centred / self.scale


class MarkovKernels(TransitionKernels):
    """Kernels of a `MarkovPath` along a path.

    Args:
        law: law of the next states of all steps; its batch shape is that of `steps`, ``(K, ...)`` if nothing is packed.
        next_state: states after the steps, ``(K, ..., D)`` if nothing is packed.
        steps: the layout of the steps.
        again: evaluates the kernels along the same path anew, in a layout without packing if asked to.

    Attributes:
        law: as given.
        next_state: as given.
        steps: as given.
    """

    def __init__(
        self, law: Distribution, next_state: Tensor, steps: StepLayout, again: Callable[[bool], MarkovKernels]
    ) -> None:
        self.law = law
        self.next_state = next_state
        self.steps = steps
        self.again = again
        self.discrete = is_discrete(law)

    def log_prob(self) -> Tensor:
        """Log-density (or log-probability) of each next state, ``(K, ...)``.

        Raises:
            ValueError: if the transition is a flow whose inverse is known for its own samples only.
        """
        try:
            density = self.law.log_prob(self.next_state)
        except (KeyError, NotImplementedError) as error:
            msg = (
                f"the density of a given state under a transition {family(self.law)} cannot be computed, as its "
                'transform has no inverse. Use it in a guide with Trace_ELBO or PathELBO(kl="full"), which score '
                "paths as they are sampled, or take a transform with an inverse, such as spline or affine coupling."
            )
            raise ValueError(msg) from error
        return self.steps.by_step(density)

    def kl(self, other: TransitionKernels) -> Tensor:
        """Divergence of every transition by `torch.distributions.kl_divergence`, ``(K, ...)``.

        Raises:
            NotImplementedError: if no closed form is registered for the two families.
        """
        if not isinstance(other, MarkovKernels):
            return other.kl_from(self)
        ours, theirs = self, other
        if type(ours.steps) is not type(theirs.steps):
            ours, theirs = (kernels.again(False) for kernels in (self, other))
        theirs = theirs.evaluated()
        try:
            divergence = kl_divergence(ours.law, theirs.law)
        except NotImplementedError as error:
            parts = [GaussianLaw.of(kernels.law) for kernels in (ours, theirs)]
            if parts[0] is None or parts[1] is None:
                msg = (
                    f"transitions {family(ours.law)} of the guide and {family(theirs.law)} of the model have no "
                    "closed-form divergence: give both the same family, or register one with "
                    "torch.distributions.register_kl."
                )
                raise NotImplementedError(msg) from error
            divergence = kl_divergence(parts[0].widened(), parts[1].widened())
        return ours.steps.by_step(divergence)

    def evaluated(self) -> MarkovKernels:
        """These kernels, with their laws."""
        return self

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Both must have densities with respect to one measure on all of the state.

        Raises:
            ValueError: if one has discrete states and the other has not, or has directions without noise.
        """
        if isinstance(other, MarkovKernels):
            if self.discrete is not other.discrete:
                kinds = ["discrete" if kernels.discrete else "continuous" for kernels in (self, other)]
                msg = f"the KL divergence is infinite: guide and model have {kinds[0]} and {kinds[1]} states."
                raise ValueError(msg)
            return
        self.check_absolutely_continuous_from(other)

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """As `check_absolutely_continuous`, for kernels that leave it to this class.

        Raises:
            ValueError: if the others have directions without noise.
        """
        if isinstance(other, EulerKernels | GaussianKernels) and not other.range.full:
            msg = (
                "the KL divergence is infinite: one of guide and model has directions without noise, and the other is "
                "a MarkovPath, whose transitions have a density in all directions."
            )
            raise ValueError(msg)


class ScoredKernels(MarkovKernels):
    """Kernels of which the log-densities are known from sampling, as a flow knows them; laws are built on request.

    Where no series moves there are none to know, and no laws: reductions of torch's laws fail on empty batches.

    Args:
        density: log-densities of all steps in the layout of `steps`, ``(K, ...)`` if nothing is packed.
        steps: the layout.
        again: as for `MarkovKernels`.
    """

    def __init__(self, density: Tensor, steps: StepLayout, again: Callable[[bool], MarkovKernels]) -> None:
        self.density = density
        self.steps = steps
        self.again = again
        self.discrete = False

    def log_prob(self) -> Tensor:
        """The known log-densities."""
        return self.steps.by_step(self.density)

    def kl(self, other: TransitionKernels) -> Tensor:
        """As `MarkovKernels.kl`."""
        return self.evaluated().kl(other) if self.steps.num_calls else self.log_prob()

    def evaluated(self) -> MarkovKernels:
        """The kernels by a call of the transition."""
        return self.again(True)


class SampledSteps:
    """What the steps of one sampled path have computed, kept without keeping the path alive.

    It carries the graph of the loop that made the path, so it serves the gradient through the sampling only.
    """

    def __init__(self) -> None:
        self._path: weakref.ref[Tensor] | None = None
        self._version = 0
        self._kept: tuple[StepLayout, list[GaussianLaw] | list[Tensor], bool] | None = None

    def keep(self, path: Tensor, steps: StepLayout, parts: list[GaussianLaw] | list[Tensor]) -> None:
        """Remember the laws or the log-densities of the steps of a path ``(..., K + 1, D)``, and forget any other's."""
        memo = weakref.ref(self)  # not `self`: a memo that its own callback holds would outlive its law

        def forget(_: object) -> None:
            owner = memo()
            if owner is not None:
                owner._kept = None

        self._path, self._version = weakref.ref(path, forget), path._version
        self._kept = (steps, parts, torch.is_grad_enabled()) if parts else None

    @property
    def holds_densities(self) -> bool:
        """Whether log-densities are remembered, not laws."""
        return self._kept is not None and isinstance(self._kept[1][0], Tensor)

    def recall(self, path: Tensor) -> tuple[StepLayout, GaussianLaw | Tensor] | None:
        """Layout and joined laws or log-densities, if `path` is that path, unchanged, and gradients are not missing.

        Shape:
            path: ``(..., K + 1, D)`` · locations and log-densities: those of all steps in the layout, ``(K, ..., D)``
            and ``(K, ...)`` if nothing is packed.
        """
        if self._kept is None or self._path is None or self._path() is not path or self._version != path._version:
            return None
        steps, parts, with_gradient = self._kept
        if torch.is_grad_enabled() and not with_gradient:
            return None
        first = parts[0]
        if isinstance(first, Tensor):
            return steps, steps.join(parts, 0)  # type: ignore[arg-type]
        locs, scales, _ = zip(*parts, strict=True)
        tail = 2 if first.full else 1
        return steps, GaussianLaw(steps.join(list(locs), 1), steps.join(list(scales), tail), first.full)


def has_learned_flow(law: Distribution) -> bool:
    """Whether a law is a flow that remembers its last sample, as Pyro's learned transforms do."""
    while isinstance(law, Independent):
        law = law.base_dist
    return isinstance(law, TransformedDistribution) and any(isinstance(t, TransformModule) for t in law.transforms)


def family(law: Distribution) -> str:
    """Name of a law without its `.to_event`."""
    while isinstance(law, Independent):
        law = law.base_dist
    return type(law).__name__


def is_discrete(law: Distribution) -> bool:
    """Whether the states of a law are discrete."""
    try:
        return bool(law.support.is_discrete)  # type: ignore[union-attr]
    except NotImplementedError:
        return False


def _is_plain(law: Distribution, kind: type[Distribution]) -> bool:
    """Whether the class of a law samples and scores as that of torch does."""
    return type(law).rsample is kind.rsample and type(law).log_prob is kind.log_prob
