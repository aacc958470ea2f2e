"""An SDE in the form of torchsde, with the log-ratio as further states."""

from __future__ import annotations

import torch
from torch import Tensor

from ._carried import CarriedProblem, ControlTerms
from .captured import StandIns

__all__ = ["AugmentedGap", "AugmentedSDE"]

# The log-ratio is stored times this number (exact in binary), far below any tolerance: torchsde's error norm is over
# the whole state, and a log-ratio is no reason for smaller steps.
SCALE = 2.0**-30


class AugmentedSDE:
    r"""Drift and diffusion for torchsde, with states :math:`y = (z, \text{kl}, \text{martingale})`.

    .. math::
        d\,\text{kl} = \tfrac12 |u|^2\,dt, \qquad
        d\,\text{martingale} = u \cdot dW = u \circ dW - \tfrac12 \sum_m (\partial_z u_m) \cdot \sigma_m\,dt

    with :math:`\sigma_m` column m of the diffusion. Without a control there are no further states.

    Args:
        problem: the path; its grid is shared by all series.
        sde_type: "ito" or "stratonovich", the form that the method integrates.
        follow: the further states, of "kl" and "martingale". With a martingale the noise of all states together is
            "general", or "scalar" for M = 1.

    Attributes:
        noise_type: of all states together.
        stand_ins: for captured tensors; set by the caller before gradients are wanted.
        rows: inputs that are there; replaced by leaves where gradients are wanted.
    """

    def __init__(self, problem: CarriedProblem, sde_type: str, follow: tuple[str, ...]) -> None:
        sde = problem.sde.ito() if sde_type == "ito" else problem.sde.stratonovich()
        self.sde_type = sde_type
        self.batch, self.dim = problem.initial.shape[:-1], problem.initial.shape[-1]
        self.brownian_dim = problem.brownian_dim
        self.times = problem.grid.times.detach()
        self.rows = [row for row in problem.rows if row is not None]
        self.terms = ControlTerms(sde, problem)
        self.control_terms = ControlTerms(problem.sde, problem)  # without the conversion of the drift
        self.diagonal = not sde.noise.matrix_dims
        self.stand_ins = StandIns(())
        with torch.no_grad():
            controlled = len(self.terms(self.times[:1], problem.initial, *self.first_rows())) == 3
        self.has_kl = controlled and "kl" in follow
        self.has_martingale = controlled and "martingale" in follow
        self.noise_type = problem.sde.noise_type
        if self.has_martingale:
            self.noise_type = "scalar" if problem.brownian_dim == 1 else "general"

    def first_rows(self) -> list[Tensor]:
        """Rows of the inputs at the first time."""
        return [row[..., 0, :] for row in self.rows]

    @property
    def width(self) -> int:
        """Number of states, the further ones included."""
        return self.dim + self.has_kl + self.has_martingale

    @property
    def noise_size(self) -> int:
        """Number of Brownian motions that torchsde wants: one for each state if the noise is diagonal."""
        return self.width if self.noise_type == "diagonal" else self.brownian_dim

    def start(self, initial: Tensor) -> Tensor:
        """First state of torchsde ``(B, width)``."""
        flat = initial.reshape(-1, self.dim)
        return torch.cat([flat, flat.new_zeros(len(flat), self.width - self.dim)], -1)

    def parts(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, kl and martingale in the batch shape of the problem."""
        z = y[..., : self.dim].reshape(*y.shape[:-2], *self.batch, self.dim)
        kl = y[..., self.dim] / SCALE if self.has_kl else torch.zeros_like(y[..., 0])
        shape = (*y.shape[:-2], *self.batch)
        if self.has_martingale:
            return z, kl.reshape(shape), (y[..., -1] / SCALE).reshape(shape)
        return z, kl.reshape(shape), None if self.has_kl else torch.zeros_like(kl).reshape(shape)

    def compute(self, t: Tensor, y: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Drift ``(B, width)`` and diffusion ``(B, width)`` or ``(B, width, M)``, with the row of each input."""
        moment = torch.as_tensor(t, dtype=self.times.dtype).reshape(1)
        z = y[:, : self.dim].reshape(*self.batch, self.dim)
        given = rows
        drift, diffusion, *control = self.terms(moment.to(y.dtype), z, *given)
        matrix = not self.diagonal or self.has_martingale
        if self.diagonal and matrix:
            diffusion = torch.diag_embed(diffusion)
        drifts, diffusions = [drift], [diffusion]
        if self.has_kl:
            u = control[0]
            nothing = torch.zeros_like(diffusion[..., :1, :] if matrix else diffusion[..., :1])
            drifts.append(0.5 * SCALE * u.square().sum(-1, keepdim=True))
            diffusions.append(nothing)
            if self.has_martingale:
                drifts.append(SCALE * self._correction(moment.to(y.dtype), z, diffusion, given))
                diffusions.append(SCALE * u.unsqueeze(-2))
        return (
            torch.cat(drifts, -1).reshape(len(y), self.width),
            torch.cat(diffusions, -2 if matrix else -1).reshape(len(y), self.width, *diffusion.shape[z.dim() :]),
        )

    def _correction(self, t: Tensor, z: Tensor, matrix: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """Drift of the martingale in Stratonovich form, ``(..., 1)``."""
        if self.sde_type == "ito":
            return torch.zeros_like(z[..., :1])

        def control(state: Tensor) -> Tensor:
            return self.control_terms(t, state, *rows)[2]

        changes = [
            torch.func.jvp(control, (z,), (matrix[..., m],))[1][..., m : m + 1] for m in range(self.brownian_dim)
        ]
        return -0.5 * torch.stack(changes).sum(0)


class AugmentedGap:
    """Functions f and g for torchsde between two marks of the grid, with the inputs that hold there.

    Args:
        system: all of it.
        first: number of the first step of the grid in this gap.
        last: number of the last one.
    """

    def __init__(self, system: AugmentedSDE, first: int, last: int) -> None:
        self.system = system
        self.noise_type, self.sde_type = system.noise_type, system.sde_type
        self.starts = system.times[first + 1 : last + 1]  # of all steps but the first
        self.first = first

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return self.f_and_g(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self.f_and_g(t, y)[1]

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Drift and diffusion, looking up the row of time t."""
        system = self.system
        step = 0
        if system.rows:
            moment = torch.as_tensor(t, dtype=self.starts.dtype).detach().reshape(1)
            step = self.first + int(torch.searchsorted(self.starts, moment, right=True))

        def compute(t: Tensor, y: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
            return system.compute(t, y, *(row[..., step, :] for row in rows))

        drift, diffusion = system.stand_ins.call(compute, (t, y, *system.rows))
        return drift, diffusion
