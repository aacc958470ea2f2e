r"""Resampling of weighted particles: ancestors from log-weights, whole batches at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import check_floating

__all__ = ["RESAMPLING", "draw", "effective_sample_size", "resample"]

RESAMPLING = ("multinomial", "stratified", "systematic")


def resample(log_weights: Tensor, method: str = "systematic", num: int | None = None) -> Tensor:
    r"""Ancestors of a new generation of equally weighted particles.

    With points :math:`0 \le u_1 < \dots < u_n < 1` and cumulative weights C, the i-th new particle descends from the
    particle j with :math:`C_{j-1} \le u_i < C_j`. The methods differ in the points:

    * "systematic": :math:`u_i = (i - 1 + U) / n` with one U for all;
    * "stratified": :math:`u_i = (i - 1 + U_i) / n`;
    * "multinomial": n sorted uniform numbers, so that ancestors are independent up to their order.

    In all three the expected number of descendants of a particle is n times its weight. A particle without weight has
    none. Ancestors come in increasing order. Cumulative weights are summed in float64. Cost: O(P) for the first two,
    O(P log P) for "multinomial", no loop over the batch.

    Args:
        log_weights: unnormalised log-weights, ``(P, *batch)``; -inf is a weight of 0.
        method: "systematic", "stratified" or "multinomial".
        num: number n of new particles; P if None.

    Returns:
        ancestors ``(n, *batch)``, int64.

    Raises:
        TypeError: if `log_weights` is no floating-point tensor.
        ValueError: if `method` is unknown, `num` is not positive, or in some batch entry all weights are 0 or one is
            NaN or infinite.

    References:
        Douc, Cappé, Moulines (2005), Comparison of resampling schemes for particle filtering, arXiv cs/0507025,
        sections 2.1, 2.3 and 2.4; Devroye (1986), Non-uniform random variate generation, section V.3.1, for
        sorted uniform numbers.

    Example:
        >>> resample(torch.tensor([0.0, -torch.inf, 0.0]), num=4)
        tensor([0, 0, 2, 2])
    """
    if method not in RESAMPLING:
        msg = f"`method` must be one of {RESAMPLING}, received {method!r}."
        raise ValueError(msg)
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
        msg = f"`num` must be a positive integer, received {num!r}."
        raise ValueError(msg)
    with torch.no_grad():
        cumulative = _cumulative(log_weights)
        count = cumulative.shape[0] if num is None else num
        below = _POINTS[method](cumulative, count)  # how many points lie below C_j
        # point i descends from the first j with more than i points below C_j: count the j with at most i of them
        marks = torch.zeros((count + 1, *cumulative.shape[1:]), dtype=torch.long, device=below.device)
        marks.scatter_add_(0, below, torch.ones_like(below))
        return marks[:-1].cumsum(0)


def draw(log_weights: Tensor) -> Tensor:
    """One index along the first axis for every entry of the others, with probability proportional to its weight.

    Shape:
        log_weights: ``(P, ...)``, unnormalised · returns ``(...)``, int64.

    Raises:
        TypeError: if `log_weights` is no floating-point tensor.
        ValueError: if somewhere all weights are 0, or one is NaN or infinite.
    """
    with torch.no_grad():
        cumulative = _cumulative(log_weights)
        point = _uniform(cumulative.shape[1:], cumulative)
        return (cumulative <= point).sum(0)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Effective number of particles :math:`1 / \sum_p \bar w_p^2` of normalised weights, between 1 and P.

    Shape:
        log_weights: ``(P, *batch)``, unnormalised · returns ``(*batch)``.

    Raises:
        TypeError: if `log_weights` is no floating-point tensor.
        ValueError: if somewhere all weights are 0, or one is NaN or infinite.

    References:
        Kong, Liu, Wong (1994), Sequential imputations and Bayesian missing data problems, section 4.1.
    """
    with torch.no_grad():
        _cumulative(log_weights)  # its checks
    return log_weights.softmax(0).square().sum(0).reciprocal()


def _cumulative(log_weights: Tensor) -> Tensor:
    """Cumulative weights along the first axis in float64; the last is 1, and those of zero weight add nothing."""
    check_floating(log_weights=log_weights)
    if log_weights.dim() == 0 or log_weights.shape[0] == 0:
        msg = f"`log_weights` must have shape (P, *batch) with P >= 1, received {tuple(log_weights.shape)}."
        raise ValueError(msg)
    cumulative = log_weights.softmax(0).cumsum(0, dtype=torch.float64)
    total = cumulative[-1]
    if not bool(torch.isfinite(total).all()):
        where = (~torch.isfinite(total)).nonzero()[0].tolist()
        column = log_weights[(slice(None), *where)]
        kind = "NaN" if bool(column.isnan().any()) else "infinite" if bool((column == torch.inf).any()) else "all zero"
        entry = f" in batch entry {where}" if where else ""
        msg = f"`log_weights` must have a finite sum of weights; the weights are {kind}{entry}."
        raise ValueError(msg)
    return cumulative / total


def _uniform(shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), so far below 1 that sums with a number of particles do not round up to the next."""
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp_(max=1 - 1e-9)


def _systematic(cumulative: Tensor, count: int) -> Tensor:
    return (cumulative * count - _uniform(cumulative.shape[1:], cumulative)).ceil_().long()


def _stratified(cumulative: Tensor, count: int) -> Tensor:
    scaled = cumulative * count
    whole = scaled.floor().clamp_(max=count - 1).long()
    offset = _uniform((count, *cumulative.shape[1:]), cumulative).gather(0, whole)
    return whole + (offset < scaled - whole).long()


def _multinomial(cumulative: Tensor, count: int) -> Tensor:
    # sorted uniform numbers without sorting: the times of a Poisson process, over that of the next event
    times = torch.empty((*cumulative.shape[1:], count + 1), dtype=cumulative.dtype, device=cumulative.device)
    times = times.exponential_().cumsum(-1)
    points = times[..., :-1] / times[..., -1:]
    below = torch.searchsorted(points.clamp_(max=1 - 1e-12), cumulative.movedim(0, -1).contiguous())
    return below.movedim(-1, 0)


_POINTS = {"multinomial": _multinomial, "stratified": _stratified, "systematic": _systematic}
