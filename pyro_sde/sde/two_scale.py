r"""SDEs with a slow, coarse part and a fast, fine part that is driven by it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import SDE, Coefficients, Evaluator, Rows
from .noise import DiagonalNoise

__all__ = ["FineSDE", "TwoScaleSDE", "matrix_form"]

_FINE_FORM = "FineSDE(drift, diffusion) with drift(t, b, a) and diffusion(t, b, a)"


class FineSDE(SDE):
    r"""Fast variables given slow ones, :math:`db = f(t, b, a)\,dt + \sigma(t, b, a)\,dW`.

    The coarse state `a` is an argument of both coefficients. ``fine.controlled(control)`` is the form of a guide, with
    ``control(t, b, a)`` or ``control(t, b, a, inputs)``. Itô.

    Args:
        drift: ``drift(t, b, a)``.
        diffusion: ``diffusion(t, b, a)``.
        noise_type: as for `SDE`.

    Shape:
        t: ``(..., 1)`` · b: ``(..., D_b)`` · a: ``(..., D_a)`` · results as for `SDE`.

    Raises:
        ValueError: if `noise_type` is unknown; at use, if there is no coarse state.
        TypeError: if `drift` or `diffusion` cannot be called.
    """

    def __init__(
        self, drift: Callable[..., Tensor], diffusion: Callable[..., Tensor], *, noise_type: str = "diagonal"
    ) -> None:
        super().__init__(drift, diffusion, noise_type=noise_type)

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Coefficients at a fine state, with the coarse state in the first row tensor."""
        if rows[0] is None:
            msg = (
                "a FineSDE needs the coarse state: use it in a TwoScaleSDE or a MultiScalePath, or bind a coarse path "
                "with fine.with_inputs(path[..., :-1, :])."
            )
            raise ValueError(msg)

        def evaluate(t: Tensor, z: Tensor, rows: Rows) -> Coefficients:
            return self.given(t, z, rows[0])  # type: ignore[arg-type]

        return evaluate, rows

    def given(self, t: Tensor, b: Tensor, a: Tensor) -> Coefficients:
        """Drift and diffusion of the fine state given the coarse one."""
        drift, diffusion = self.drift(t, b, a), self.diffusion(t, b, a)
        like = {"dtype": b.dtype, "device": b.device}
        return Coefficients(torch.as_tensor(drift, **like), torch.as_tensor(diffusion, **like), None)


class TwoScaleSDE(SDE):
    r"""SDE with coarse variables `a` that the fine variables `b` do not act on; the state is ``[a, b]``.

    .. math:: da = f_a(a)\,dt + \sigma_a(a)\,dW, \qquad db = f_b(a, b)\,dt + \sigma_b(a, b)\,dW'

    As an ordinary `SDE` it serves everything that takes one, such as `SDEPath` for a full simulation. Its two parts
    serve a `SDEPath` of the coarse variables and a `MultiScalePath` of the fine ones given these. A third level is a
    two-scale SDE as `coarse`, whose state is all that is slower; `levels` are then the three parts.

    Args:
        coarse: SDE of the coarse variables alone.
        fine: `FineSDE` of the fine ones given the coarse.
        coarse_dim: number D_a of coarse variables.

    Attributes:
        coarse, fine, coarse_dim: as given.

    Raises:
        ValueError: if the levels are in the wrong order, `coarse_dim` is no positive integer or not more than that of a
            nested `coarse`, or `coarse` is no Itô SDE.
        TypeError: if a level is no SDE.

    Definition:
        The equations say what the class is; that `a` ignores `b` is what lets a fine path be skipped where there are no
        data, see `MultiScalePath`.

    Example:
        >>> import torch
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> fine = FineSDE(lambda t, b, a: 8 * (a - b), lambda t, b, a: 0.6 * torch.ones_like(b))
        >>> sde = TwoScaleSDE(OrnsteinUhlenbeck(0.5, 0.5), fine, coarse_dim=1)
        >>> sde.coefficients(torch.zeros(1), torch.tensor([1.0, 0.0]), (None,)).drift
        tensor([-0.5000,  8.0000])
    """

    def __init__(self, coarse: SDE, fine: FineSDE, coarse_dim: int) -> None:
        _check_levels(coarse, fine)
        if not isinstance(coarse_dim, int) or isinstance(coarse_dim, bool) or coarse_dim < 1:
            msg = f"`coarse_dim` must be a positive integer, the number of coarse variables; received {coarse_dim!r}."
            raise ValueError(msg)
        if isinstance(coarse, TwoScaleSDE) and coarse_dim <= coarse.coarse_dim:
            msg = (
                f"`coarse_dim` counts the variables of all slower levels: it must be more than {coarse.coarse_dim}, "
                f"that of `coarse`; received {coarse_dim}."
            )
            raise ValueError(msg)
        diagonal = all(isinstance(part.noise, DiagonalNoise) for part in (coarse, fine))
        joint = _Joint(coarse, fine, coarse_dim)
        super().__init__(joint, joint.diffusion, noise_type="diagonal" if diagonal else "general")

    @property
    def coarse(self) -> SDE:
        """SDE of the coarse variables."""
        return self.drift.coarse  # type: ignore[attr-defined]

    @property
    def fine(self) -> FineSDE:
        """SDE of the fine variables given the coarse ones."""
        return self.drift.fine  # type: ignore[attr-defined]

    @property
    def coarse_dim(self) -> int:
        """Number of coarse variables."""
        return self.drift.coarse_dim  # type: ignore[attr-defined]

    @property
    def levels(self) -> tuple[SDE, ...]:
        """All levels, the slowest first: an SDE, and a `FineSDE` for each finer one."""
        slower = self.coarse.levels if isinstance(self.coarse, TwoScaleSDE) else (self.coarse,)
        return (*slower, self.fine)

    def split(self, path: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine part of states ``(..., D)``."""
        return path[..., : self.coarse_dim], path[..., self.coarse_dim :]

    @classmethod
    def of(cls, sde: SDE, coarse_dim: int, state_dim: int) -> TwoScaleSDE:
        """Two-scale SDE from one on the whole state ``[a, b]``, after a check that `b` does not act on `a`.

        The check differentiates the coefficients at fixed states (autograd): it finds every dependence that is not
        zero at all of them. The coarse part is then evaluated at b = 0.

        Args:
            sde: Itô SDE on ``[a, b]``, without inputs or control.
            coarse_dim: D_a, the first variables.
            state_dim: D, ``> coarse_dim``.

        Raises:
            ValueError: if fine variables feed back into coarse ones, the levels are in the wrong order, or both are
                driven by a common Brownian motion.
        """
        if not 0 < coarse_dim < state_dim:
            msg = f"`coarse_dim` must be from 1 to `state_dim` - 1 = {state_dim - 1}, received {coarse_dim}."
            raise ValueError(msg)
        _check_one_way(sde, coarse_dim, state_dim)
        parts = _Parts(sde, coarse_dim, state_dim)
        kind = "diagonal" if isinstance(sde.noise, DiagonalNoise) else "general"
        coarse = SDE(parts, parts.coarse_diffusion, noise_type=kind)
        return cls(coarse, FineSDE(parts.fine_drift, parts.fine_diffusion, noise_type=kind), coarse_dim)


class _Joint(nn.Module):
    """Drift (called) and diffusion (a method) of the joint state; holds both parts, once."""

    def __init__(self, coarse: SDE, fine: FineSDE, coarse_dim: int) -> None:
        super().__init__()
        self.coarse, self.fine, self.coarse_dim = coarse, fine, coarse_dim

    def _parts(self, t: Tensor, z: Tensor) -> tuple[Tensor, Coefficients, Tensor, Coefficients]:
        a, b = z[..., : self.coarse_dim], z[..., self.coarse_dim :]
        coarse = self.coarse.coefficients(t, a, self.coarse.bind_rows(None))
        return a, coarse, b, self.fine.given(t, b, a)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        a, coarse, b, fine = self._parts(t, z)
        return _beside(coarse.total_drift(self.coarse.noise), a, fine.drift, b)

    def diffusion(self, t: Tensor, z: Tensor) -> Tensor:
        a, coarse, b, fine = self._parts(t, z)
        if isinstance(self.coarse.noise, DiagonalNoise) and isinstance(self.fine.noise, DiagonalNoise):
            return _beside(coarse.diffusion, a, fine.diffusion, b)
        blocks = [matrix_form(self.coarse, coarse.diffusion, a), matrix_form(self.fine, fine.diffusion, b)]
        batch = torch.broadcast_shapes(*(block.shape[:-2] for block in blocks))
        upper, lower = (block.expand(*batch, *block.shape[-2:]) for block in blocks)
        right = upper.new_zeros(*batch, upper.shape[-2], lower.shape[-1])
        left = lower.new_zeros(*batch, lower.shape[-2], upper.shape[-1])
        return torch.cat([torch.cat([upper, right], -1), torch.cat([left, lower], -1)], -2)


class _Parts(nn.Module):
    """Blocks of the coefficients of a joint SDE."""

    def __init__(self, sde: SDE, coarse_dim: int, state_dim: int) -> None:
        super().__init__()
        self.sde, self.coarse_dim, self.state_dim = sde, coarse_dim, state_dim

    def _at_rest(self, a: Tensor) -> Tensor:
        return torch.cat([a, a.new_zeros(*a.shape[:-1], self.state_dim - self.coarse_dim)], -1)

    def _whole(self, t: Tensor, z: Tensor) -> Coefficients:
        coefficients = self.sde.coefficients(t, z, (None,))
        drift = coefficients.drift.expand(torch.broadcast_shapes(coefficients.drift.shape, z.shape))
        return Coefficients(drift, self.sde.noise.widen(coefficients.diffusion, self.state_dim), None)

    def forward(self, t: Tensor, a: Tensor) -> Tensor:
        return self._whole(t, self._at_rest(a)).drift[..., : self.coarse_dim]

    def coarse_diffusion(self, t: Tensor, a: Tensor) -> Tensor:
        return self._rows(self._whole(t, self._at_rest(a)).diffusion, slice(None, self.coarse_dim))

    def fine_drift(self, t: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return self._whole(t, _beside(a, a, b, b)).drift[..., self.coarse_dim :]

    def fine_diffusion(self, t: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return self._rows(self._whole(t, _beside(a, a, b, b)).diffusion, slice(self.coarse_dim, None))

    def _rows(self, diffusion: Tensor, rows: slice) -> Tensor:
        return diffusion[..., rows] if isinstance(self.sde.noise, DiagonalNoise) else diffusion[..., rows, :]


def matrix_form(sde: SDE, diffusion: Tensor, state: Tensor) -> Tensor:
    """Diffusion as a matrix ``(..., D, M)``, whatever the noise type."""
    widened = sde.noise.widen(diffusion, state.shape[-1])
    return torch.diag_embed(widened) if isinstance(sde.noise, DiagonalNoise) else widened


def _beside(left: Tensor, a: Tensor, right: Tensor, b: Tensor) -> Tensor:
    """Two vectors over the states `a` and `b`, one after the other."""
    batch = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1], a.shape[:-1], b.shape[:-1])
    return torch.cat([left.expand(*batch, a.shape[-1]), right.expand(*batch, b.shape[-1])], -1)


def _check_levels(coarse: object, fine: object) -> None:
    if isinstance(coarse, FineSDE):
        msg = (
            "the levels are in the wrong order: `coarse` is a FineSDE, which needs a slower level above it. Write "
            "TwoScaleSDE(coarse, fine, coarse_dim) with the slow variables first."
        )
        raise ValueError(msg)
    if not isinstance(coarse, SDE):
        msg = f"`coarse` must be an SDE of the coarse variables, received {type(coarse).__name__}."
        raise TypeError(msg)
    if coarse.sde_type != "ito":
        msg = f"`coarse` must be an Itô SDE, received a {coarse.sde_type} one. Pass coarse.ito()."
        raise ValueError(msg)
    if isinstance(fine, TwoScaleSDE):
        msg = (
            "the levels are in the wrong order: `fine` is a TwoScaleSDE, whose coarse variables ignore those above. "
            "Nest the slower levels, TwoScaleSDE(TwoScaleSDE(slow, middle, n), fast, m)."
        )
        raise ValueError(msg)
    if not isinstance(fine, FineSDE):
        msg = f"`fine` must be a FineSDE, received {type(fine).__name__}. Write {_FINE_FORM}, a the coarse state."
        raise TypeError(msg)


def _check_one_way(sde: SDE, coarse_dim: int, state_dim: int) -> None:
    """Raise ValueError unless drift and diffusion of the first variables ignore the others."""
    index = torch.arange(2 * state_dim, dtype=torch.float64).reshape(2, state_dim)
    like = next((p for p in sde.parameters() if p.is_floating_point()), torch.zeros(()))
    states = ((1.7 * index + 0.6).sin() * torch.tensor([[0.8], [1.9]])).to(like)
    with torch.enable_grad():
        z = states.requires_grad_()
        drift, diffusion, _ = sde.coefficients(states.new_full((1,), 0.37), z, (None,))
        drift = drift.expand(2, state_dim)
        diffusion = sde.noise.widen(diffusion, state_dim).expand(2, state_dim, *diffusion.shape[z.dim() :])
        on_coarse = _influence([drift[:, :coarse_dim], diffusion[:, :coarse_dim]], z)[:, coarse_dim:]
        on_fine = _influence([drift[:, coarse_dim:], diffusion[:, coarse_dim:]], z)[:, :coarse_dim]
    if on_coarse.any():
        number = int(on_coarse.any(0).nonzero()[0]) + coarse_dim
        if not on_fine.any():
            msg = (
                f"the levels are in the wrong order: the first {coarse_dim} variables depend on the others, and the "
                "others not on them. Put the slow variables first in the state."
            )
            raise ValueError(msg)
        msg = (
            f"fine variables feed back into coarse ones: drift or diffusion of the first {coarse_dim} variables "
            f"depends on variable {number}. A fine path can be skipped only if the coarse one does not need it; move "
            "that variable to the coarse level, or simulate everything with SDEPath."
        )
        raise ValueError(msg)
    if not isinstance(sde.noise, DiagonalNoise):
        shared = diffusion[:, :coarse_dim] @ diffusion[:, coarse_dim:].mT
        if bool((shared.abs() > 1e-6 * diffusion.square().amax()).any()):
            msg = (
                "coarse and fine variables are driven by a common Brownian motion, so the coarse path is not enough "
                "to simulate the fine one. Give each level its own Brownian motions."
            )
            raise ValueError(msg)


def _influence(values: list[Tensor], z: Tensor) -> Tensor:
    """Where any entry of the values has a derivative with respect to the states that is not zero, ``(2, D)``."""
    found = torch.zeros_like(z, dtype=torch.bool)
    for value in values:
        for entry in value.reshape(len(z), -1).unbind(-1):
            if entry.requires_grad:
                (gradient,) = torch.autograd.grad(entry.sum(), z, retain_graph=True, allow_unused=True)
                found |= gradient is not None and gradient != 0
    return found
