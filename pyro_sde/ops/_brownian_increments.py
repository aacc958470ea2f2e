"""Increments of Brownian motion over given steps: their law, and the increments of a union of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import check_floating

__all__ = [
    "BrownianIncrements",
    "LEVY",
    "area_from_normals",
    "brownian_increments",
    "check_levy",
    "coarsen",
    "combine",
    "normal_width",
    "wiener_increments",
]

LEVY = ("none", "space-time", "area")
"""What a record knows beyond W: nothing, the space-time area H, or H and the Lévy area A."""


class BrownianIncrements(NamedTuple):
    r"""Increments of M-dimensional Brownian motion over the steps :math:`[s, s + h]`.

    Attributes:
        dt: step sizes h, ``(..., 1)``, 0 where padded.
        W: :math:`W_{s+h} - W_s`, ``(..., M)``, law N(0, h).
        H: space-time Lévy area, ``(..., M)``, law N(0, h / 12) and independent of W;
            :math:`\int_s^{s+h} (W_u - W_s)\,du = h\,(W/2 + H)`. None if not asked for.
        A: Lévy area :math:`A_{ij} = \tfrac12 \int (W_i\,dW_j - W_j\,dW_i)`, both motions counted from s,
            ``(..., M, M)``, antisymmetric, variance :math:`h^2/4`. None if not asked for.

    References:
        Foster, Oberhauser and Lyons (2020), An optimal polynomial approximation of Brownian motion, SIAM J. Numer.
        Anal. 58(3).
    """

    dt: Tensor
    W: Tensor
    H: Tensor | None = None
    A: Tensor | None = None


def check_levy(levy: str) -> None:
    """Raise ValueError unless `levy` is one of `LEVY`."""
    if levy not in LEVY:
        msg = f"`levy` must be one of {', '.join(map(repr, LEVY))}, received {levy!r}."
        raise ValueError(msg)


def normal_width(brownian_dim: int, levy: str) -> int:
    """Standard normals that the increments of one step are made of: M, 2M or 2M + M(M - 1)/2.

    Args:
        brownian_dim: number M of Brownian motions, >= 1.
        levy: "none", "space-time" or "area".

    Raises:
        ValueError: if `brownian_dim` is not a positive integer or `levy` is unknown.

    Example:
        >>> [normal_width(3, levy) for levy in LEVY]
        [3, 6, 9]
    """
    check_levy(levy)
    if not _is_count(brownian_dim):
        msg = f"`brownian_dim` must be a positive integer, received {brownian_dim!r}."
        raise ValueError(msg)
    pairs = brownian_dim * (brownian_dim - 1) // 2
    return {"none": brownian_dim, "space-time": 2 * brownian_dim, "area": 2 * brownian_dim + pairs}[levy]


def wiener_increments(dt: Tensor, standard_normal: Tensor) -> Tensor:
    r"""Increments :math:`W = \sqrt h\,\epsilon` alone; zero, with zero gradient, where a step is padded.

    Shape:
        dt: ``(..., 1)``, step sizes >= 0 · standard_normal: ``(..., M)`` · returns ``(..., M)``.
    """
    moving = dt > 0
    root = torch.where(moving, dt, torch.ones_like(dt)).sqrt()  # the derivative of sqrt at 0 is infinite
    return standard_normal * torch.where(moving, root, torch.zeros_like(root))


def brownian_increments(dt: Tensor, standard_normal: Tensor, levy: str = "none") -> BrownianIncrements:
    r"""Increments of Brownian motion as a function of standard normals; cost O(width), or O(M^2) with "area".

    The first M normals give :math:`W = \sqrt h\,\epsilon`, the next M give :math:`H = \sqrt{h/12}\,\epsilon`, and one
    normal for each pair i < j (in the order 12, 13, ..., 23, ...) gives

    .. math:: A_{ij} = H_i W_j - W_i H_j + b_{ij}, \qquad
        b_{ij} \sim N\bigl(0,\ h^2/20 + (h/5)(H_i^2 + H_j^2)\bigr).

    W and H have their exact law. A has its exact mean given (W, H) and its exact variance given H, so
    :math:`E[A^2] = h^2/4` and :math:`E[A^2 | W] = h^2/12 + (h/12)(W_i^2 + W_j^2)`; its fourth moment is
    :math:`0.3075\,h^4` (the true one is :math:`5h^4/16 = 0.3125\,h^4`), and given H the :math:`b_{ij}` are independent.

    Note:
        The antisymmetric normals of torchsde 0.2.6 have twice the variance that its formula assumes: its areas have
        variance 0.331 (Davie) and 0.218 (Foster) times :math:`h^2` in place of 0.25.

    Args:
        dt: step sizes h >= 0, ``(..., 1)``. Where a step is padded (0) all increments and their gradients are 0.
        standard_normal: ``(..., normal_width(M, levy))``; its leading dimensions broadcast with those of `dt`.
        levy: "none", "space-time" or "area".

    Raises:
        TypeError: if `dt` or `standard_normal` is no floating-point tensor.
        ValueError: if `levy` is unknown or a shape does not fit.

    References:
        Foster (2020), Numerical approximations for stochastic differential equations, thesis, Oxford, chapter 7.
        Davie (2014), KMT theory applied to approximations of SDE, section 4.

    Example:
        >>> record = brownian_increments(torch.tensor([4.0]), torch.tensor([1.0, -0.5]))
        >>> record.W
        tensor([ 2., -1.])
    """
    check_floating(dt=dt, standard_normal=standard_normal)
    check_levy(levy)
    dim = _brownian_dim(standard_normal, levy)
    _check_steps(dt, standard_normal)
    W = wiener_increments(dt, standard_normal[..., :dim])
    if levy == "none":
        return BrownianIncrements(dt, W)
    H = wiener_increments(dt / 12, standard_normal[..., dim : 2 * dim])
    A = area_from_normals(dt, W, H, standard_normal[..., 2 * dim :]) if levy == "area" else None
    return BrownianIncrements(dt, W, H, A)


def area_from_normals(dt: Tensor, W: Tensor, H: Tensor, standard_normal: Tensor) -> Tensor:
    r"""Lévy area ``(..., M, M)`` given W and H, from one standard normal per pair i < j, ``(..., M(M - 1)/2)``.

    .. math:: A_{ij} = H_i W_j - W_i H_j + \sqrt{h}\,\sqrt{h/20 + (H_i^2 + H_j^2)/5}\ \epsilon_{ij}
    """
    dim = W.shape[-1]
    moving = dt > 0
    safe = torch.where(moving, dt, torch.ones_like(dt))
    first, second = torch.triu_indices(dim, dim, 1, device=W.device)
    squares = H.square()
    # E[b^2 | H] = h^2/20 + (h/5)(H_i^2 + H_j^2): its mean is h^2/12, the rest of h^2/4 is that of H_i W_j - W_i H_j.
    deviation = safe.sqrt() * (safe / 20 + (squares[..., first] + squares[..., second]) / 5).sqrt()
    rest = torch.where(moving, deviation, torch.zeros_like(deviation)) * standard_normal  # (..., pairs)
    # (M, M) places of the pairs, 0 for the diagonal, which a column of zeros serves
    place = torch.zeros(dim, dim, dtype=torch.long, device=W.device)
    place[first, second] = torch.arange(1, len(first) + 1, device=W.device)
    upper = torch.nn.functional.pad(rest, (1, 0))[..., place]  # (..., M, M), zero on and below the diagonal
    upper = upper + H.unsqueeze(-1) * W.unsqueeze(-2)
    return upper - upper.mT


def combine(first: BrownianIncrements, second: BrownianIncrements) -> BrownianIncrements:
    r"""Increments over the union of two adjacent intervals (Chen's relation).

    .. math:: W = W_1 + W_2, \qquad
        h\,(W/2 + H) = h_1 (W_1/2 + H_1) + h_2 (W_1 + W_2/2 + H_2), \qquad
        A = A_1 + A_2 + \tfrac12 (W_1 W_2^\top - W_2 W_1^\top)

    Args:
        first: the interval on the left; leading dimensions broadcast with those of `second`.
        second: the interval that begins where `first` ends.

    Returns:
        the record of the union; H and A where both have them, else None.

    References:
        Chen (1957), Integration of paths, geometric invariants and a generalized Baker-Hausdorff formula, Annals of
        Mathematics 65.

    Raises:
        TypeError: if one of both is no `BrownianIncrements`.
        ValueError: if the numbers of Brownian motions differ.
    """
    _check_record(first, "first")
    _check_record(second, "second")
    if first.W.shape[-1] != second.W.shape[-1]:
        msg = (
            "`first` and `second` must have the same number M of Brownian motions, received W of shapes "
            f"{tuple(first.W.shape)} and {tuple(second.W.shape)}."
        )
        raise ValueError(msg)
    batch = torch.broadcast_shapes(*(field.shape[:-1] for field in (first.dt, first.W, second.dt, second.W)))
    parts = (part._replace(dt=part.dt.expand(*batch, 1), W=part.W.expand(*batch, -1)) for part in (first, second))
    pairs = zip(*parts, strict=True)
    stacked = (None if a is None or b is None else torch.stack(torch.broadcast_tensors(a, b)) for a, b in pairs)
    return _map_fields(_unite(BrownianIncrements(*stacked), 2), lambda field: field[0])  # type: ignore[arg-type]


def coarsen(increments: BrownianIncrements, n: int, dim: int = -2) -> BrownianIncrements:
    """Increments over blocks of `n` consecutive steps: the same Brownian path on a grid n times coarser.

    For nested grids: draw on the finest, coarsen for the others. Cost O(K M), or O(K M^2) with A.

    Args:
        increments: record of K steps; `dt` may have fewer leading dimensions than `W`.
        n: number of steps that become one; divides K.
        dim: the axis of time in `W`: -2, or 0 where time is leftmost.

    Returns:
        the record of K / n steps, time on the same axis.

    Raises:
        TypeError: if `increments` is no `BrownianIncrements`.
        ValueError: if `n` is not a positive integer that divides K, or `dim` is no axis of time.
    """
    _check_record(increments, "increments")
    W = increments.W
    if not isinstance(dim, int) or not -W.dim() <= dim < W.dim() or dim % W.dim() == W.dim() - 1:
        msg = f"`dim` must be an axis of W {tuple(W.shape)} other than the last, received {dim!r}."
        raise ValueError(msg)
    axis = dim % W.dim()
    steps = W.shape[axis]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1 or steps % n:
        msg = f"`n` must be a positive integer that divides the number of steps {steps}, received {n!r}."
        raise ValueError(msg)
    increments = increments._replace(dt=increments.dt.expand(*W.shape[:-1], 1))
    time_first = _map_fields(increments, lambda field: field.movedim(axis, 0))
    return _map_fields(_unite(time_first, n), lambda field: field.movedim(0, axis))


def _is_count(value: object) -> bool:
    try:  # in a trace sizes are tensors
        return not isinstance(value, bool | float) and int(value) == value and int(value) >= 1  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return False


def _map_fields(record: BrownianIncrements, function: Callable[[Tensor], Tensor]) -> BrownianIncrements:
    dt, W, H, A = record
    return BrownianIncrements(
        function(dt), function(W), None if H is None else function(H), None if A is None else function(A)
    )


def _unite(record: BrownianIncrements, n: int) -> BrownianIncrements:
    """Record of blocks of `n` steps, time leftmost: ``(K, ...) -> (K / n, ...)``."""
    dt, W, H, A = _map_fields(record, lambda field: field.reshape(field.shape[0] // n, n, *field.shape[1:]))
    total, increment = dt.sum(1), W.sum(1)
    before = W.cumsum(1) - W  # from the left end of the block to each step
    if H is not None:
        integral = (dt * (before + 0.5 * W + H)).sum(1)
        H = integral / torch.where(total > 0, total, torch.ones_like(total)) - 0.5 * increment
        H = torch.where(total > 0, H, torch.zeros_like(H))
    if A is not None:
        outer = torch.einsum("kn...i,kn...j->k...ij", before, W)
        A = A.sum(1) + 0.5 * (outer - outer.mT)
    return BrownianIncrements(total, increment, H, A)


def _brownian_dim(standard_normal: Tensor, levy: str) -> int:
    """M, from the number of standard normals of a step."""
    width = int(standard_normal.shape[-1]) if standard_normal.dim() else 0
    dim = width
    if levy == "space-time":
        dim = width // 2
    elif levy == "area":
        dim = (math.isqrt(9 + 8 * width) - 3) // 2  # M (M + 3) / 2 = width
    if dim < 1 or normal_width(dim, levy) != width:
        some = ", ".join(str(normal_width(m, levy)) for m in range(1, 5))
        msg = (
            f"`standard_normal` must have shape (..., normal_width(M, {levy!r})), which is {some}, ... for M = 1, 2, "
            f"3, 4, ..., received {tuple(standard_normal.shape)}."
        )
        raise ValueError(msg)
    return dim


def _check_record(value: object, name: str) -> None:
    if not isinstance(value, BrownianIncrements):
        msg = f"`{name}` must be a BrownianIncrements, received {type(value).__name__}."
        raise TypeError(msg)


def _check_steps(dt: Tensor, standard_normal: Tensor) -> None:
    shapes = f"{tuple(dt.shape)} for `standard_normal` {tuple(standard_normal.shape)}"
    if dt.dim() == 0 or dt.shape[-1] != 1:
        msg = f"`dt` must have shape (..., 1), received {shapes}. Add an axis with dt.unsqueeze(-1)."
        raise ValueError(msg)
    try:
        torch.broadcast_shapes(dt.shape[:-1], standard_normal.shape[:-1])
    except RuntimeError as error:
        msg = f"the leading dimensions of `dt` and `standard_normal` must broadcast, received {shapes}."
        raise ValueError(msg) from error
