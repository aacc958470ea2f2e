r"""Solvers of torchsde: adaptive sampling, and its stochastic adjoint with the log-ratio carried along.

The only file that knows torchsde, and the only place of its time-first order. Every gap between requested times is a
solve of its own, so that no state is interpolated: torchsde interpolates linearly, which halves the variance between
steps.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..ops.grid import TimeGrid
from ..sde.base import SDE
from ._augmented import AugmentedGap, AugmentedSDE
from ._carried import CarriedBackend, CarriedProblem, CarriedSolution
from ._torchsde_options import FORMS, check_noise, check_options
from .captured import StandIns, find_captured
from .noise import StepNoise

__all__ = ["TorchsdeAdjoint", "sample_adaptive"]

_DT_MIN = 1e-7  # of the gap


@dataclass(frozen=True)
class TorchsdeAdjoint(CarriedBackend):
    r"""Back-end of `CarriedPath` by ``torchsde.sdeint_adjoint``: fixed or adaptive steps, continuous adjoint.

    Every tensor that needs gradients is found and handed to the adjoint, parameters, `inputs` and tensors in closures
    alike. The gradient is that of the adjoint equation, solved backwards by its own method: it differs from the
    gradient of the computed loss by the discretisation error. Slower than every other way here, see
    docs/how-to/adjoint-and-adaptive.md; use it for adaptive steps, or to compare with torchsde.

    Fixed steps are those of the grid, equal within a gap; adaptive ones start with them. The step size is one for all
    series, as always in torchsde, whose error norm is over all states of all series; kl is scaled out of it forwards
    (backwards the norm of the adjoint is over everything). All series share one grid.

    Args:
        method: "euler", "milstein", "srk" (Itô), "euler_heun", "heun", "midpoint" or "reversible_heun"
            (Stratonovich); "midpoint" if None. The SDE is converted to the form of the method.
        adjoint_method: of the backward solve; torchsde's choice if None.
        adaptive: choose steps by the error of a step against two half steps.
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        martingale: whether values carry it. It makes the noise of all states together "general" unless there is one
            Brownian motion only, which neither "milstein" nor "srk" nor adaptive steps can take. Without it a value
            serves ``PathELBO(kl="closed")`` alone.

    Raises:
        ValueError: if `method` is unknown, a tolerance is not positive, or adaptive steps are asked of
            "reversible_heun", which does not keep them; at use if the noise does not allow the method or adaptive
            steps, or the grids of series differ.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328,
        algorithm 2.
    """

    method: str | None = None
    adjoint_method: str | None = None
    adaptive: bool = False
    rtol: float = 1e-4
    atol: float = 1e-4
    martingale: bool = True

    def __post_init__(self) -> None:
        check_options(self.method, self.rtol, self.atol, self.adjoint_method)
        if self.adaptive and self.method == "reversible_heun":
            msg = (
                'adaptive=True is not possible with method="reversible_heun", which would have to retrace its steps '
                'and does not keep them. Use method="midpoint".'
            )
            raise ValueError(msg)

    def solve(self, problem: CarriedProblem, noise: StepNoise | None = None) -> CarriedSolution:
        """Solve a problem; the Brownian motion is torchsde's own, seeded by the generator of torch.

        Raises:
            ValueError: if the noise of the SDE does not allow the options, the grids of series differ, `noise` is
                given, or a tensor that needs gradients cannot be followed; the message names it.
        """
        if noise is not None:
            msg = "TorchsdeAdjoint draws its own Brownian motion; given noise needs ReversibleHeunAdjoint."
            raise ValueError(msg)
        grid = problem.grid
        if grid.batch_shape or grid.times.requires_grad:
            what = f"a grid for each series {tuple(grid.batch_shape)}" if grid.batch_shape else "times with gradients"
            msg = (
                f"`grid` has {what}, and torchsde knows one fixed sequence of times for all series. Use "
                "ReversibleHeunAdjoint() or SDEPath, or one shared grid of detached times."
            )
            raise ValueError(msg)
        method = self.method or "midpoint"
        system = AugmentedSDE(problem, FORMS[method], ("kl", "martingale") if self.martingale else ("kl",))
        first = system.start(problem.initial)
        advice = "Set martingale=False, or take fixed steps." if system.has_martingale else ""
        check_noise(system, first, method, adaptive=self.adaptive, advice=advice)
        options: dict[str, Any] = {"method": method, "adaptive": self.adaptive, "rtol": self.rtol, "atol": self.atol}
        options |= {"adjoint_method": self.adjoint_method, "adjoint_adaptive": self.adaptive}
        options |= {"adjoint_rtol": self.rtol, "adjoint_atol": self.atol}
        captured: tuple[Tensor, ...] = ()
        if torch.is_grad_enabled():
            arguments = (grid.times[0], first, *system.first_rows())
            captured = find_captured(system.compute, arguments, dict(problem.sde.named_parameters()))
        run = _Run(system, grid, options, dict(problem.sde.named_parameters()))
        states = _Isolated.apply(run, len(system.rows), first, *system.rows, *captured)
        return CarriedSolution(*_split(system, grid, states))


def sample_adaptive(
    sde: SDE,
    initial: Tensor,
    times: Tensor,
    *,
    inputs: Tensor | None = None,
    method: str | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    max_step: float | None = None,
) -> Tensor:
    r"""States of an SDE at given times by adaptive steps of torchsde, for priors and forecasts.

    The step size follows the error of a step against two half steps, one for all series. Requested times are hit, never
    interpolated to. Adaptive steps look at the noise before they decide, which is right only if the noise commutes:
    other noise is refused. There is no density and no gradient.

    Args:
        sde: the SDE, in either interpretation; it is converted to the form of the method.
        initial: states at ``times[0]``, ``(*batch, D)``.
        times: increasing, ``(N,)``, shared by all series.
        inputs: ``(*batch, N - 1, C)``; row i is given to the drift (or control) from ``times[i]`` to ``times[i + 1]``.
        method: as for `TorchsdeAdjoint`; "srk" (order 1.5) if None.
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_step: first step of every gap, > 0; the gap itself if None.

    Returns:
        ``(*batch, N, D)``.

    Raises:
        ValueError: if the noise does not commute or does not fit the method, a shape does not fit, or the step size
            falls below 1e-7 of a gap.
        TypeError: if `sde` is no SDE, or `initial` or `times` no floating-point tensor.

    References:
        Gaines and Lyons (1997), Variable step size control in the numerical solution of stochastic differential
        equations, SIAM J. Appl. Math. 57, theorem 4.1.
    """
    check_options(method, rtol, atol)
    method = method or "srk"
    if max_step is not None and not (isinstance(max_step, Real) and 0 < max_step < math.inf):
        msg = f"`max_step` must be a number > 0, received {max_step!r}."
        raise ValueError(msg)
    _check_kinds(sde, initial, times)
    if times.dim() != 1:
        msg = (
            f"`times` must have shape (N,), shared by all series, received {tuple(times.shape)}. For times per series "
            "use SDEPath on a TimeGrid."
        )
        raise ValueError(msg)
    rows = sde.bind_rows(inputs)
    for row in rows:
        if row is not None and row.shape[-2] != len(times) - 1:
            msg = f"`inputs` must have one row per gap, (*batch, {len(times) - 1}, C), received {tuple(row.shape)}."
            raise ValueError(msg)
    with torch.no_grad():
        grid = TimeGrid(times.detach())
        width = _brownian_dim(sde, initial, grid.times[:1], rows)
        problem = CarriedProblem(sde, grid, initial, rows, width, contextlib.nullcontext())
        system = AugmentedSDE(problem, FORMS[method], ())
        first = system.start(initial)
        check_noise(system, first, method, adaptive=True, advice="")
        run = _Run(system, grid, {"method": method, "adaptive": True, "rtol": rtol, "atol": atol}, {})
        if max_step is not None:
            run.gaps = [gap._replace(steps=math.ceil((gap.end - gap.start) / max_step)) for gap in run.gaps]
        return system.parts(run.solve(first, None))[0].movedim(0, -2)


def _check_kinds(sde: SDE, initial: Tensor, times: Tensor) -> None:
    if not isinstance(sde, SDE):
        msg = f"`sde` must be an SDE, received {type(sde).__name__}."
        raise TypeError(msg)
    for name, value in (("initial", initial), ("times", times)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            msg = f"`{name}` must be a floating-point tensor, received {kind}."
            raise TypeError(msg)
    if initial.dim() < 1 or not bool(initial.isfinite().all()):
        problem = "an entry that is not finite" if initial.dim() else "shape ()"
        msg = f"`initial` must be finite states of shape (*batch, D), received {problem}."
        raise ValueError(msg)


def _brownian_dim(sde: SDE, initial: Tensor, t: Tensor, rows: Sequence[Tensor | None]) -> int:
    first = tuple(None if row is None else row[..., 0, :] for row in rows)
    with poutine.block(), poutine.trace() as statements:
        try:
            diffusion = sde.coefficients(t, initial, first).diffusion
        except RuntimeError as error:
            msg = f"`initial` of shape {tuple(initial.shape)} does not fit the coefficients of `sde`: {error}."
            raise ValueError(msg) from error
    drawn = [name for name, site in statements.trace.nodes.items() if site["type"] == "sample"]
    if drawn:
        msg = (
            f"a coefficient of `sde` executes the Pyro statement '{drawn[0]}', which would draw anew at every step. "
            "Give it a fixed value (poutine.condition), or sample from CarriedPath(..., backend=TorchsdeAdjoint())."
        )
        raise ValueError(msg)
    return sde.noise.brownian_dim(diffusion, initial.shape[-1])


class _Gap(NamedTuple):
    start: float
    end: float
    steps: int
    first: int  # numbers of the first and the last step of the grid
    last: int


class _Run:
    """Gap after gap of a grid, each a solve of torchsde."""

    def __init__(self, system: AugmentedSDE, grid: TimeGrid, options: dict[str, Any], names: dict[str, Tensor]) -> None:
        self.system, self.options, self.names = system, options, names
        self.gaps = list(_gaps(grid))

    def solve(self, y: Tensor, parameters: Sequence[Tensor] | None) -> Tensor:
        """States at 0 and at the end of every gap; by the adjoint if parameters are given."""
        states = [y]
        for gap in self.gaps:
            states.append(self._solve_gap(states[-1], gap, parameters))
        return torch.stack(states)

    def _solve_gap(self, y: Tensor, gap: _Gap, parameters: Sequence[Tensor] | None) -> Tensor:
        import torchsde  # on request: `import pyro_sde` does without it

        start, end = gap.start, gap.end
        step = (end - start) / gap.steps
        system = AugmentedGap(self.system, gap.first, gap.last)
        needs_area = self.options["method"] == "srk"
        noise = torchsde.BrownianInterval(
            start,
            end,
            (len(y), self.system.noise_size),
            dtype=y.dtype,
            device=y.device,
            entropy=int(torch.randint(2**31 - 1, ())),
            levy_area_approximation="space-time" if needs_area else "none",
            dt=step,
        )
        # Slightly longer steps: no tiny one is left over, and a step starts inside the piece of `inputs` that it runs
        # through, forwards and backwards.
        options = {**self.options, "dt": step * (1 + 1e-9), "dt_min": _DT_MIN * (end - start), "bm": noise}
        moments = torch.tensor([start, end], dtype=torch.float64, device=y.device)
        if parameters is None:
            options = {name: value for name, value in options.items() if not name.startswith("adjoint")}
            return _named(torchsde.sdeint, system, y, moments, **options)[-1]
        return _named(torchsde.sdeint_adjoint, system, y, moments, adjoint_params=tuple(parameters), **options)[-1]


class _Isolated(torch.autograd.Function):
    """A run whose graph inside knows leaves only, so that no gradient goes a way of its own."""

    @staticmethod
    def forward(ctx: Any, run: _Run, num_rows: int, first: Tensor, *tensors: Tensor) -> Tensor:  # noqa: ANN401
        needed = ctx.needs_input_grad[2:]
        if not any(needed):
            return run.solve(first, None)
        stand_ins = StandIns(tensors[num_rows:], run.names)
        leaves = [
            t.detach().requires_grad_(need) for t, need in zip((first, *tensors[:num_rows]), needed, strict=False)
        ]
        run.system.stand_ins, run.system.rows = stand_ins, leaves[1:]
        with torch.enable_grad():
            states = run.solve(leaves[0], [t for t in (*leaves[1:], *stand_ins.leaves) if t.requires_grad])
        ctx.inside = states, [*leaves, *stand_ins.leaves]
        return states.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        states, leaves = ctx.inside
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(_named(torch.autograd.grad, states, wanted, gradients[0], allow_unused=True))
        return None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


def _gaps(grid: TimeGrid) -> Iterator[_Gap]:
    """Gaps between neighbouring observations, from the first time to the last."""
    marks = _marks(grid)
    times = grid.times.detach().double()
    for left, right in zip(marks[:-1], marks[1:], strict=True):
        start, end = float(times[left]), float(times[right])
        if end > start:
            yield _Gap(start, end, max(1, int((grid.steps[left:right] > 0).sum())), left, right - 1)


def _marks(grid: TimeGrid) -> list[int]:
    return sorted({0, *grid.observed_index.tolist(), grid.num_steps})


def _split(system: AugmentedSDE, grid: TimeGrid, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """States at the observations, and the log-ratio at the end."""
    place = {mark: min(i, len(states) - 1) for i, mark in enumerate(_marks(grid))}
    z, kl, martingale = system.parts(states)
    observed = z[[place[int(k)] for k in grid.observed_index]]
    return observed.movedim(0, -2), kl[-1], None if martingale is None else martingale[-1]


def _named(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call torchsde with its warnings and assertions as errors of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Hitting minimum allowed step size")
        warnings.filterwarnings("ignore", message="Should have t")  # round-off at the ends of a gap
        try:
            result = function(*args, **kwargs)
        except (AssertionError, UserWarning) as error:
            if not ("nans" in str(error) or "Hitting" in str(error)):
                raise
            msg = (
                "the adaptive solver found no step small enough for its tolerances: the SDE is stiff, explodes, or the "
                "tolerances are too small. Raise `rtol` and `atol`, or use SDEPath with DriftImplicitEuler()."
            )
            raise ValueError(msg) from error
    return result
