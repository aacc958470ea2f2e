"""Every solver that torchsde has too gives torchsde's path on the same increments."""

from __future__ import annotations

import pytest
import torch
import torchsde
from torch.testing import assert_close

from pyro_sde import SDE, TimeGrid
from pyro_sde.ops.brownian import brownian_increments, normal_width
from pyro_sde.solvers.fixed import EulerMaruyama, integrate
from pyro_sde.solvers.heun import EulerHeun, Heun, Midpoint
from pyro_sde.solvers.log_ode import LogODE
from pyro_sde.solvers.milstein import Milstein
from pyro_sde.solvers.reversible_heun import ReversibleHeun
from pyro_sde.solvers.stochastic_runge_kutta import SRK

F64 = torch.float64
ALL = ("additive", "diagonal", "general", "scalar")
SIMPLE = ("additive", "diagonal", "scalar")
BATCH, STEPS = 5, 8

# our solver, torchsde's method and interpretation, noise types that both take
PAIRS = {
    "euler": (EulerMaruyama(), "euler", "ito", ALL),
    "milstein-ito": (Milstein(), "milstein", "ito", SIMPLE),
    "milstein-stratonovich": (Milstein("stratonovich"), "milstein", "stratonovich", SIMPLE),
    "srk": (SRK(), "srk", "ito", SIMPLE),
    "heun": (Heun(), "heun", "stratonovich", ALL),
    "midpoint": (Midpoint(), "midpoint", "stratonovich", ALL),
    "euler-heun": (EulerHeun(), "euler_heun", "stratonovich", ALL),
    "log-ode": (LogODE(), "log_ode", "stratonovich", ("additive", "general", "scalar")),
    "reversible-heun": (ReversibleHeun(), "reversible_heun", "stratonovich", ALL),
}
CASES = [(name, noise) for name, (*_, noises) in PAIRS.items() for noise in noises]

# a 3 x 2 matrix of general noise that does not commute
DIFFUSIONS = {
    "additive": lambda t, y: (
        (1 + t) * torch.tensor([[0.4, 0.1], [0.0, 0.3], [0.2, -0.2]], dtype=F64).expand(BATCH, 3, 2)
    ),
    "diagonal": lambda t, y: 0.3 + 0.2 * (t + y).sin(),
    "general": lambda t, y: torch.stack([0.3 * y.flip(-1).sin() + 0.1 * t, 0.4 * y.cos()], -1),
    # each entry of its own state: torchsde's Milstein multiplies by the transposed Jacobian (`test_milstein.py`)
    "scalar": lambda t, y: (0.3 + 0.2 * (t + y).cos()).unsqueeze(-1),
}


class Interval:
    """The Brownian motion that torchsde asks for, from given increments."""

    def __init__(self, times, increments, levy):
        self.at = {float(t): k for k, t in enumerate(times[:-1])}
        self.increments = increments
        self.shape = increments.W.shape[1:]
        self.dtype, self.device = F64, increments.W.device
        self.levy_area_approximation = levy

    def __call__(self, start, end, return_U=False, return_A=False):  # noqa: N803
        k = self.at[float(start)]
        dt, w, h, a = (None if part is None else part[k] for part in self.increments)
        parts = [w]
        if return_U:
            parts.append(dt * (0.5 * w + h))
        if return_A:
            parts.append(a)
        return parts[0] if len(parts) == 1 else tuple(parts)


@pytest.mark.parametrize(("name", "noise"), CASES)
def test_the_path_is_that_of_torchsde_on_the_same_increments(name, noise):
    solver, method, interpretation, _ = PAIRS[name]
    diffusion = DIFFUSIONS[noise]
    original = torchsde.BaseSDE(noise_type=noise, sde_type=interpretation)
    original.f = lambda t, y: (y.flip(-1) + t).sin() - y
    original.g = diffusion
    times = torch.linspace(0, 2, STEPS + 1, dtype=F64)  # dyadic steps: torchsde adds them up
    grid = TimeGrid(times)
    generator = torch.Generator().manual_seed(0)
    dim = {"diagonal": 3, "scalar": 1}.get(noise, 2)
    initial = torch.randn(BATCH, 3, dtype=F64, generator=generator)
    normal = torch.randn(STEPS, BATCH, normal_width(dim, solver.levy), dtype=F64, generator=generator)
    increments = brownian_increments(grid.steps.reshape(-1, 1, 1), normal, solver.levy)
    levy = {"none": "none", "space-time": "space-time", "area": "foster"}[solver.levy]
    interval = Interval(times, increments, levy)
    expected = torchsde.sdeint(original, initial, times, bm=interval, method=method, dt=0.25)
    sde = SDE.from_torchsde(original)
    path = integrate(solver, sde, grid, initial, normal, (None,))
    assert_close(path.movedim(-2, 0), expected, rtol=1e-12, atol=1e-12)
