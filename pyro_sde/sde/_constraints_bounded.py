r"""Sets that bind states on all sides: intervals and the simplex."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..ops._arguments import check_numeric
from ._constraints import Domain, Elementwise, Face
from .noise import Noise

__all__ = ["Arcsine", "Interval", "Simplex"]


class Interval(Elementwise):
    r"""States :math:`a < x < b` with the coordinate :math:`y = \log\frac{x - a}{b - x}`.

    .. math:: dy = \Big(\frac{f}{\varphi'} - \frac{(1 - 2p)\,g^2}{2 \varphi'^2}\Big)\,dt + \frac{g}{\varphi'}\,dW,
        \qquad p = \frac{x - a}{b - a}, \quad \varphi' = (b - a)\,p (1 - p)

    Right for noise that vanishes at both ends like :math:`(x - a)(b - x)` or faster; for :math:`\sqrt{(x - a)(b - x)}`
    see `Arcsine` and reflecting boundaries.

    Args:
        low: a, number or tensor broadcastable to ``(*batch, D)``.
        high: b > a, likewise.

    Raises:
        ValueError: if ``low < high`` does not hold everywhere, or an end is not finite.

    References:
        Øksendal (2003), Stochastic Differential Equations, theorem 4.2.1 (Itô's formula).
    """

    low: Tensor | float
    high: Tensor | float

    def __init__(self, low: Tensor | float = 0.0, high: Tensor | float = 1.0) -> None:
        super().__init__()
        check_numeric(low=low, high=high)
        lower, upper = torch.as_tensor(low).detach(), torch.as_tensor(high).detach()
        if not bool((torch.isfinite(lower) & torch.isfinite(upper) & (lower < upper)).all()):
            msg = (
                f"`low` and `high` must be finite with low < high, received {_text(low)} and {_text(high)}. For one "
                "end use Positive() on a shifted state."
            )
            raise ValueError(msg)
        for name, value in (("low", low), ("high", high)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)  # moves with the module, keeps its graph
            else:
                setattr(self, name, value)
        self.text = f"{_text(low)} < x < {_text(high)}"

    @property
    def support(self) -> constraints.Constraint:
        """The closed interval."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def to_state(self, y: Tensor) -> Tensor:
        """The logistic function, between the neighbours of the ends."""
        low, high = self._tensors(y)
        return self._between(low + (high - low) * y.sigmoid(), low, high)

    def to_coordinate(self, x: Tensor) -> Tensor:
        """The logit."""
        low, high = self._tensors(x)
        return (x - low).log() - (high - x).log()

    def inside(self, x: Tensor) -> Tensor:
        """Entries strictly between the ends."""
        low, high = self._tensors(x)
        return (x > low) & (x < high)

    def log_slopes(self, y: Tensor) -> Tensor:
        r""":math:`\log (b - a) p (1 - p)`."""
        low, high = self._tensors(y)
        return (high - low).log() + nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`(b - a) p (1 - p)`."""
        low, high = self._tensors(x)
        return ((high - low) * y.sigmoid() * (-y).sigmoid()).clamp(min=torch.finfo(y.dtype).tiny)

    def bend(self, y: Tensor) -> Tensor:
        r""":math:`1 - 2p`."""
        return -torch.tanh(0.5 * y)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (self.low, self.high))
        return low, high

    @staticmethod
    def _between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        with torch.no_grad():
            first, last = torch.nextafter(low, high), torch.nextafter(high, low)
        return torch.clamp(x, min=first, max=last)

    def _boundary(self, like: Tensor) -> list[tuple[Tensor, float]]:
        low, high = (_first_row(end, len(like)) for end in self._tensors(like))
        return [(low, 1.0), (high, -1.0)]

    def centre(self, like: Tensor) -> Tensor:
        """The middle."""
        low, high = (_first_row(end, len(like)) for end in self._tensors(like))
        return 0.5 * (low + high) + torch.zeros_like(like)

    def _ends(self) -> tuple[Tensor | float, ...]:
        return self.low, self.high


class Arcsine(Interval):
    r"""States :math:`a < x < b` with the coordinate :math:`v = \arcsin\sqrt{(x - a)/(b - a)} \in (0, \pi/2)`.

    The Lamperti coordinate of :math:`g = s\sqrt{(x - a)(b - x)}`: the diffusion of v is the constant s/2. The
    coordinate has two ends, so its solver must be ``ReflectedEuler(0.0, pi / 2)``.

    Args:
        low: a, number or tensor broadcastable to ``(*batch, D)``.
        high: b > a, likewise.

    Raises:
        ValueError: if ``low < high`` does not hold everywhere, or an end is not finite.

    Derivation:
        :math:`dv/dx = 1 / (2 \sqrt{(x - a)(b - x)})`, times :math:`g`.
    """

    bounds = (0.0, 0.5 * torch.pi)

    def to_state(self, y: Tensor) -> Tensor:
        """The squared sine, between the neighbours of the ends."""
        low, high = self._tensors(y)
        return self._between(low + (high - low) * y.sin().square(), low, high)

    def to_coordinate(self, x: Tensor) -> Tensor:
        """The arcsine of the root."""
        low, high = self._tensors(x)
        return torch.atan2((x - low).sqrt(), (high - x).sqrt())

    def log_slopes(self, y: Tensor) -> Tensor:
        r""":math:`\log (b - a) \sin 2v`."""
        low, high = self._tensors(y)
        return ((high - low) * (2 * y).sin()).log()

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`(b - a) \sin 2v`."""
        low, high = self._tensors(x)
        return (high - low) * (2 * y).sin()

    def bend(self, y: Tensor) -> Tensor:
        r""":math:`2 \cot 2v`."""
        return 2 / (2 * y).tan()


class Simplex(Domain):
    r"""States with :math:`x_i > 0`, :math:`\sum_i x_i = 1`, coordinates :math:`y_i = \log(x_i / x_D)`, :math:`i < D`.

    .. math:: dy_i = \Big(\frac{f_i}{x_i} - \frac{f_D}{x_D} - \frac{S_{ii}}{2 x_i^2} + \frac{S_{DD}}{2 x_D^2}\Big) dt
        + \Big(\frac{\sigma_i}{x_i} - \frac{\sigma_D}{x_D}\Big) dW, \qquad S = \sigma \sigma^\top

    Drift and every column of the diffusion must sum to 0 over the state, which elementwise noise cannot do: the noise
    type must be "general", "additive" or "scalar". Densities are with respect to the first D - 1 entries, as that of
    the Dirichlet law of torch.

    References:
        Øksendal (2003), Stochastic Differential Equations, theorem 4.2.1 (Itô's formula).
    """

    text = "x on the simplex"

    @property
    def support(self) -> constraints.Constraint:
        """The unit simplex."""
        return constraints.simplex

    def coordinate_dim(self, state_dim: int) -> int:
        """One less than the state."""
        return state_dim - 1

    def to_state(self, y: Tensor) -> Tensor:
        """The softmax with a last logit of 0."""
        return self._log_state(y).exp().clamp(min=torch.finfo(y.dtype).tiny)

    def to_coordinate(self, x: Tensor) -> Tensor:
        """The log-ratios to the last entry."""
        return x[..., :-1].log() - x[..., -1:].log()

    def inside(self, x: Tensor) -> Tensor:
        """Positive entries of states whose sum is 1 to round-off."""
        size = 1e-6 if x.dtype == torch.float64 else 1e-4
        return (x > 0) & ((x.sum(-1, keepdim=True) - 1).abs() < size)

    def log_slopes(self, y: Tensor) -> Tensor:
        """The logarithm of the state, D terms."""
        return self._log_state(y)

    def diffusion(self, diffusion: Tensor, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Rows relative to their state, less the last one."""
        del y, noise
        relative = diffusion / x.unsqueeze(-1)
        return relative[..., :-1, :] - relative[..., -1:, :]

    def drift(self, drift: Tensor, diffusion: Tensor | None, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Drifts relative to their state with Itô's term, less the last one."""
        del y, noise
        relative = drift / x
        if diffusion is not None:
            relative = relative - 0.5 * (diffusion / x.unsqueeze(-1)).square().sum(-1)
        return relative[..., :-1] - relative[..., -1:]

    def centre(self, like: Tensor) -> Tensor:
        """Equal shares."""
        return torch.full_like(like, 1 / len(like))

    def faces(self, like: Tensor) -> list[Face]:
        """Centres of the faces on which one entry is 0."""
        dim = len(like)
        points = (1 - torch.eye(dim, dtype=like.dtype, device=like.device)) / max(1, dim - 1)
        return [Face(points, 1.0, "x = 0")]

    def _log_state(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y[..., :1])], -1).log_softmax(-1)


def _first_row(end: Tensor, dim: int) -> Tensor:
    """The ends of the first series, one per dimension."""
    return end.reshape(-1, end.shape[-1])[0].expand(dim) if end.dim() else end


def _text(value: Tensor | float) -> str:
    return f"{float(value):g}" if not isinstance(value, Tensor) or value.numel() == 1 else f"{value.tolist()}"
