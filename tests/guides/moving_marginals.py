"""Marginals that move, diffusions of every kind, and the equation that ties them to a drift."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_sde.nn.diffusion import DiagonalDiffusion
from pyro_sde.nn.marginals import Marginals

D64 = torch.float64


class Moving(Marginals):
    """Two dimensions with smooth moments, correlated or not."""

    def __init__(self, full):
        super().__init__(2)
        self.full = full

    def moments(self, t):
        mean = torch.cat([t.sin(), 0.3 * t.square()], -1)
        scale = torch.cat([0.5 + 0.2 * t.cos(), 0.4 + 0.1 * t], -1)
        if not self.full:
            return mean, scale
        lower = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=t.dtype)
        return mean, torch.diag_embed(scale) + 0.3 * t.unsqueeze(-1) * lower


def standard(shape=(2,)):
    return dist.Normal(torch.zeros(shape, dtype=D64), 1.0).to_event(1)


def general(t, z):
    x, y = z[..., 0], z[..., 1]
    first = torch.stack([1 + 0.3 * x.sin(), 0.2 * y], -1)
    return torch.stack([first, torch.stack([0.1 * x * y, 0.8 + 0.2 * x.cos()], -1)], -2)


ELEMENTWISE = DiagonalDiffusion(2, 4, constant=False).double()
torch.nn.init.constant_(ELEMENTWISE.weight, 0.7)
DIFFUSIONS = {
    "constant": (lambda t, z: torch.tensor([0.7, 0.4], dtype=D64), "diagonal"),
    "diagonal, of all states": (lambda t, z: 0.6 + 0.2 * torch.sin(z + z.flip(-1)), "diagonal"),
    "elementwise networks": (ELEMENTWISE, "diagonal"),
    "additive": (lambda t, z: torch.tensor([[0.5, 0.2], [0.0, 0.4]], dtype=D64) * t.cos().unsqueeze(-1), "additive"),
    "general": (general, "general"),
}


def fokker_planck_residual(density, drift, diffusion, noise_type):
    r"""Left minus right side of :math:`\partial_t q = -\nabla (f q) + \frac12 \nabla^2 (g g^T q)`, over q.

    `density` maps t ``(6, 1)`` and z ``(6, 2)``, six points, to q ``(6,)``; derivatives are those of autograd.
    """

    def derivative(value, at):
        found = torch.autograd.grad(value.sum(), at, create_graph=True, allow_unused=True)[0]
        return torch.zeros_like(at) if found is None else found

    torch.manual_seed(1)
    t = torch.full((6, 1), 0.6, dtype=D64).requires_grad_()
    z = torch.randn(6, 2, dtype=D64).requires_grad_()
    q = density(t, z)
    sigma = diffusion(t, z).expand(6, *([2, 2] if noise_type in ("general", "additive") else [2]))
    gram = sigma @ sigma.mT if sigma.dim() == 3 else torch.diag_embed(sigma.square())
    flux = drift(t, z) * q.unsqueeze(-1)
    change = derivative(q, t).squeeze(-1)
    for i in range(2):
        change = change + derivative(flux[:, i], z)[:, i]
        for j in range(2):
            change = change - 0.5 * derivative(derivative(gram[:, i, j] * q, z)[:, i], z)[:, j]
    return change / q
