"""Two series with gaps, fine dynamics of several kinds, and a model and a guide on them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE


def grid_of(dtype=torch.float64) -> TimeGrid:
    return TimeGrid(torch.tensor([[0.4, 3.0], [1.0, 3.4]], dtype=dtype), start=0.0, end=4.0, max_step=0.2)


class Well(nn.Module):
    """Double well that the coarse variable tilts."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, b, a):
        return self.strength * (b - b**3) + a[..., :1]


def pull(t, b, a):
    return 2 * (a[..., :1] - b)


def noise(t, b, a):
    return 0.7 * torch.ones_like(b)


def turning_noise(t, b, a):
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.3]], dtype=b.dtype)
    return rows * (1 + 0.1 * a[..., :1, None])


def control(t, b, a):
    return 0.5 * torch.sin(b) + 0.3 * a[..., :1] + t


def three_controls(t, b, a):
    return torch.cat([b, a[..., :1] + 0 * b[..., :1]], -1)


def matrix_pull(t, b, a):
    return torch.stack([a[..., 0] - b[..., 0], b[..., 0] - 3 * b[..., 1]], -1)


def moving_pull(t, b, a):
    """The time that it sees is that of the coarse step, in windows and gaps."""
    return 2 * (a[..., :1] - b) + 3 * torch.sin(8 * t)


LINEAR = FineSDE(pull, noise)
MOVING = FineSDE(moving_pull, noise)
MATRIX = FineSDE(matrix_pull, turning_noise, noise_type="general")
SLOW = OrnsteinUhlenbeck(0.5, 0.5)


def entry_law(a):
    return dist.Normal(0.8 * a[..., -1:], 0.6).to_event(1)


def normal(width=1, dtype=torch.float64, loc=0.0, scale=1.0):
    return dist.Normal(torch.full((width,), loc, dtype=dtype), scale).to_event(1)


def coarse_of(grid, *sample):
    return SDEPath(SLOW, normal(dtype=grid.times.dtype), grid).sample(sample)


def short_windows(grid=None, fine_steps=2) -> Windows:
    return Windows.around(grid_of() if grid is None else grid, before=0.2, after=0.0, fine_steps=fine_steps)


Y = torch.tensor([[0.5, -0.2], [0.1, 0.9]], dtype=torch.float64).unsqueeze(-1)


class Problem:
    """Model and guide on two series."""

    def __init__(self, reentry=None, fine=LINEAR):
        self.grid = grid_of()
        self.windows = short_windows(self.grid)
        self.reentry, self.fine = reentry, fine
        self.net = nn.Linear(2, 1).double()

    def u(self, t, b, a):
        return self.net(torch.cat([b, a.expand_as(b)], -1))

    def sample(self, fine):
        a = pyro.sample("a", SDEPath(SLOW, normal(), self.grid))
        law = MultiScalePath(fine, normal(), a, self.windows, reentry=self.reentry)
        return pyro.sample("b", law)

    def model(self):
        with pyro.plate("series", 2):
            b = self.sample(self.fine)
            pyro.sample("y", dist.Normal(self.windows.observed(b), 0.5).to_event(2), obs=Y)

    def guide(self):
        pyro.module("net", self.net)
        with pyro.plate("series", 2):
            self.sample(self.fine.controlled(self.u))
