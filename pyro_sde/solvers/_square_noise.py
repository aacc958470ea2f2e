r"""Standard normals for a transition whose noise spans more directions than the diffusion.

Over a step, noise of M < D Brownian motions spreads through the drift to other states (Langevin, Matern), so that the
transition covariance may have rank D. A solver with such a transition needs D normals a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..sde.base import SDE, Coefficients, Evaluator, Rows
from ..sde.noise import Noise, noise_structure

__all__ = ["SquareNoise", "normal_coordinates", "squared"]

_LOST = 1e-12  # a pivot of the covariance below this part of its diagonal entry is rounding


class SquareNoise(SDE):
    """The same process with columns of zeros added to the diffusion, so that it has at least D; the control is drift.

    Args:
        base: an SDE with matrix noise.
    """

    def __init__(self, base: SDE) -> None:
        nn.Module.__init__(self)  # drift and diffusion stay with the base: one name per parameter
        self.noise_type = "additive" if base.noise_type == "additive" else "general"
        self.noise = noise_structure(self.noise_type)
        self.sde_type = base.sde_type
        self.base = base
        self.register_buffer("inputs", None, persistent=False)

    @property
    def drift(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """Drift of the base, without its control."""
        return self.base.drift

    @property
    def diffusion(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """Diffusion of the base with its new columns."""
        return lambda t, z: _padded(torch.as_tensor(self.base.diffusion(t, z), dtype=z.dtype, device=z.device))

    def bind_rows(self, inputs: Tensor | None) -> Rows:
        """Those of the base."""
        return self.base.bind_rows(inputs)

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Total drift of the base, and its diffusion with the new columns."""
        evaluate, rows = self.base.evaluator(rows)
        noise = self.base.noise

        def square(t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            coefficients = evaluate(t, z, rows)
            return Coefficients(coefficients.total_drift(noise), _padded(coefficients.diffusion), None)

        return square, rows

    def _converted(self, sde_type: str, sign: float) -> SDE:
        return SquareNoise(self.base._converted(sde_type, sign))


def squared(sde: SDE) -> SDE:
    """The SDE with at least D Brownian motions; itself if its noise is diagonal."""
    return SquareNoise(sde) if sde.noise.matrix_dims else sde


def normal_coordinates(noise: Noise, diffusion: Tensor, w: Tensor, dt: Tensor) -> Tensor:
    r"""D standard normals :math:`\epsilon` for a factor of a covariance close to :math:`\sigma \sigma^\top h`.

    With the lower triangular :math:`L L^\top = \sigma \sigma^\top` they are :math:`L^{-1} \sigma \Delta W / \sqrt h`:
    then :math:`L \epsilon \sqrt h = \sigma \Delta W`, and small steps follow the Brownian path. Where the diffusion has
    not full rank, they are the first D entries of :math:`\Delta W / \sqrt h`: right in law, on another path.

    Shape:
        diffusion: ``(..., D)`` or ``(..., D, M)`` with M >= D · w: ``(..., M)`` · dt: ``(..., 1)`` · returns
        ``(..., D)``.
    """
    standard = w / dt.sqrt()
    if noise.matrix_dims and w.shape[-1] < diffusion.shape[-2]:
        msg = (
            f"a step needs {diffusion.shape[-2]} standard normals, one for each state, received {w.shape[-1]}. Draw as "
            "many as the diffusion of `solver.adapt(sde)` has columns."
        )
        raise ValueError(msg)
    if not noise.matrix_dims:
        return torch.where(diffusion < 0, -standard, standard)
    diffusion = diffusion.double()
    gram = diffusion @ diffusion.mT
    with torch.no_grad():
        factor, info = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        full = (info == 0) & (pivots > _LOST * gram.diagonal(dim1=-2, dim2=-1)).all(-1)
    width = gram.shape[-1]
    identity = torch.eye(width, dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(torch.where(full[..., None, None], gram, identity))[0]
    moved = diffusion @ standard.double().unsqueeze(-1)
    batch = torch.broadcast_shapes(factor.shape[:-2], moved.shape[:-2])
    solved = torch.linalg.solve_triangular(factor.expand(*batch, width, width), moved, upper=False).squeeze(-1)
    return torch.where(full.unsqueeze(-1), solved.to(w.dtype), standard[..., :width])


def _padded(diffusion: Tensor) -> Tensor:
    missing = diffusion.shape[-2] - diffusion.shape[-1]
    return torch.nn.functional.pad(diffusion, (0, missing)) if missing > 0 else diffusion
