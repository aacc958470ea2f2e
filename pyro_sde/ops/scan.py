r"""Linear recurrences over time: five ways to compute one, equal to each other, with a backward pass of their own.

The gradient of a linear recurrence is the same recurrence backwards in time, so one function serves a filter, the
adjoint of a path, a state space layer and Newton's method on all steps at once, and it can be differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._arguments import check_tensors
from .jit import may_compile

__all__ = ["diagonal_recurrence", "linear_recurrence"]

# Measured on one core (`bench scan` has some of it).
_FEW_STEPS = 32  # the loop is as fast as the other forms below
# Multiplications per step, rows x D x D x (D + 1), up to which chunks beat the loop. From D = 8 torch multiplies small
# matrices with a library: at K = 1000 chunks are 1.4x faster at 1 150 and 1.2x slower at 2 300 for D = 3, 3.2x faster
# at 2 300 and equal at 9 200 for D = 8; elementwise 1.4x faster at 1 000 and 1.1x slower at 2 000.
_CHUNKED_WORK, _CHUNKED_WORK_WIDE = 1500, 9000
_COMPILED_TYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def linear_recurrence(
    matrices: Tensor, offsets: Tensor, initial: Tensor, *, reverse: bool = False, form: str = "auto"
) -> Tensor:
    r"""States of :math:`x_{k+1} = M_k x_k + b_k`, or of the adjoint recurrence backwards in time.

    With `reverse`, :math:`\lambda_k = b_k + M_k^\top \lambda_{k+1}` from :math:`\lambda_K` down: what a gradient does
    that arrives as :math:`b_k` at state k of the first recurrence.

    Forms: "loop" takes K small operations and is exact in the sense of any loop. "chunked" (chunks of about
    :math:`\sqrt K` steps side by side, then across chunks; :math:`2\sqrt K` operations) and "associative" (odd-even
    reduction, :math:`2 \log_2 K` operations) multiply matrices, D + 1 times the arithmetic. "compiled" is the loop in
    machine code (extra ``pyro_sde[fast]``, CPU; a first call compiles for a second or reads a cache). "auto" chooses
    the fastest by measured cost: "compiled" if it is there, else by K, D and the batch. Memory: the matrices and D + 2
    times the offsets more if chunked or associative.

    Backwards: one more recurrence in the other direction and one outer product per step; any derivative of it. Inside
    the transforms of ``torch.func`` and in traces a plain loop runs instead.

    Note:
        "chunked" and "associative" round relative to the largest *product of matrices* times a state, the others
        relative to the largest state. That is the same for contracting and neutral products (1e-10 in float64 is
        tested) and where states grow as the products do. Where the products expand but the states do not, digits are
        lost in that ratio, and products of a chunk that overflow turn into NaN: use the other two there.

    Args:
        matrices: ``(K, *batch, D, D)``, time leftmost.
        offsets: ``(K, *batch, D)``; as many batch dimensions as `matrices`, which broadcast.
        initial: :math:`x_0`, or :math:`\lambda_K` with `reverse`; ``(*batch, D)``.
        reverse: backwards in time with transposed (not conjugated) matrices.
        form: "auto", "loop", "chunked", "associative" or "compiled".

    Returns:
        ``(K + 1, *batch, D)``, in the order of time, `initial` among them.

    Raises:
        TypeError: if an argument is no tensor.
        ValueError: if shapes do not fit, `form` is unknown or cannot take such tensors.
        ModuleNotFoundError: if "compiled" is asked for without the extra.

    References:
        Blelloch (1990), Prefix sums and their applications, CMU-CS-90-190, section 1.4 (a recurrence as a scan).
        Martin and Cundy (2018), Parallelizing linear recurrent neural nets over sequence length, arXiv:1709.04057.

    Example:
        >>> matrices, offsets = 2 * torch.eye(1).expand(3, 1, 1), torch.ones(3, 1)
        >>> linear_recurrence(matrices, offsets, torch.zeros(1)).squeeze(-1)
        tensor([0., 1., 3., 7.])
    """
    check_tensors(matrices=matrices, offsets=offsets, initial=initial)
    if matrices.dim() < 3 or matrices.shape[-1] != matrices.shape[-2]:
        msg = (
            f"`matrices` must have shape (K, *batch, D, D), received {tuple(matrices.shape)}. Use "
            "`diagonal_recurrence` for elementwise factors (K, *batch, D)."
        )
        raise ValueError(msg)
    return _recurrence(matrices, offsets, initial, reverse, form)


def diagonal_recurrence(
    factors: Tensor, offsets: Tensor, initial: Tensor, *, reverse: bool = False, form: str = "auto"
) -> Tensor:
    r"""States of the elementwise recurrence :math:`x_{k+1} = a_k x_k + b_k`; otherwise as `linear_recurrence`.

    Shape:
        factors: ``(K, *batch, D)`` · offsets: ``(K, *batch, D)`` · initial: ``(*batch, D)`` · returns
        ``(K + 1, *batch, D)``.

    Raises:
        TypeError: if an argument is no tensor.
        ValueError: if shapes do not fit, `form` is unknown or cannot take such tensors.
        ModuleNotFoundError: if "compiled" is asked for without the extra.

    Example:
        >>> diagonal_recurrence(torch.full((3, 1), 2.0), torch.ones(3, 1), torch.zeros(1)).squeeze(-1)
        tensor([0., 1., 3., 7.])
    """
    check_tensors(factors=factors, offsets=offsets, initial=initial)
    return _recurrence(factors.unsqueeze(-1), offsets, initial, reverse, form)


def _recurrence(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool, form: str) -> Tensor:
    """Recurrence with matrices ``(K, *batch, D, D)``, or ``(K, *batch, D, 1)`` for elementwise factors."""
    if form not in _FORMS and form != "auto":
        msg = f"`form` must be one of {['auto', *_FORMS]}, received {form!r}."
        raise ValueError(msg)
    batch = _batch_shape(matrices, offsets, initial)
    num_steps, rows, (width, columns) = offsets.shape[0], math.prod(batch), matrices.shape[-2:]
    if num_steps == 0:
        return initial.expand(*batch, width).unsqueeze(0)
    dtype = torch.promote_types(torch.promote_types(matrices.dtype, offsets.dtype), initial.dtype)
    # (K, *batch, D, D) -> (K, N, D, D), and the same for the others
    flat = (
        matrices.to(dtype).expand(-1, *batch, -1, -1).reshape(num_steps, rows, width, columns).resolve_conj(),
        offsets.to(dtype).expand(-1, *batch, -1).reshape(num_steps, rows, width),
        initial.to(dtype).expand(*batch, width).reshape(rows, width),
    )
    chosen = _choose(flat[0]) if form == "auto" else form
    if chosen == "compiled" and not _compiles(flat[0]):
        msg = (
            f'`form` "compiled" takes {_COMPILED_TYPES} on the CPU, received {dtype} on {matrices.device}; use "auto".'
        )
        raise ValueError(msg)
    transformed = torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()
    states = _plain(*flat, reverse) if transformed else _Recurrence.apply(*flat, reverse, _FORMS[chosen])
    return states.reshape(num_steps + 1, *batch, width)


def _batch_shape(matrices: Tensor, offsets: Tensor, initial: Tensor) -> torch.Size:
    same_rank = matrices.dim() == offsets.dim() + 1 == initial.dim() + 2 >= 3
    if same_rank and matrices.shape[0] == offsets.shape[0]:
        batches = (matrices.shape[1:-2], offsets.shape[1:-1], initial.shape[:-1])
        try:
            if matrices.shape[-2] == offsets.shape[-1] == initial.shape[-1]:
                return torch.broadcast_shapes(*batches)
        except RuntimeError:
            pass
    msg = (
        "`offsets` must have shape (K, *batch, D) and `initial` (*batch, D), with the K, D and number of batch "
        f"dimensions of the coefficients, {tuple(matrices.shape[:-1])}; received {tuple(offsets.shape)} and "
        f"{tuple(initial.shape)}. Insert dimensions of size 1 to share something between the series of a batch."
    )
    raise ValueError(msg)


def _choose(matrices: Tensor) -> str:
    """The fastest form for flattened coefficients: the one place where this is decided."""
    num_steps, rows, width, columns = matrices.shape
    if num_steps < _FEW_STEPS:
        return "loop"
    if may_compile() and _compiles(matrices) and _kernels() is not None:
        return "compiled"
    if matrices.device.type != "cpu":
        return "associative"  # the fewest launches
    most = _CHUNKED_WORK_WIDE if columns >= 8 else _CHUNKED_WORK
    return "chunked" if rows * width * columns * (columns + 1) <= most else "loop"


def _compiles(matrices: Tensor) -> bool:
    return matrices.device.type == "cpu" and matrices.dtype in _COMPILED_TYPES


class _Recurrence(torch.autograd.Function):
    """The recurrence in one direction; its gradient is the one in the other direction, by the same function."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        matrices: Tensor,
        offsets: Tensor,
        initial: Tensor,
        reverse: bool,
        run: Callable[..., Tensor],
    ) -> Tensor:
        states = run(matrices.detach(), offsets.detach(), initial.detach(), reverse)
        ctx.save_for_backward(matrices, states)
        ctx.reverse, ctx.run = reverse, run
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:  # noqa: ANN401
        (gradient,) = gradients
        matrices, states = ctx.saved_tensors
        first, last = (-1, 0) if ctx.reverse else (0, -1)
        arriving = gradient[1:] if ctx.reverse else gradient[:-1]
        adjoint = _Recurrence.apply(matrices.conj().resolve_conj(), arriving, gradient[last], not ctx.reverse, ctx.run)
        # x_{k+1} = M_k x_k and lambda_k = M_k^T lambda_{k+1}: either way the late one times the early one
        late, early = (states.conj(), adjoint) if ctx.reverse else (adjoint, states.conj())
        by_matrix = None
        if ctx.needs_input_grad[0]:
            late, early = late[1:], early[:-1]
            by_matrix = late.unsqueeze(-1) * early.unsqueeze(-1 if _is_diagonal(matrices) else -2)
        by_offset = adjoint[:-1] if ctx.reverse else adjoint[1:]
        return by_matrix, by_offset, adjoint[first], None, None


def _is_diagonal(matrices: Tensor) -> bool:
    return matrices.shape[-1] == 1


def _forward_in_time(matrices: Tensor, offsets: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    if not reverse:
        return matrices, offsets
    return (matrices if _is_diagonal(matrices) else matrices.mT).flip(0), offsets.flip(0)


def _loop(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    diagonal = _is_diagonal(matrices)
    states = offsets.new_empty(len(offsets) + 1, *initial.shape, 1)
    given, x = offsets.unsqueeze(-1).unbind(0), states.unbind(0)
    factors = (matrices.mT if reverse and not diagonal else matrices).unbind(0)
    if reverse:
        given, factors, x = given[::-1], factors[::-1], x[::-1]
    x[0].copy_(initial.unsqueeze(-1))
    product = torch.addcmul if diagonal else torch.baddbmm
    for offset, factor, now, following in zip(given, factors, x, x[1:], strict=False):  # x has one more
        product(offset, factor, now, out=following)
    return states.squeeze(-1)


def _plain(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """The loop by operations that functional transforms and traces understand."""
    diagonal = _is_diagonal(matrices)
    matrices, offsets = _forward_in_time(matrices, offsets, reverse)
    states = [initial.unsqueeze(-1)]
    for matrix, offset in zip(matrices.unbind(0), offsets.unsqueeze(-1).unbind(0), strict=True):
        states.append(offset + (matrix * states[-1] if diagonal else matrix @ states[-1]))
    return torch.stack(states[::-1] if reverse else states).squeeze(-1)


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """Product of coefficients ``(n, D, D)`` or ``(n, D, 1)`` with columns ``(n, D, c)``."""
    return left * right if _is_diagonal(left) else torch.bmm(left, right)


def _chunked(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    matrices, offsets = _forward_in_time(matrices, offsets, reverse)
    num_steps, rows, width, columns = matrices.shape
    length = math.isqrt(num_steps)
    count = -(-num_steps // length)
    missing = length * count - num_steps  # padded with zeros at the end, where nothing follows
    if missing:
        matrices = torch.cat([matrices, matrices.new_zeros(missing, *matrices.shape[1:])])
        offsets = torch.cat([offsets, offsets.new_zeros(missing, *offsets.shape[1:])])
    # position in the chunk leftmost, all chunks and rows side by side: (length, count * N, D, columns)
    steps = matrices.reshape(count, length, rows, width, columns).transpose(0, 1)
    steps = steps.reshape(length, count * rows, width, columns)
    # since the start of its chunk every position is x -> P x + c: [P | c], (length, count * N, D, columns + 1)
    maps = steps.new_zeros(length, count * rows, width, columns + 1)
    maps[..., -1].copy_(offsets.reshape(count, length, rows, width).transpose(0, 1).reshape(length, -1, width))
    maps[0, ..., :-1] = steps[0]
    product = Tensor.addcmul_ if _is_diagonal(matrices) else Tensor.baddbmm_
    views = maps.unbind(0)
    for step, before, after in zip(steps.unbind(0)[1:], views, views[1:], strict=False):
        product(after, step, before)
    across = maps[-1].reshape(count, rows, width, columns + 1)
    starts = _loop(across[..., :-1], across[..., -1], initial, False)[:-1].reshape(1, -1, width, 1)
    factors = maps[..., :-1]
    inside = factors * starts if _is_diagonal(matrices) else factors @ starts
    inside = inside.squeeze(-1) + maps[..., -1]
    states = offsets.new_empty(length * count + 1, rows, width)
    states[0] = initial
    states[1:].view(count, length, rows, width).copy_(inside.view(length, count, rows, width).transpose(0, 1))
    states = states[: num_steps + 1]
    return states.flip(0) if reverse else states


def _associative(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    matrices, offsets = _forward_in_time(matrices, offsets, reverse)
    num_steps, rows, width, columns = matrices.shape
    levels = max(0, (num_steps - 1).bit_length() - 2)
    padded = -(-num_steps >> levels) << levels  # halves evenly at every level
    maps = matrices.new_zeros(rows, padded, width, columns + 1)  # rows leftmost, so that neighbours are a view
    maps[:, :num_steps, :, :-1] = matrices.transpose(0, 1)
    maps[:, :num_steps, :, -1] = offsets.transpose(0, 1)
    states = torch.cat([initial.unsqueeze(1), _odd_even(maps, initial, levels)[:, :num_steps]], 1)
    states = states.transpose(0, 1)
    return states.flip(0) if reverse else states.contiguous()


def _odd_even(maps: Tensor, initial: Tensor, levels: int) -> Tensor:
    """States after every map x -> P x + c, maps ``[P | c]`` ``(N, n, D, columns + 1)``; ``(N, n, D)``."""
    rows, count, width, columns = maps.shape
    if levels == 0:
        along = maps.transpose(0, 1)
        return _loop(along[..., :-1], along[..., -1], initial, False)[1:].transpose(0, 1)
    pairs = maps.view(-1, 2, width, columns)  # (N * n / 2, 2, D, columns + 1)
    first, second = pairs[:, 0], pairs[:, 1]
    joined = _multiply(second[..., :-1], first)
    joined[..., -1] += second[..., -1]
    late = _odd_even(joined.view(rows, count // 2, width, columns), initial, levels - 1)  # after every second map
    before = torch.cat([initial.unsqueeze(1), late[:, :-1]], 1).reshape(-1, width, 1)
    early = _multiply(first[..., :-1], before).squeeze(-1) + first[..., -1]
    return torch.stack([early.view(late.shape), late], 2).view(rows, count, width)


def _compiled(matrices: Tensor, offsets: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    kernels = _kernels()
    if kernels is None:
        msg = '`form` "compiled" needs numba, which is not installed. Install pyro_sde[fast], or use "auto".'
        raise ModuleNotFoundError(msg)
    states = offsets.new_empty(len(offsets) + 1, *initial.shape)
    states[-1 if reverse else 0] = initial
    # contiguous, so that one version of each kernel per type is compiled
    arrays = (tensor.resolve_conj().resolve_neg().contiguous().numpy() for tensor in (matrices, offsets))
    kernels[_is_diagonal(matrices)](*arrays, states.numpy(), reverse)
    return states


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Loops in machine code, for matrices and for elementwise factors; None without numba."""
    try:
        import numba
    except ImportError:  # absent, or too old for the installed numpy
        return None

    # Plain loops and one flag: a backward version of its own would double the time to compile.
    def matrix_steps(matrices: Any, offsets: Any, states: Any, reverse: bool) -> None:  # noqa: ANN401
        num_steps, rows, width = offsets.shape
        for step in range(num_steps):
            k = num_steps - 1 - step if reverse else step
            now, following = (k + 1, k) if reverse else (k, k + 1)
            for row in range(rows):
                for i in range(width):
                    value = offsets[k, row, i]
                    for j in range(width):
                        entry = matrices[k, row, j, i] if reverse else matrices[k, row, i, j]
                        value += entry * states[now, row, j]
                    states[following, row, i] = value

    def diagonal_steps(factors: Any, offsets: Any, states: Any, reverse: bool) -> None:  # noqa: ANN401
        num_steps, rows, width = offsets.shape
        for step in range(num_steps):
            k = num_steps - 1 - step if reverse else step
            now, following = (k + 1, k) if reverse else (k, k + 1)
            for row in range(rows):
                for i in range(width):
                    states[following, row, i] = offsets[k, row, i] + factors[k, row, i, 0] * states[now, row, i]

    try:
        return numba.njit(matrix_steps, cache=True), numba.njit(diagonal_steps, cache=True)
    except RuntimeError:  # no folder to cache in: a read-only installation without a home
        return numba.njit(matrix_steps), numba.njit(diagonal_steps)


_FORMS = {"associative": _associative, "chunked": _chunked, "compiled": _compiled, "loop": _loop}
