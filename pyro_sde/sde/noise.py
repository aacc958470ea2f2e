r"""How a diffusion acts on Brownian increments, and the geometry of its range.

Two structures cover the four noise types of the field: an elementwise diffusion ("diagonal") and a matrix ("scalar",
"additive", "general"; "scalar" has one column). Everything that inverts a diffusion goes through `range_of`, which
knows what to do where the diffusion is zero or loses rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["DiagonalNoise", "DiffusionRange", "MatrixNoise", "Noise", "noise_structure", "trailing_singleton"]


class DiffusionRange(ABC):
    r"""Range of a diffusion :math:`\sigma`: coordinates, rank and volume on the directions that carry noise.

    Attributes:
        rank: number of independent noisy directions, ``(...)``.
        log_volume: :math:`\tfrac12 \log \mathrm{pdet}(\sigma \sigma^\top)`, ``(...)``.
        full: True if every direction carries noise everywhere: then nothing lies outside the range.
    """

    rank: Tensor
    log_volume: Tensor
    full: bool

    @abstractmethod
    def coordinates(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        r"""Minimum-norm solution `u` of :math:`\sigma u = v`, and the rest :math:`v - \sigma u` outside the range.

        Shape:
            vector: ``(..., D)`` · returns ``(..., M)`` and ``(..., D)``.
        """

    @abstractmethod
    def project(self, control: Tensor) -> Tensor:
        r"""Part of a control that moves the state, :math:`\sigma^+ \sigma u`; ``(..., M) -> (..., M)``."""


class Noise(ABC):
    """Structure of a diffusion: how it maps ``(..., M)`` Brownian coordinates to ``(..., D)`` states.

    Attributes:
        matrix_dims: number of axes that a diffusion has beyond those of a state, 0 or 1.
    """

    matrix_dims: int

    @abstractmethod
    def brownian_dim(self, diffusion: Tensor, state_dim: int) -> int:
        """Number M of Brownian dimensions."""

    @abstractmethod
    def apply(self, diffusion: Tensor, vector: Tensor) -> Tensor:
        r""":math:`\sigma w`, ``(..., M) -> (..., D)``."""

    @abstractmethod
    def gram(self, diffusion: Tensor) -> Tensor:
        r""":math:`\sigma \sigma^\top`, ``(..., D, D)``."""

    @abstractmethod
    def batch_shape(self, diffusion: Tensor) -> torch.Size:
        """Leading dimensions of a diffusion."""

    @abstractmethod
    def expand(self, diffusion: Tensor, state: Tensor) -> Tensor:
        """Diffusion broadcast to the leading dimensions of `state` (a view)."""

    @abstractmethod
    def widen(self, diffusion: Tensor, state_dim: int) -> Tensor:
        """Diffusion with all D of its rows, but no leading dimensions added: one value stays one value."""

    @abstractmethod
    def range_of(self, diffusion: Tensor) -> DiffusionRange:
        """Geometry of the range of a diffusion with all its rows; its leading dimensions broadcast with vectors."""

    @abstractmethod
    def shape_error(self, diffusion: Tensor, state: Tensor) -> str | None:
        """What is wrong with the shape of `diffusion` for states of this shape; None if nothing is."""


class _DiagonalRange(DiffusionRange):
    def __init__(self, diffusion: Tensor) -> None:
        self.noisy = diffusion != 0
        self.full = bool(self.noisy.all())
        # The one place where a diagonal diffusion is divided by: noise-free entries are replaced before, not after.
        self.safe = diffusion if self.full else torch.where(self.noisy, diffusion, torch.ones_like(diffusion))
        self.rank = self.noisy.sum(-1).to(diffusion.dtype)
        self.log_volume = self.safe.abs().log().sum(-1)

    def coordinates(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        zero = vector.new_zeros(())
        if self.full:
            return vector / self.safe, zero.expand(vector.shape)
        return torch.where(self.noisy, vector / self.safe, zero), torch.where(self.noisy, zero, vector)

    def project(self, control: Tensor) -> Tensor:
        return control if self.full else torch.where(self.noisy, control, control.new_zeros(()))


class DiagonalNoise(Noise):
    """Elementwise diffusion ``(..., D)``: one Brownian motion per state dimension."""

    matrix_dims = 0

    def brownian_dim(self, diffusion: Tensor, state_dim: int) -> int:  # noqa: ARG002
        """State dimension D."""
        return state_dim

    def apply(self, diffusion: Tensor, vector: Tensor) -> Tensor:
        """Elementwise product."""
        return diffusion * vector

    def gram(self, diffusion: Tensor) -> Tensor:
        """Diagonal matrix of squares."""
        return torch.diag_embed(diffusion.square())

    def batch_shape(self, diffusion: Tensor) -> torch.Size:
        """All but the last dimension."""
        return diffusion.shape[:-1]

    def expand(self, diffusion: Tensor, state: Tensor) -> Tensor:
        """Broadcast ``(..., D)``."""
        return diffusion.expand(torch.broadcast_shapes(diffusion.shape, state.shape))

    def widen(self, diffusion: Tensor, state_dim: int) -> Tensor:
        """Last axis broadcast to D."""
        return diffusion.expand(*diffusion.shape[:-1], state_dim)

    def range_of(self, diffusion: Tensor) -> DiffusionRange:
        """Entries that are not zero."""
        return _DiagonalRange(diffusion)

    def shape_error(self, diffusion: Tensor, state: Tensor) -> str | None:
        """Anything that broadcasts to ``(..., D)`` is right; a trailing singleton axis is not."""
        if trailing_singleton(diffusion, state):
            return 'squeeze the last axis or set noise_type="general"'
        if diffusion.dim() and diffusion.shape[-1] not in (1, state.shape[-1]):
            return "it must broadcast against the state"
        return None


class _MatrixRange(DiffusionRange):
    r"""Range of a matrix by a Cholesky factor of the smaller Gram matrix, in float64.

    A Gram matrix squares the condition number, so float32 is too short for it: a float32 matrix of condition number
    1e4 would get a pseudo-inverse without a right digit. Batched float64 costs a sixth more time.

    With :math:`S = \sigma\sigma^\top` (or :math:`\sigma^\top\sigma` if M < D) of full rank, pseudo-inverse and
    pseudo-determinant are ordinary ones of S. Otherwise :math:`S = \sigma\sigma^\top` and N spans its null space: on
    the range, :math:`(S + sNN^\top)^{-1}` acts as :math:`S^+`, and :math:`\log\det(S + sNN^\top) =
    \log\mathrm{pdet}\,S + \dim N \log s`. N is a constant for the gradient: a change of S that keeps its rank is of
    second order in :math:`N^\top S N`. (With :math:`\sigma^\top\sigma` instead, u would not turn with the null
    space.)
    """

    def __init__(self, diffusion: Tensor) -> None:
        self.dtype = diffusion.dtype
        self.wide = diffusion.shape[-1] >= diffusion.shape[-2]
        self.diffusion = diffusion.double()
        gram = self.diffusion @ self.diffusion.mT if self.wide else self.diffusion.mT @ self.diffusion
        self.factor, info = torch.linalg.cholesky_ex(gram)
        # A pivot small against its own diagonal entry has lost its digits; the scale of a state plays no part.
        pivots = self.factor.detach().diagonal(dim1=-2, dim2=-1).square()
        eps = torch.finfo(self.dtype).eps
        lost = pivots <= max((1e3 * eps) ** 2, 1e-12) * gram.detach().diagonal(dim1=-2, dim2=-1)
        self.regular = not bool(((info > 0) | lost.any(-1)).any())
        self.rank = torch.full(diffusion.shape[:-2], gram.shape[-1], dtype=self.dtype, device=diffusion.device)
        filled: Tensor | float = 0.0  # log-determinant of what stands in for the null space
        if not self.regular:
            self.wide = True
            null_space, nullity, scale = _null_space(self.diffusion.detach(), eps)
            self.factor = torch.linalg.cholesky(self.diffusion @ self.diffusion.mT + null_space)
            self.rank = (diffusion.shape[-2] - nullity).to(self.dtype)
            filled = nullity * scale.log()
        self.full = self.regular and diffusion.shape[-1] >= diffusion.shape[-2]
        log_det = 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.log_volume = 0.5 * (log_det - filled).to(self.dtype)

    def coordinates(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        given = vector.double().unsqueeze(-1)
        if self.wide:
            column = self.diffusion.mT @ torch.cholesky_solve(given, self.factor)
        else:
            column = torch.cholesky_solve(self.diffusion.mT @ given, self.factor)
        rest = given - self.diffusion @ column
        return column.squeeze(-1).to(self.dtype), rest.squeeze(-1).to(self.dtype)

    def project(self, control: Tensor) -> Tensor:
        if not self.wide and self.regular:
            return control
        return self.coordinates((self.diffusion @ control.double().unsqueeze(-1)).squeeze(-1))[0]


def _null_space(diffusion: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Scaled projector :math:`sNN^\top` on the directions without noise, dim N and s; `eps` is that of the entries."""
    values, basis = torch.linalg.eigh(diffusion @ diffusion.mT)
    largest = values[..., -1:].clamp(min=0)
    size = values.shape[-1]
    threshold = max((8 * size * eps) ** 2, 16 * size * torch.finfo(torch.float64).eps)
    null = (values <= threshold * largest).double()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    return (basis * (null * scale).unsqueeze(-2)) @ basis.mT, null.sum(-1), scale.squeeze(-1)


class MatrixNoise(Noise):
    """Matrix diffusion ``(..., D, M)``: `M` Brownian motions drive `D` states."""

    matrix_dims = 1

    def __init__(self, columns: int | None = None) -> None:
        self.columns = columns

    def brownian_dim(self, diffusion: Tensor, state_dim: int) -> int:  # noqa: ARG002
        """Number of columns M."""
        return diffusion.shape[-1]

    def apply(self, diffusion: Tensor, vector: Tensor) -> Tensor:
        """Matrix-vector product."""
        return (diffusion @ vector.unsqueeze(-1)).squeeze(-1)

    def gram(self, diffusion: Tensor) -> Tensor:
        """Matrix times its transpose."""
        return diffusion @ diffusion.mT

    def batch_shape(self, diffusion: Tensor) -> torch.Size:
        """All but the last two dimensions."""
        return diffusion.shape[:-2]

    def expand(self, diffusion: Tensor, state: Tensor) -> Tensor:
        """Broadcast ``(..., D, M)``."""
        batch = torch.broadcast_shapes(diffusion.shape[:-2], state.shape[:-1])
        return diffusion.expand(*batch, *diffusion.shape[-2:])

    def widen(self, diffusion: Tensor, state_dim: int) -> Tensor:  # noqa: ARG002
        """A matrix has all its rows."""
        return diffusion

    def range_of(self, diffusion: Tensor) -> DiffusionRange:
        """Pseudo-inverse geometry of the matrix."""
        return _MatrixRange(diffusion)

    def shape_error(self, diffusion: Tensor, state: Tensor) -> str | None:
        """The last two axes must be ``(D, M)``."""
        if diffusion.dim() < 2 or diffusion.shape[-2] != state.shape[-1]:
            return 'return a matrix (*batch, D, M), or set noise_type="diagonal" for an elementwise diffusion'
        if diffusion.shape[-1] == 0:
            return "there is no Brownian motion: give it a column at least, of zeros for states without noise"
        if self.columns is not None and diffusion.shape[-1] != self.columns:
            return 'scalar noise has one Brownian motion: return (*batch, D, 1), or set noise_type="general"'
        return None


def trailing_singleton(value: Tensor, state: Tensor) -> bool:
    """Whether a coefficient has an axis of size 1 too many, as ``(B, D, 1)`` for states ``(B, D)``.

    A captured ``(B, 1)`` tensor times states ``(D,)`` without a batch is ``(B, D)``, and is right also if B = D.
    """
    one_too_many = value.dim() > 0 and value.shape[-1] == 1 and value.shape[:-1] == state.shape
    return one_too_many and state.numel() > 1


_STRUCTURES: dict[str, Noise] = {
    "diagonal": DiagonalNoise(),
    "scalar": MatrixNoise(columns=1),
    "additive": MatrixNoise(),
    "general": MatrixNoise(),
}


def noise_structure(noise_type: str) -> Noise:
    """Structure of a noise type, by torchsde's name for it.

    Raises:
        ValueError: if the name is unknown.
    """
    try:
        return _STRUCTURES[noise_type]
    except KeyError:
        msg = f"`noise_type` must be one of {sorted(_STRUCTURES)}, received {noise_type!r}."
        raise ValueError(msg) from None
