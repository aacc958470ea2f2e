r"""Laws of paths that are bound to a set: positive, in an interval, on the simplex."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..ops.brownian import VirtualBrownianTree
from ..ops.grid import TimeGrid
from ..ops.layout import time_first
from ..sde.base import SDE
from ..sde.constrained import ConstrainedSDE, Domain, domain_of
from ..solvers.base import Solver
from ..solvers.execution import Execution
from ..solvers.reflected import ReflectedEuler
from ._constrained_kernels import ConstrainedKernels
from ._coordinate_transform import image
from .base import DrivenPath, PathDistribution, check_initial
from .kernels import EulerKernels, TransitionKernels
from .sde_path import SDEPath

__all__ = ["ConstrainedPath"]


class ConstrainedPath(DrivenPath):
    r"""Law of a path x whose states are bound to a set, from a law of its coordinate :math:`y = T(x)`.

    .. math:: \log p(x) = \log p_0(x_0) + \sum_k \big[\log p(y_{k+1} \mid y_k) - \log |\det \varphi'(y_{k+1})|\big]

    The value of the site is x in its own units, and the support is the constraint: conditioning on an observed path,
    HMC (which unconstrains it again) and `Predictive` work unchanged. The divergence of two such laws with one domain
    is that of their coordinates. `of` builds the law from a constrained SDE.

    Cost: that of the coordinate's law and some elementwise operations.

    Args:
        base: law of the coordinate, such as an `SDEPath`.
        domain: the constraint with its coordinate.
        initial: law of the first state x, event shape ``(D,)``; the image of the initial law of `base` if None.
        validate_args: as for every torch distribution. If on, a path with a state outside is refused with its time.

    Attributes:
        base: law of the coordinate.
        domain: the constraint.

    Shape:
        value: ``(*sample, *batch, T, D)``; on the simplex the coordinate has D - 1 entries.

    Raises:
        TypeError: if `base` is not a path law or `domain` not a `Domain`.
        ValueError: if `initial` does not fit the law of the coordinate, or the coordinate itself is bounded and the
            solver would leave it.

    References:
        Øksendal (2003), theorem 4.2.1 (Itô's formula).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_sde import TimeGrid
        >>> from pyro_sde.sde import GeometricBrownianMotion
        >>> from pyro_sde.sde.constrained import Positive, constrain
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1)
        >>> start = dist.LogNormal(torch.zeros(2), 1.0).to_event(1)
        >>> law = ConstrainedPath.of(constrain(GeometricBrownianMotion(0.1, 0.3), Positive()), start, grid)
        >>> bool((law.sample((3,)) > 0).all())
        True
    """

    def __init__(
        self,
        base: PathDistribution,
        domain: Domain,
        initial: Distribution | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(base, PathDistribution):
            msg = f"`base` must be the path law of the coordinate, such as an SDEPath; received {type(base).__name__}."
            raise TypeError(msg)
        if not isinstance(domain, Domain):
            msg = f"`domain` must be a Domain such as Positive(), received {type(domain).__name__}."
            raise TypeError(msg)
        if domain.bounds != (None, None) and not isinstance(getattr(base, "solver", None), ReflectedEuler):
            lower, upper = domain.bounds
            msg = (
                f"the coordinate of {domain} is bounded itself, and a step could leave it. Give "
                f"solver=ReflectedEuler(lower={lower}, upper={upper})."
            )
            raise ValueError(msg)
        initial = image(base.initial, domain, inverse=True) if initial is None else initial
        check_initial(initial)
        width = domain.coordinate_dim(initial.event_shape[0])
        if width != base.event_shape[-1]:
            msg = (
                f"`base` must be a law of {width} coordinates for states of dimension {initial.event_shape[0]} "
                f"({domain.text}), received event shape {tuple(base.event_shape)}."
            )
            raise ValueError(msg)
        self.base = base
        self.domain = domain
        self._coordinates: tuple[weakref.ref[Tensor], int, Tensor] | None = None
        super().__init__(initial, base.batch_shape, base.event_shape[0], validate_args=validate_args)

    @classmethod
    def of(
        cls,
        sde: SDE,
        initial: Distribution,
        grid: TimeGrid,
        *,
        inputs: Tensor | None = None,
        solver: Solver | None = None,
        brownian: VirtualBrownianTree | None = None,
        execution: Execution | None = None,
        validate_args: bool | None = None,
    ) -> ConstrainedPath:
        """Law of a constrained SDE, or of one with a control, as `SDEPath` takes its arguments.

        Args:
            sde: ``constrain(sde, domain)``, or ``constrain(sde, domain).controlled(control)`` in a guide.
            initial: law of the first state x, in the units of x, event shape ``(D,)``.
            grid: the solver grid.
            inputs: rows of the drift or, if `sde` has a control, of the control, ``(*batch, K, C)``.
            solver: how a step of the coordinate is taken.
            brownian: a Brownian motion to sample from.
            execution: how paths are simulated and differentiated.
            validate_args: as for every torch distribution.

        Raises:
            TypeError: if `sde` is not constrained.
            ValueError: as `SDEPath`, and if drift or diffusion would carry x out of its set at the boundary.
        """
        domain = domain_of(sde)
        check_initial(initial)
        base = SDEPath(
            sde,
            image(initial, domain, inverse=False),
            grid,
            inputs=inputs,
            solver=solver,
            brownian=brownian,
            execution=execution,
            validate_args=validate_args,
        )
        law = cls(base, domain, initial, validate_args=validate_args)
        _check_boundary(sde, law)
        return law

    # ---------------------------------------------------------------- what the law of the coordinate knows
    @property
    def grid(self) -> TimeGrid:
        """Grid of the coordinate's law."""
        return self.base.grid  # type: ignore[attr-defined]

    @property
    def sde(self) -> SDE:
        """SDE of the coordinate."""
        return self.base.sde  # type: ignore[attr-defined]

    @property
    def has_density(self) -> bool:
        """That of the path of the coordinate."""
        return self.base.has_density

    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape of the standard normal noise that drives a path, as for `SDEPath`."""
        return self.base.noise_shape(self.batch_shape if batch is None else batch)  # type: ignore[attr-defined]

    def noise_of(self, path: Tensor) -> Tensor:
        """Standard normal noise that drives a path, as for `SDEPath`."""
        return self.base.noise_of(self.domain.to_coordinate(path))  # type: ignore[attr-defined]

    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        """Path of a first state ``(..., D)`` and given noise, as for `SDEPath`."""
        return self._to_path(initial, self.base.solve(self.domain.to_coordinate(initial), noise))  # type: ignore[attr-defined]

    # ---------------------------------------------------------------- law
    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Paths whose states obey the constraint."""
        return constraints.independent(self.domain.support, 1)

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)``.

        Raises:
            ValueError: if a first state is outside, or the path is not finite.
        """
        self._check_inside(initial.unsqueeze(-2))
        coordinates = self.base.simulate(self.domain.to_coordinate(initial))
        path = self._to_path(initial, coordinates)
        self._check_finite(path)
        self._coordinates = (weakref.ref(path), path._version, coordinates)
        return path

    def kernels(self, path: Tensor) -> ConstrainedKernels:
        """Transition kernels along a path ``(..., T, D)``."""
        coordinates = self.domain.to_coordinate(path)
        return self._wrap(self.base.kernels(coordinates), coordinates)

    def sampled_kernels(self, path: Tensor) -> ConstrainedKernels:
        """As `kernels`, for a path that this law sampled from the coordinates that it was made of."""
        coordinates = self._recall(path)
        return self._wrap(self.base.sampled_kernels(coordinates), coordinates)

    def kernels_beside(self, path: Tensor, law: PathDistribution, kernels: TransitionKernels) -> ConstrainedKernels:
        """Kernels along a path; what the coordinates of the other law share is reused."""
        if (
            not isinstance(law, ConstrainedPath)
            or not isinstance(kernels, ConstrainedKernels)
            or not self.domain.same_as(law.domain)
        ):
            return self.kernels(path)
        coordinates = kernels.coordinates
        return self._wrap(self.base.kernels_beside(coordinates, law.base, kernels.base), coordinates)

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        self.base.check_same_grid(other.base if isinstance(other, ConstrainedPath) else other)

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: PathDistribution | None = None
    ) -> ConstrainedPath:
        """The same law with a larger batch shape.

        Raises:
            ValueError: if this law's batch shape does not broadcast to `batch_shape`.
        """
        new: ConstrainedPath = super().expand(batch_shape, _instance)  # type: ignore[assignment]
        new.base = self.base.expand(batch_shape)
        return new

    def named(self, name: str) -> PathDistribution:
        """Copy that names its sample site in error messages."""
        new: ConstrainedPath = super().named(name)  # type: ignore[assignment]
        new.base = self.base.named(name)
        return new

    def __getstate__(self) -> dict[str, object]:
        """State without links to sampled paths, for copies and pickles."""
        return {**super().__getstate__(), "_coordinates": None}

    def _to_path(self, initial: Tensor, coordinates: Tensor) -> Tensor:
        """States of the coordinates; the first one is as given, not through its coordinate and back."""
        path = self.domain.to_state(coordinates)
        first = initial.unsqueeze(-2).expand(*path.shape[:-2], 1, path.shape[-1])
        return torch.cat([first, path[..., 1:, :]], -2)

    def _recall(self, path: Tensor) -> Tensor:
        if self._coordinates is not None:
            reference, version, coordinates = self._coordinates
            if reference() is path and version == path._version:
                return coordinates
        return self.domain.to_coordinate(path)

    def _wrap(self, kernels: TransitionKernels, coordinates: Tensor) -> ConstrainedKernels:
        rank = max(coordinates.dim() - 2, len(self.batch_shape))
        terms = time_first(self.domain.log_slopes(coordinates[..., 1:, :]), rank)
        if isinstance(kernels, EulerKernels) and not kernels.noise.matrix_dims and not kernels.range.full:
            terms = torch.where(kernels.diffusion != 0, terms, torch.zeros_like(terms))  # no density, no volume
        steps = time_first(self.grid.steps.unsqueeze(-1), rank).squeeze(-1)
        log_det = torch.where(steps > 0, terms.sum(-1), terms.new_zeros(()))
        return ConstrainedKernels(kernels, self.domain, coordinates, log_det)

    # ---------------------------------------------------------------- checks
    def _validate_sample(self, value: Tensor) -> None:
        if value.dim() >= 2 and value.shape[-2:] == self.event_shape:
            self._check_inside(value)
        super()._validate_sample(value)

    def _check_inside(self, path: Tensor) -> None:
        """Raise ValueError if a state ``(..., T, D)`` violates the constraint."""
        with torch.no_grad():
            bad = ~self.domain.inside(path)
            if bad.any():
                where, place = self._locate(bad)
                msg = (
                    f"{self._site()}the state {float(path[where]):.6g}{place} is outside its constraint "
                    f"{self.domain.text}. Give an initial law, or observed paths, inside it; round values that touch "
                    "the boundary inwards."
                )
                raise ValueError(msg)

    def _check_finite(self, path: Tensor) -> None:
        with torch.no_grad():
            bad = ~path.isfinite()
            if bad.any():
                _, place = self._locate(bad)
                msg = (
                    f"{self._site()}the state became infinite{place}: its coordinate has left the range of "
                    f"{path.dtype}. Use a smaller max_step, or a coordinate in which the steps are stable (docs, "
                    '"Constrain states").'
                )
                raise ValueError(msg)

    def _locate(self, bad: Tensor) -> tuple[tuple[int, ...], str]:
        """The first bad entry of ``(..., T, D)`` in time."""
        step, *series, dimension = bad.movedim(-2, 0).nonzero()[0].tolist()
        times = time_first(self.grid.times.detach().unsqueeze(-1), bad.dim() - 2)
        time = times.expand(len(times), *bad.shape[:-2], 1)[(step, *series)].item()
        text = f" at time {time:g}, dimension {dimension}" + (f", series {series}" if series else "")
        return (*series, step, dimension), text

    def _site(self) -> str:
        return f"site '{self.site_name}': " if self.site_name else ""


def _check_boundary(sde: SDE, law: ConstrainedPath) -> None:
    """A control moves only along the diffusion, which is that of the prior and was checked there."""
    if not isinstance(sde, ConstrainedSDE):
        return
    times = law.grid.times[..., :1].detach()
    rows = tuple(None if row is None else row[..., 0, :] for row in sde.bind_rows(law.base.inputs))  # type: ignore[attr-defined]
    with law.base.effects:  # type: ignore[attr-defined]
        sde.check_boundary(times, times.new_zeros((*law.batch_shape, law.event_shape[-1])), rows)
