"""Problems whose solution along a Brownian path is known, and the steps of a solver along given increments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_sde.ops.brownian import BrownianIncrements, brownian_increments, coarsen, normal_width
from pyro_sde.sde import SDE
from pyro_sde.solvers.base import Field, Solver, Step
from pyro_sde.solvers.log_ode import LogODE
from pyro_sde.solvers.stochastic_runge_kutta import SRK

F64 = torch.float64
SPEED = 0.5
FIRST = torch.tensor([0.3, -0.4], dtype=F64)
MIXING = torch.tensor([[0.9, 0.5], [-0.4, 0.8]], dtype=F64)


class Problem(NamedTuple):
    """The same process in both forms, and its last state along a Brownian path on the finest grid."""

    sde: dict[str, SDE]
    brownian_dim: int
    solution: Callable[[BrownianIncrements], Tensor]


def run(solver: Solver, sde: SDE, increments: BrownianIncrements, initial: Tensor) -> Tensor:
    """Last state after the steps of `increments`, time leftmost, from time 0."""
    sde = solver.adapt(sde)
    rows = sde.bind_rows(None)
    field = Field(sde, rows)
    z, t = initial, torch.zeros(1, dtype=initial.dtype)
    state = solver.start(field, t, z, rows)
    dt, w, h, a = increments
    for k in range(len(w)):
        part = BrownianIncrements(dt[k], w[k], None if h is None else h[k], None if a is None else a[k])
        z, state = solver.step(field, z, Step(t, part, rows), state)
        t = t + dt[k]
    return z


def brownian(steps: int, paths: int, dim: int, seed: int) -> BrownianIncrements:
    """W, H and A over equal steps of [0, 1], time leftmost."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(steps, paths, normal_width(dim, "area"), dtype=F64, generator=generator)
    return brownian_increments(torch.full((steps, 1, 1), 1 / steps, dtype=F64), normal, "area")


def arctan_problem(noise_type: str) -> Problem:
    r"""x_i = arctan(tan x_i(0) + c t + (B W)_i): diffusion B_im cos^2 x_i, which commutes."""
    mixing = {"diagonal": torch.diag(MIXING.diagonal()), "scalar": MIXING[:, :1], "general": MIXING}[noise_type]

    def diffusion(t: Tensor, z: Tensor) -> Tensor:
        if noise_type == "diagonal":
            return mixing.diagonal() * z.cos().square()
        return mixing * z.cos().square().unsqueeze(-1)

    def drift(t: Tensor, z: Tensor) -> Tensor:
        return SPEED * z.cos().square()

    def ito_drift(t: Tensor, z: Tensor) -> Tensor:
        return drift(t, z) - mixing.square().sum(-1) * z.sin() * z.cos() ** 3

    def solution(increments: BrownianIncrements) -> Tensor:
        return (FIRST.tan() + SPEED + increments.W.sum(0) @ mixing.T).arctan()

    return Problem(
        {
            "ito": SDE(ito_drift, diffusion, noise_type=noise_type),
            "stratonovich": SDE(drift, diffusion, noise_type=noise_type, sde_type="stratonovich"),
        },
        mixing.shape[-1],
        solution,
    )


def additive_problem() -> Problem:
    """A nonlinear drift with noise that depends on time; the solution by SRK on the finest grid, order 1.5."""

    def diffusion(t: Tensor, z: Tensor) -> Tensor:
        return (1 + 0.3 * t.sin()).unsqueeze(-1) * MIXING

    def drift(t: Tensor, z: Tensor) -> Tensor:
        # small and curved, so that random errors of SRK, h^1.5, are seen beside systematic ones, h^2
        return 0.3 * torch.stack([(2 * z[..., 1]).sin(), (2 * z[..., 0]).cos()], -1)

    sde = {kind: SDE(drift, diffusion, noise_type="additive", sde_type=kind) for kind in ("ito", "stratonovich")}
    return Problem(sde, 2, lambda increments: run(SRK(), sde["ito"], increments, FIRST))


def general_problem() -> Problem:
    """Columns that do not commute; the solution by the log-ODE method with the areas of the finest grid, order 1."""

    def diffusion(t: Tensor, z: Tensor) -> Tensor:
        x, y = z.unbind(-1)
        first = torch.stack([torch.ones_like(x), 0.2 * y.sin()], -1)
        return torch.stack([first, torch.stack([torch.zeros_like(x), (2 * x).sin()], -1)], -1)

    def drift(t: Tensor, z: Tensor) -> Tensor:
        return -0.5 * z

    def ito_drift(t: Tensor, z: Tensor) -> Tensor:
        y = z[..., 1]
        return drift(t, z) + torch.stack([torch.zeros_like(y), 0.02 * y.sin() * y.cos()], -1)

    sde = {
        "ito": SDE(ito_drift, diffusion, noise_type="general"),
        "stratonovich": SDE(drift, diffusion, noise_type="general", sde_type="stratonovich"),
    }
    return Problem(sde, 2, lambda increments: run(LogODE(), sde["stratonovich"], increments, FIRST))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "additive": additive_problem,
    "diagonal": lambda: arctan_problem("diagonal"),
    "scalar": lambda: arctan_problem("scalar"),
    "general": general_problem,
    "commutative": lambda: arctan_problem("general"),
}


def strong_slope(
    solver: Solver, problem: Problem, form: str, steps: list[int], increments: BrownianIncrements, last: Tensor
) -> tuple[float, float]:
    """Slope of the logarithm of the mean error at time 1 in that of the step, and its standard error."""
    finest = len(increments.W)
    errors = []
    for n in steps:
        end = run(solver, problem.sde[form], coarsen(increments, finest // n, dim=0), FIRST.expand(last.shape).clone())
        errors.append((end - last).norm(dim=-1))
    x = -torch.tensor(steps, dtype=F64).log()
    x = x - x.mean()

    def slope(parts: list[Tensor]) -> float:
        y = torch.stack([part.mean().log() for part in parts])
        return float((x * y).sum() / x.square().sum())

    batches = 20
    slopes = torch.tensor([slope([e.chunk(batches)[b] for e in errors]) for b in range(batches)])
    return slope(errors), float(slopes.std() / math.sqrt(batches))


# --- weak orders, without Monte Carlo ----------------------------------------------------------------


class Circle(NamedTuple):
    """An SDE on the circle of length 2 pi: periodic coefficients in one dimension."""

    drift: Callable[[Tensor], Tensor]  # Stratonovich
    columns: Callable[[Tensor], list[Tensor]]
    slopes: Callable[[Tensor], list[Tensor]]  # derivatives of the columns

    def sde(self, noise_type: str) -> SDE:
        def diffusion(t: Tensor, z: Tensor) -> Tensor:
            value = torch.stack(self.columns(z), -1)
            return value.squeeze(-1) if noise_type == "diagonal" else value

        return SDE(lambda t, z: self.drift(z), diffusion, noise_type=noise_type, sde_type="stratonovich")


def circle(noise_type: str) -> Circle:
    def drift(z: Tensor) -> Tensor:
        return 0.4 + 0.8 * z.sin()

    if noise_type == "additive":
        return Circle(drift, lambda z: [0.8 * torch.ones_like(z)], lambda z: [torch.zeros_like(z)])
    if noise_type == "general":  # two fields on a line commute only if they are proportional
        return Circle(
            drift,
            lambda z: [0.4 + 0.2 * z.cos(), 0.5 * z.sin()],
            lambda z: [-0.2 * z.sin(), 0.5 * z.cos()],
        )
    return Circle(drift, lambda z: [0.6 + 0.3 * z.cos()], lambda z: [-0.3 * z.sin()])


def weak_errors(solver: Solver, noise_type: str, steps: list[int], size: int = 31) -> list[float]:
    """Errors of E[cos x_1 + sin 2 x_1] by powers of the transition operator, on `size` Fourier modes.

    The expectation over a step is a Gauss-Hermite quadrature over its normals, and the operator acts on trigonometric
    polynomials, on which it is exact to round-off: no sampling error. The state of a solver that carries a second one,
    as the reversible Heun method, is the pair of both, on a torus.
    """
    problem = circle(noise_type)
    points = 2 * math.pi * torch.arange(size, dtype=F64) / size
    modes = torch.arange(-(size // 2), size // 2 + 1, dtype=F64)
    basis = torch.exp(1j * points.unsqueeze(-1) * modes)
    to_modes = torch.linalg.inv(basis)
    values = (points.cos() + (2 * points).sin()).to(basis)
    exact = torch.linalg.matrix_exp(_generator(problem, points, basis @ torch.diag(1j * modes) @ to_modes)) @ values

    sde = solver.adapt(problem.sde(noise_type))
    field, rows, zero = Field(sde, (None,)), (None,), torch.zeros(1, dtype=F64)
    carries = bool(solver.start(field, zero, torch.zeros(1, 1, dtype=F64), rows))
    node, weight = _normals(normal_width(len(problem.columns(points)), solver.levy))
    first = points.reshape(-1, 1, 1, 1).repeat(1, size if carries else 1, len(node), 1)
    second = first.transpose(0, 1) if carries else first
    errors = []
    for n in steps:
        dt = torch.full((1, 1, 1), 1 / n, dtype=F64)
        step = Step(zero, brownian_increments(dt, node, solver.levy), rows)
        state = solver.start(field, zero, second.contiguous(), rows)
        end, state = solver.step(field, first, step, state)
        power = torch.exp(1j * end * modes)  # (size, size or 1, nodes, modes)
        other = torch.exp(1j * state[-1] * modes) if carries else torch.ones_like(power[..., :1])
        operator = torch.einsum("abnp,abnq,n->abpq", power, other, weight.to(power))
        u = values.unsqueeze(-1).expand(size, operator.shape[1])
        for _ in range(n):
            coefficients = to_modes @ u
            coefficients = coefficients @ to_modes.T if carries else coefficients
            u = torch.einsum("abpq,pq->ab", operator, coefficients)
        errors.append(abs(complex((u.diagonal() if carries else u[:, 0])[3] - exact[3])))
    return errors


def _generator(problem: Circle, x: Tensor, derivative: Tensor) -> Tensor:
    columns, slopes = problem.columns(x), problem.slopes(x)
    drift = problem.drift(x) + 0.5 * sum(s * c for s, c in zip(slopes, columns, strict=True))
    variance = sum(c.square() for c in columns)
    return drift.unsqueeze(-1) * derivative + 0.5 * variance.unsqueeze(-1) * (derivative @ derivative)


def _normals(width: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a quadrature over independent standard normals."""
    node, weight = np.polynomial.hermite_e.hermegauss({1: 20, 2: 10, 5: 5}[width])
    weight = weight / weight.sum()
    nodes = torch.tensor(list(itertools.product(node, repeat=width)), dtype=F64)
    return nodes, torch.tensor(list(itertools.product(weight, repeat=width)), dtype=F64).prod(-1)


def weak_slope(steps: list[int], errors: list[float]) -> float:
    """Slope of the logarithm of the error in that of the step."""
    x = -np.log(np.array(steps, dtype=float))
    return float(np.polyfit(x, np.log(errors), 1)[0])
