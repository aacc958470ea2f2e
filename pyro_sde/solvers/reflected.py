"""Euler–Maruyama steps that reflect at a boundary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from ..ops._arguments import check_floating, check_numeric
from .base import Field, Rows, Solver, State, Step
from .loop import euler_step

__all__ = ["ReflectedEuler", "reflect"]

Bound = Tensor | float | None


class ReflectedEuler(Solver):
    r"""Euler–Maruyama step, reflected at a lower and an upper boundary.

    .. math:: z_{t+h} = R\big(z_t + f(t, z_t)\,h + \sigma(t, z_t)\,\Delta W\big)

    R is the mirror image inside: :math:`R(x) = a + |x - a|` above one boundary a, and the repeated image between two.
    The process that it approximates is the SDE with instantaneous reflection; an SDE that does not cross the boundary
    by itself (Cox–Ingersoll–Ross at 0, Wright–Fisher at 0 and 1) is its own limit. No state ever leaves the set. The
    transition is a folded Gaussian, so paths have a density; the divergence of two of them has no closed form, use
    ``kl="stl"`` or ``"full"``. Dimensions are reflected one by one, so the noise must be diagonal.

    Note:
        Strong order 1/2; weak order 1 for smooth coefficients.

    Args:
        lower: number or tensor broadcastable to ``(*batch, D)``; None for no boundary, -inf for none in a dimension.
        upper: likewise, above `lower`.

    Raises:
        ValueError: if there is no boundary, or `lower` is not below `upper`.

    References:
        Bossy, Gobet, Talay (2004), A symmetrized Euler scheme for an efficient approximation of reflected diffusions,
        J. Appl. Probab. 41; Berkaoui, Bossy, Diop (2008), Euler scheme for SDEs with non-Lipschitz diffusion
        coefficient: strong convergence, ESAIM P&S 12 (square-root diffusions).
    """

    noise_types = frozenset({"diagonal"})
    has_density = True

    def __init__(self, lower: Bound = None, upper: Bound = None) -> None:
        if lower is None and upper is None:
            msg = "give `lower`, `upper` or both; without a boundary use EulerMaruyama()."
            raise ValueError(msg)
        check_numeric(**{n: end for n, end in (("lower", lower), ("upper", upper)) if end is not None})
        low = torch.as_tensor(-torch.inf if lower is None else lower).detach()
        high = torch.as_tensor(torch.inf if upper is None else upper).detach()
        if not bool((low < high).all()):
            msg = f"`lower` must be below `upper`, received {_text(lower)} and {_text(upper)}."
            raise ValueError(msg)
        self.lower = lower
        self.upper = upper

    @property
    def support(self) -> constraints.Constraint:
        """The set as a constraint of torch on single entries; real where a tensor mixes ends with none."""
        ends = [end for end in (self.lower, self.upper) if end is not None]
        if not all(bool(torch.isfinite(torch.as_tensor(end)).all()) for end in ends):
            return constraints.real
        if self.upper is None:
            return constraints.greater_than_eq(self.lower)
        return constraints.less_than(self.upper) if self.lower is None else constraints.interval(self.lower, self.upper)

    def strong_order(self, noise_type: str) -> float:
        """1/2: near the boundary the error is that of the local time."""
        del noise_type
        return 0.5

    def weak_order(self, noise_type: str) -> float:
        """1."""
        del noise_type
        return 1.0

    def start(self, field: Field, t: Tensor, z: Tensor, rows: Rows) -> State:
        """Check that the first states are inside.

        Raises:
            ValueError: if one is not.
        """
        del field, rows
        self.check_inside(z.detach().unsqueeze(0), t.detach().unsqueeze(0))
        return ()

    def step(self, field: Field, z: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """One explicit Euler step and its mirror image."""
        coefficients = field.coefficients(step.t, z, step.rows)
        following = euler_step(field.noise, z, step.increments.dt, step.increments.W, coefficients)
        return _mirrored(following, self.lower, self.upper), state

    def check_inside(self, path: Tensor, times: Tensor) -> None:
        """Raise ValueError unless every state of a path is inside the boundaries or on them.

        Args:
            path: ``(T, ..., D)``.
            times: ``(T, ..., 1)``, for the message.
        """
        low, high = _bounds(path, self.lower, self.upper)
        outside = ~((path >= low) & (path <= high))
        if outside.any():
            where = tuple(outside.nonzero()[0].tolist())
            time = times.expand(*path.shape[:-1], 1)[where[:-1]].item()
            msg = (
                f"the state {float(path[where]):.6g} at time {time:g}, dimension {where[-1]}, is outside the "
                f"boundaries lower={_text(self.lower)}, upper={_text(self.upper)}. Give an initial law, or observed "
                "paths, inside them."
            )
            raise ValueError(msg)


def reflect(z: Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    r"""Mirror image of states inside ``[lower, upper]``, as often as needed.

    Between two boundaries at the distance L it is the triangle wave of period 2L; gradients are 1 or -1.

    Args:
        z: ``(..., D)``.
        lower: number or tensor broadcastable to z; None or -inf for no boundary.
        upper: likewise.

    Returns:
        States ``(..., D)``.

    Raises:
        TypeError: if `z` is no floating-point tensor, or a boundary neither a number nor a tensor of real numbers.

    Example:
        >>> reflect(torch.tensor([-0.3, 0.4, 1.2, 2.1]), 0.0, 1.0)
        tensor([0.3000, 0.4000, 0.8000, 0.1000])
    """
    check_floating(z=z)
    check_numeric(**{n: end for n, end in (("lower", lower), ("upper", upper)) if end is not None})
    return _mirrored(z, lower, upper)


def _mirrored(z: Tensor, lower: Bound, upper: Bound) -> Tensor:
    """As `reflect`, without checks: for every step."""
    if upper is None:
        low, _ = _bounds(z, lower, None)
        return torch.where(z < low, 2 * low - z, z)
    if lower is None:
        _, high = _bounds(z, None, upper)
        return torch.where(z > high, 2 * high - z, z)
    low, high = _bounds(z, lower, upper)
    both = low.isfinite() & high.isfinite()
    base, length = torch.where(both, low, torch.zeros_like(low)), torch.where(both, high - low, torch.ones_like(low))
    position = torch.remainder(z - base, 2 * length)
    wave = base + torch.where(position > length, 2 * length - position, position)
    between = torch.minimum(torch.maximum(torch.where((z >= low) & (z <= high), z, wave), low), high)
    mirrored = torch.where(z < low, 2 * low - z, torch.where(z > high, 2 * high - z, z))
    return torch.where(both, between, mirrored)


def _bounds(like: Tensor, lower: Bound, upper: Bound) -> tuple[Tensor, Tensor]:
    ends = (-torch.inf if lower is None else lower, torch.inf if upper is None else upper)
    low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in ends)
    return low, high


def _text(bound: Bound) -> str:
    if isinstance(bound, Tensor):
        return f"{bound.detach().tolist()}"
    return "None" if bound is None else f"{bound:g}"
