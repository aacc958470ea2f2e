"""Brownian motion: increments of a grid, a path that any query sees the same, bridges between known points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import check_real, is_number
from ._brownian_bridge import brownian_bridge as brownian_bridge
from ._brownian_descent import descend
from ._brownian_hash import AREA, NODE, child_seeds, keys, normals, pair_node
from ._brownian_increments import LEVY as LEVY
from ._brownian_increments import BrownianIncrements as BrownianIncrements
from ._brownian_increments import area_from_normals
from ._brownian_increments import brownian_increments as brownian_increments
from ._brownian_increments import coarsen as coarsen
from ._brownian_increments import combine as combine
from ._brownian_increments import normal_width as normal_width
from ._brownian_increments import wiener_increments as wiener_increments
from ._grid_times import as_tensor

__all__ = [
    "BrownianIncrements",
    "LEVY",
    "VirtualBrownianTree",
    "brownian_bridge",
    "brownian_increments",
    "coarsen",
    "combine",
    "normal_width",
    "wiener_increments",
]

_MAX_DEPTH = 50  # the place of a float64 time in [0, 1] has 53 bits


class VirtualBrownianTree:
    r"""Brownian path on [start, end] as a function of a seed: any times, any order, any batch, nothing stored.

    One seed per series. The path of a seed does not depend on the batch it is in, on the other times asked for or on
    their order: its values are the same bits in batch 1 and batch 64, on a grid and on its refinement. A time is a
    descent through a binary tree of depth `depth`; N times of B series take `depth` batched operations, about
    B N M (2 + depth - log2 N) normals, and memory for one level of these. Nothing is kept between calls.

    The law is exact for any set of times of which no two lie in one leaf, an interval of length
    (end - start) / 2^depth; so choose the leaf shorter than the smallest step. Within one leaf each single time has its
    exact law, but neighbours are more alike than those of Brownian motion.

    W is computed in float64 and rounded to `dtype` at the end. Increments are differences of the path: they add up over
    neighbouring steps to rounding of float64 (not bit for bit), and so do H and `combine`. H has an absolute error of
    about 1e-16 times the square root of (end - start)^3 / h^2.

    Note:
        The path is a function of (seed, start, end, depth, levy): a tree with areas H has another path than one
        without, of the same law. Lévy areas A are drawn given (W, H) of the two times asked for, from a hash of these
        times: the same query gives the same A, but A of a union is not that of `combine`. Two spellings of one time
        that differ by rounding (0.1 in float32 and in float64) are two times. Times are constants: no gradient flows
        to them through W, H and A.

    Args:
        start: first time, finite.
        end: last time, ``> start``.
        brownian_dim: number M of Brownian motions, independent of each other.
        seed: an int, or int64 ``(*batch,)``, one per series, on the device on which the path is wanted. Equal seeds
            give equal paths.
        depth: levels of the tree, 1 to 50.
        dtype: of the results; torch's default type if None.
        levy: what increments know: "none", "space-time" (twice the cost) or "area".

    Attributes:
        start: first time.
        end: last time.
        brownian_dim: number M of Brownian motions.
        seed: int64 ``(*batch,)``.
        depth: levels of the tree.
        dtype: of the results.
        levy: what increments know.

    Raises:
        ValueError: if an argument is out of its range.
        TypeError: if `start` or `end` is no number, or `seed` neither an int nor an int64 tensor.

    References:
        Li, Wong, Chen and Duvenaud (2020), Scalable gradients for SDEs, arXiv:2001.01328, algorithm 3 (the tree).
        Foster (2020), Numerical approximations for stochastic differential equations, thesis, Oxford, theorem 6.1.4
        (the split of W and H).
        Jelinčič, Foster and Kidger (2024), Single-seed generation of Brownian paths and integrals for adaptive and
        high order SDE solvers, arXiv:2405.06464 (leaves split at the query).

    Example:
        >>> tree = VirtualBrownianTree(0.0, 1.0, brownian_dim=2, seed=torch.tensor([3, 4]))
        >>> path = tree.path([0.0, 0.25, 0.7])
        >>> path.shape
        torch.Size([2, 3, 2])
        >>> torch.equal(path[1, 2], VirtualBrownianTree(0.0, 1.0, brownian_dim=2, seed=4).path([0.7])[0])
        True
    """

    def __init__(
        self,
        start: float,
        end: float,
        brownian_dim: int,
        seed: int | Tensor,
        *,
        depth: int = 20,
        dtype: torch.dtype | None = None,
        levy: str = "none",
    ) -> None:
        for name, value in (("start", start), ("end", end)):
            if not is_number(value):
                msg = f"`{name}` must be a number, received {type(value).__name__}."
                raise TypeError(msg)
        self.start, self.end = float(start), float(end)
        if not (math.isfinite(self.start) and math.isfinite(self.end) and self.start < self.end):
            msg = f"`start` and `end` must be finite with start < end, received {start} and {end}."
            raise ValueError(msg)
        normal_width(brownian_dim, levy)  # raises by name
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= _MAX_DEPTH:
            msg = f"`depth` must be an integer from 1 to {_MAX_DEPTH}, received {depth!r}."
            raise ValueError(msg)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            msg = f"`dtype` must be a real floating point type, received {dtype}."
            raise ValueError(msg)
        self.brownian_dim, self.depth, self.dtype, self.levy = brownian_dim, depth, dtype, levy
        self.seed = _as_seed(seed)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the seeds."""
        return self.seed.shape

    def path(self, times: Tensor | Sequence[float]) -> Tensor:
        r"""Values :math:`W_t - W_{start}`.

        Args:
            times: ``(N,)`` or ``(*batch, N)``, in [start, end], any order; `batch` broadcasts with that of the seeds.

        Returns:
            ``(*batch, N, M)``.

        Raises:
            ValueError: if a time lies outside [start, end] or `times` has no axis.
        """
        unit, _ = self._unit_path(self._unit_times(times))
        return (math.sqrt(self.end - self.start) * unit).to(self.dtype)

    def increments(self, times: Tensor | Sequence[float]) -> BrownianIncrements:
        """Increments between consecutive times; all 0 where a time is repeated (a padded step).

        Args:
            times: ``(K + 1,)`` or ``(*batch, K + 1)``, in [start, end], not decreasing.

        Returns:
            the record of K steps, time at -2: `dt` ``(*batch of times, K, 1)``, `W` and `H` ``(*batch, K, M)``, `A`
            ``(*batch, K, M, M)``; H and A as far as `levy` asks.

        Raises:
            ValueError: if a time lies outside [start, end], times decrease or `times` has no axis.
        """
        times = self._as_times(times)
        h, W, H, normal = self._unit_increments(times)
        A = None if H is None or normal is None else area_from_normals(h, W, H, normal)
        span = self.end - self.start
        scale = math.sqrt(span)
        dt = times.diff(dim=-1).unsqueeze(-1).to(self.dtype)
        scaled = (None if f is None else (c * f).to(self.dtype) for c, f in ((scale, W), (scale, H), (span, A)))
        return BrownianIncrements(dt, *scaled)  # type: ignore[arg-type]

    def __call__(self, s: float | Tensor, t: float | Tensor) -> BrownianIncrements:
        """Increments over one interval [s, t] per series, without an axis of time.

        Args:
            s: left end, a number or ``(*batch,)``.
            t: right end, ``>= s``, a number or ``(*batch,)``.

        Returns:
            `dt` ``(*batch, 1)``, `W` and `H` ``(*batch, M)``, `A` ``(*batch, M, M)``.

        Raises:
            ValueError: if s > t or one of them lies outside [start, end].
        """
        device = self.seed.device
        ends = [as_tensor(x, name, dtype=torch.float64, device=device) for x, name in ((s, "s"), (t, "t"))]
        record = self.increments(torch.stack(torch.broadcast_tensors(*ends), -1))
        dt, W, H, A = record
        return BrownianIncrements(
            dt.squeeze(-2),
            W.squeeze(-2),
            None if H is None else H.squeeze(-2),
            None if A is None else A.squeeze(-3),
        )

    def standard_normals(self, times: Tensor | Sequence[float]) -> Tensor:
        r"""The increments of a grid as standard normals: what `brownian_increments` turns back into them.

        :math:`W/\sqrt h`, :math:`H \sqrt{12/h}` and the normals of A, as far as `levy` asks; 0 on padded steps.

        Args:
            times: grid times, ``(K + 1,)`` or ``(*batch, K + 1)``, in [start, end], not decreasing.

        Returns:
            ``(K, *batch, normal_width(M, levy))``, time leftmost.

        Raises:
            ValueError: as for `increments`.
        """
        h, W, H, normal = self._unit_increments(self._as_times(times))
        moving = h > 0
        inverse = torch.where(moving, h, torch.ones_like(h)).rsqrt()  # W and H are 0 on padded steps
        parts = [inverse * W]
        if H is not None:
            parts.append(math.sqrt(12) * inverse * H)
        if normal is not None:
            parts.append(torch.where(moving, normal, torch.zeros_like(normal)))
        return torch.cat(parts, -1).movedim(-2, 0).to(self.dtype)

    def children(self, shape: Sequence[int]) -> VirtualBrownianTree:
        """Tree of independent paths, such as particles: `shape` of them for each seed, independent of this path too.

        Child number i (in row-major order of `shape`) of a seed is the same whatever the shape and the batch.

        Args:
            shape: dimensions to put on the left of those of the seeds.

        Returns:
            a tree with the batch shape ``(*shape, *batch)``.

        Raises:
            ValueError: if `shape` has an entry that is not a positive integer.
        """
        shape = tuple(shape)
        if not all(isinstance(n, int) and n > 0 for n in shape):
            msg = f"`shape` must consist of positive integers, received {shape}."
            raise ValueError(msg)
        seed = child_seeds(self.seed, shape)
        options = {"depth": self.depth, "dtype": self.dtype, "levy": self.levy}
        return VirtualBrownianTree(self.start, self.end, self.brownian_dim, seed, **options)

    def __repr__(self) -> str:
        """Interval, shapes and options, for error messages."""
        sizes = f"brownian_dim={self.brownian_dim}, batch_shape={tuple(self.batch_shape)}, depth={self.depth}"
        return f"VirtualBrownianTree([{self.start:g}, {self.end:g}], {sizes}, dtype={self.dtype}, levy={self.levy!r})"

    def _as_times(self, times: Tensor | Sequence[float]) -> Tensor:
        if not isinstance(times, Tensor):
            times = as_tensor(times, "times", dtype=torch.float64, device=self.seed.device)
        check_real(times=times)
        if times.dim() == 0:
            msg = f"`times` must have shape (N,) or (*batch, N), received a number; use [{float(times):g}]."
            raise ValueError(msg)
        return times

    def _unit_times(self, times: Tensor | Sequence[float]) -> Tensor:
        """Times as places in [0, 1], float64."""
        times = self._as_times(times).detach()
        precision = torch.finfo(times.dtype if times.is_floating_point() else torch.float64).eps
        times = times.double()
        # the ends themselves may be spelled in the precision of the query
        slack = 2 * precision * max(abs(self.start), abs(self.end))
        inside = (times >= self.start - slack) & (times <= self.end + slack)
        if not bool(inside.all()):
            outside = float(times[~inside][0])
            msg = (
                f"`times` must lie inside the interval [{self.start:g}, {self.end:g}] of this Brownian motion, "
                f"received {outside:g}. Build the tree with `start` and `end` that cover all queries."
            )
            raise ValueError(msg)
        place = (times - self.start) / (self.end - self.start)
        place = torch.where((times - self.start).abs() <= slack, torch.zeros_like(place), place)
        return torch.where((times - self.end).abs() <= slack, torch.ones_like(place), place)

    def _unit_path(self, unit: Tensor) -> tuple[Tensor, Tensor | None]:
        """W and, with areas, its integral on the interval [0, 1], ``(*batch, N, M)`` in float64."""
        space_time = self.levy != "none"
        streams = self.brownian_dim if space_time else (self.brownian_dim + 1) // 2
        key = keys(self.seed, NODE, streams)
        return descend(key, unit, self.depth, self.brownian_dim, space_time)

    def _unit_increments(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Steps ``(..., K, 1)``, W, H and the normals of A over them on [0, 1], float64."""
        unit = self._unit_times(times)
        steps = unit.diff(dim=-1)
        if not bool((steps >= 0).all()):
            msg = "`times` must not decrease along the last axis; sort them, or use `path` for times in any order."
            raise ValueError(msg)
        h = steps.unsqueeze(-1)
        path, integral = self._unit_path(unit)
        W = path.diff(dim=-2)
        if integral is None:
            return h, W, None, None
        moved = integral.diff(dim=-2) - h * path[..., :-1, :]  # int (W_u - W_s) du
        H = moved / torch.where(h > 0, h, torch.ones_like(h)) - 0.5 * W
        if self.levy != "area":
            return h, W, H, None
        pairs = self.brownian_dim * (self.brownian_dim - 1) // 2
        key = keys(self.seed, AREA, (pairs + 1) // 2)
        node = pair_node(unit[..., :-1], unit[..., 1:])
        return h, W, H, normals(key, node, pairs).expand(*W.shape[:-1], pairs)


def _as_seed(seed: int | Tensor) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            msg = f"`seed` must be an int or an int64 tensor (*batch,), one seed per series, received {seed.dtype}."
            raise TypeError(msg)
        return seed.clone()
    if isinstance(seed, bool) or not isinstance(seed, int):
        msg = f"`seed` must be an int or an int64 tensor (*batch,), one seed per series, received {seed!r}."
        raise TypeError(msg)
    if not -(2**63) <= seed < 2**63:
        msg = f"`seed` must fit into 64 bits, from -2**63 to 2**63 - 1, received {seed}."
        raise ValueError(msg)
    return torch.tensor(seed)
