r"""Sets that states are bound to, each with a smooth coordinate in which the state is free: half-lines here.

A domain knows the map :math:`x = \varphi(y)` from its coordinate to the state, the inverse :math:`y = T(x)`, and what
Itô's formula makes of a drift and a diffusion of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .noise import Noise

__all__ = ["Domain", "Elementwise", "Face", "Positive", "SquareRoot"]


class Face(NamedTuple):
    """A part of the boundary: a point on it for every dimension, and the side on which the domain lies."""

    points: Tensor  # (D, D): row i has component i on the boundary, the others inside
    inward: float  # 1 where the domain lies above, -1 where it lies below
    text: str  # such as "x = 0"


class Domain(nn.Module, ABC):
    r"""A set of states :math:`x = \varphi(y)` with its coordinate :math:`y = T(x)`.

    Shape:
        x: ``(..., D)`` · y: ``(..., D)``, on the simplex ``(..., D - 1)`` · drift: as x, that of the coordinate as y ·
        diffusion: as the noise type has it, with as many rows as x, that of the coordinate as y.

    Attributes:
        text: the constraint in words, for messages.
        bounds: interval of the coordinate, None where it has no end. A coordinate with an end needs a solver that
            respects it.
    """

    text: str
    bounds: tuple[float | None, float | None] = (None, None)

    @property
    @abstractmethod
    def support(self) -> constraints.Constraint:
        """The set as a constraint of torch on states, event dimension 1."""

    @abstractmethod
    def to_state(self, y: Tensor) -> Tensor:
        r""":math:`\varphi(y)`, strictly inside the domain whatever the rounding."""

    @abstractmethod
    def to_coordinate(self, x: Tensor) -> Tensor:
        """:math:`T(x)`."""

    @abstractmethod
    def inside(self, x: Tensor) -> Tensor:
        """Which entries of a state obey the constraint, ``(..., D)``; NaN does not."""

    @abstractmethod
    def log_slopes(self, y: Tensor) -> Tensor:
        r"""Terms whose sum over the last axis is :math:`\log |\det \partial x / \partial y|`."""

    @abstractmethod
    def diffusion(self, diffusion: Tensor, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        r"""Diffusion of the coordinate, :math:`\nabla T \cdot \sigma`."""

    @abstractmethod
    def drift(self, drift: Tensor, diffusion: Tensor | None, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        r"""Drift of the coordinate.

        .. math:: \nabla T_i \cdot f + \tfrac12 \mathrm{tr}(\sigma^\top \nabla^2 T_i\, \sigma)

        Args:
            drift: f at the state.
            diffusion: :math:`\sigma` at the state, None for a Stratonovich SDE, which has no second-order term.
            x: the state.
            y: its coordinate.
            noise: structure of the diffusion.

        References:
            Øksendal (2003), Stochastic Differential Equations, theorem 4.2.1 (Itô's formula).
        """

    @abstractmethod
    def centre(self, like: Tensor) -> Tensor:
        """A state well inside, ``(D,)``."""

    @abstractmethod
    def faces(self, like: Tensor) -> list[Face]:
        """Points on the boundary for states like ``(D,)``."""

    def coordinate_dim(self, state_dim: int) -> int:
        """Number of coordinates of a state."""
        return state_dim

    def same_as(self, other: Domain) -> bool:
        """Whether both are the same set with the same coordinate."""
        if self is other:
            return True
        ours, theirs = self._ends(), other._ends()
        return type(self) is type(other) and all(
            torch.equal(*torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(b)))
            for a, b in zip(ours, theirs, strict=True)
        )

    def _ends(self) -> tuple[Tensor | float, ...]:
        """What two members of one class may differ in."""
        return ()

    def forward(self, y: Tensor) -> Tensor:
        """As `to_state`."""
        return self.to_state(y)


class Elementwise(Domain):
    r"""A domain whose states are bound entry by entry, :math:`x_i = \varphi(y_i)`."""

    @abstractmethod
    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\varphi'(y)`."""

    @abstractmethod
    def bend(self, y: Tensor) -> Tensor | float:
        r""":math:`\varphi''(y) / \varphi'(y)`."""

    def diffusion(self, diffusion: Tensor, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        r""":math:`\sigma_i / \varphi'(y_i)`."""
        slope = self.slope(x, y)
        return diffusion / (slope.unsqueeze(-1) if noise.matrix_dims else slope)

    def drift(self, drift: Tensor, diffusion: Tensor | None, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        r""":math:`f_i / \varphi' - \tfrac12 (\varphi'' / \varphi')\, |\sigma_i / \varphi'|^2`."""
        moved = drift / self.slope(x, y)
        if diffusion is None:
            return moved
        size = self.diffusion(diffusion, x, y, noise).square()
        return moved - 0.5 * self.bend(y) * (size.sum(-1) if noise.matrix_dims else size)

    def faces(self, like: Tensor) -> list[Face]:
        """One face for every end of the set: the centre with one entry moved there."""
        middle = self.centre(like)
        found = []
        for value, inward in self._boundary(like):
            points = middle.expand(len(like), -1).clone()
            points.diagonal().copy_(value)
            found.append(Face(points, inward, f"x = {float(value.reshape(-1)[0]):g}"))
        return found

    @abstractmethod
    def _boundary(self, like: Tensor) -> list[tuple[Tensor, float]]:
        """Ends of the set, and the side on which the set lies."""


class Positive(Elementwise):
    r"""States :math:`x > 0` with the coordinate :math:`y = \log x`.

    .. math:: dy = (f/x - \tfrac12 g^2/x^2)\,dt + (g/x)\,dW

    Right for noise that is proportional to the state near 0 (geometric Brownian motion, logistic growth): then drift
    and diffusion of y stay bounded there. For noise like :math:`\sqrt x` they grow as :math:`1/x`, and explicit steps
    explode: use `SquareRoot`, or a reflecting boundary.

    References:
        Øksendal (2003), Stochastic Differential Equations, theorem 4.2.1 (Itô's formula).
    """

    text = "x > 0"

    @property
    def support(self) -> constraints.Constraint:
        """Positive reals."""
        return constraints.independent(constraints.positive, 1)

    def to_state(self, y: Tensor) -> Tensor:
        """The exponential, at least the smallest normal number."""
        return y.exp().clamp(min=torch.finfo(y.dtype).tiny)

    def to_coordinate(self, x: Tensor) -> Tensor:
        """The logarithm."""
        return x.log()

    def inside(self, x: Tensor) -> Tensor:
        """Positive entries."""
        return x > 0

    def log_slopes(self, y: Tensor) -> Tensor:
        """The coordinate itself."""
        return y

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """The state."""
        del y
        return x

    def bend(self, y: Tensor) -> float:
        """One."""
        del y
        return 1.0

    def centre(self, like: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(like)

    def _boundary(self, like: Tensor) -> list[tuple[Tensor, float]]:
        return [(like.new_zeros(()), 1.0)]


class SquareRoot(Positive):
    r"""States :math:`x > 0` with the coordinate :math:`v = \sqrt x > 0`.

    .. math:: dv = \Big(\frac{f}{2v} - \frac{g^2}{8 v^3}\Big)\,dt + \frac{g}{2v}\,dW

    The Lamperti coordinate of :math:`g = s\sqrt x`: the diffusion of v is the constant s/2. The coordinate ends at 0,
    so its solver must be ``ReflectedEuler(lower=0.0)``.

    References:
        Dereich, Neuenkirch, Szpruch (2012), An Euler-type method for the strong approximation of the Cox-Ingersoll-Ross
        process, section 2.
    """

    bounds = (0.0, None)

    def to_state(self, y: Tensor) -> Tensor:
        """The square."""
        return y.square().clamp(min=torch.finfo(y.dtype).tiny)

    def to_coordinate(self, x: Tensor) -> Tensor:
        """The root."""
        return x.sqrt()

    def log_slopes(self, y: Tensor) -> Tensor:
        r""":math:`\log 2v`."""
        return (2 * y).log()

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """Twice the coordinate."""
        del x
        return 2 * y

    def bend(self, y: Tensor) -> Tensor:  # type: ignore[override]
        """One over the coordinate."""
        return 1 / y
