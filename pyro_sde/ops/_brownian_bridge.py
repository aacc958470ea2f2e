"""Brownian motion between points at which it is known."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import check_floating, check_real
from ._psd import check_finite
from .scan import diagonal_recurrence

__all__ = ["brownian_bridge"]


def brownian_bridge(times: Tensor, values: Tensor, queries: Tensor, standard_normal: Tensor) -> Tensor:
    r"""Exact joint sample of Brownian motion at any query times, given its values at known times.

    Between neighbours s < e of the known times, from the query before (or s) at r to the next one at q,

    .. math:: W_q | W_r, W_e \sim N\Bigl(\tfrac{(e - q) W_r + (q - r) W_e}{e - r},\ \tfrac{(q - r)(e - q)}{e - r}\Bigr),

    one linear recurrence over the sorted queries, started afresh in every gap. A query at a known time gives the
    known value; equal queries give equal values. Cost O(Q log(Q N)), and that of `diagonal_recurrence`. Gradients flow
    to `values` and `standard_normal`; times are constants.

    Args:
        times: known times, ``(N,)`` or ``(*batch, N)``, N >= 2, not decreasing (repeats of the last are padding).
        values: known values, ``(*batch, N, M)``.
        queries: times to fill in, any order, ``(Q,)`` or ``(*batch, Q)``, inside the known times.
        standard_normal: ``(*batch, Q, M)``, one row per query.

    Returns:
        ``(*batch, Q, M)``, in the order of `queries`.

    Raises:
        TypeError: if an argument is no floating-point tensor (queries may be whole numbers).
        ValueError: if shapes do not fit, times decrease, a query lies outside the known times, or a value or a number
            of `standard_normal` is not finite.

    References:
        Karatzas and Shreve (1991), Brownian motion and stochastic calculus, section 5.6.B.

    Example:
        >>> ends = torch.tensor([[0.0], [1.0]])
        >>> brownian_bridge(torch.tensor([0.0, 4.0]), ends, torch.tensor([2.0]), torch.tensor([[1.0]]))
        tensor([[1.5000]])
    """
    check_floating(times=times, values=values, standard_normal=standard_normal)
    check_real(queries=queries)
    batch = _batch_shape(times, values, queries, standard_normal)
    check_finite(values, "values", True, 1)
    check_finite(standard_normal, "standard_normal", True, 1)
    known = times.detach().expand(*batch, times.shape[-1]).contiguous()
    values = values.expand(*batch, *values.shape[-2:])
    q, order = queries.detach().to(known.dtype).expand(*batch, queries.shape[-1]).sort(dim=-1, stable=True)
    _check_times(known, q)
    dim = values.shape[-1]
    # the gap that begins at the last known time <= q; the last gap includes its end
    gap = (torch.searchsorted(known, q.contiguous(), right=True) - 1).clamp(max=times.shape[-1] - 2)
    start, end = known.gather(-1, gap), known.gather(-1, gap + 1)
    opens = torch.ones_like(gap, dtype=torch.bool)
    opens[..., 1:] = gap.diff(dim=-1) > 0  # the first query of its gap
    before = torch.where(opens, start, torch.cat([start[..., :1], q[..., :-1]], -1))
    left = end - before
    done = left <= 0  # at the right end already
    share = torch.where(done, torch.ones_like(left), (q - before) / torch.where(done, torch.ones_like(left), left))
    deviation = (share * (end - q)).sqrt().unsqueeze(-1)  # 0 where done, since q = end
    share, opens = share.unsqueeze(-1), opens.unsqueeze(-1)

    def per_motion(index: Tensor) -> Tensor:
        return index.unsqueeze(-1).expand(*batch, -1, dim)

    noise = standard_normal.expand(*batch, *standard_normal.shape[-2:]).gather(-2, per_motion(order))
    offset = share * values.gather(-2, per_motion(gap + 1)) + deviation * noise
    offset = offset + torch.where(opens, (1 - share) * values.gather(-2, per_motion(gap)), torch.zeros_like(offset))
    factor = torch.where(opens, torch.zeros_like(share), 1 - share).expand_as(offset)
    factor = factor.to(offset.dtype)
    states = diagonal_recurrence(factor.movedim(-2, 0), offset.movedim(-2, 0), torch.zeros_like(offset[..., 0, :]))
    filled = states[1:].movedim(0, -2)  # (*batch, Q, M), sorted
    return filled.gather(-2, per_motion(order.argsort(-1)))


def _batch_shape(times: Tensor, values: Tensor, queries: Tensor, standard_normal: Tensor) -> torch.Size:
    shapes = ", ".join(
        f"`{name}` {tuple(tensor.shape)}"
        for name, tensor in (
            ("times", times),
            ("values", values),
            ("queries", queries),
            ("standard_normal", standard_normal),
        )
    )
    if times.dim() == 0 or queries.dim() == 0 or values.dim() < 2 or standard_normal.dim() < 2 or times.shape[-1] < 2:
        fits = False
    else:
        points = values.shape[-2] == times.shape[-1] and standard_normal.shape[-2] == queries.shape[-1] > 0
        fits = points and values.shape[-1] == standard_normal.shape[-1]
    if fits:
        leading = (times.shape[:-1], values.shape[:-2], queries.shape[:-1], standard_normal.shape[:-2])
        try:
            return torch.broadcast_shapes(*leading)
        except RuntimeError:
            pass
    msg = (
        "expected `times` (*batch, N) with N >= 2, `values` (*batch, N, M), `queries` (*batch, Q) with Q >= 1 and "
        f"`standard_normal` (*batch, Q, M), with batch dimensions that broadcast; received {shapes}."
    )
    raise ValueError(msg)


def _check_times(known: Tensor, queries: Tensor) -> None:
    """Known times ascend, and the sorted queries lie between them."""
    if not bool((known.diff(dim=-1) >= 0).all()):
        msg = "`times` must be finite and not decrease along the last axis; sort the known points first."
        raise ValueError(msg)
    inside = (queries >= known[..., :1]) & (queries <= known[..., -1:])
    if not bool(inside.all()):
        first = tuple((~inside).nonzero()[0].tolist())
        low, high = float(known[(*first[:-1], 0)]), float(known[(*first[:-1], -1)])
        msg = (
            f"`queries` must lie between the known times [{low:g}, {high:g}], received {float(queries[first]):g}. A "
            "bridge does not extrapolate: add brownian_increments to the last value for later times."
        )
        raise ValueError(msg)
