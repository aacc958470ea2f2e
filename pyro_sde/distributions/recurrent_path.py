r"""The law of a path whose transitions remember all of it in the state of a recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..ops._arguments import check_floating
from ..ops.layout import time_first
from ._markov_checks import check_lengths
from ._markov_steps import DenseSteps, moving_steps
from .base import PathDistribution
from .markov_kernels import GaussianLaw, MarkovKernels, ScoredKernels

__all__ = ["RecurrentPath"]

Head = Callable[[Tensor, Tensor | None], Distribution]


class RecurrentPath(PathDistribution):
    r"""Law of a path with memory.

    .. math:: z_t \sim p(\cdot \mid d_{t-1}, c_t), \qquad d_t = \mathrm{GRU}(d_{t-1}, [z_t, u_t])

    The pair :math:`(z_t, d_t)` is a Markov chain, but half of it has no noise and hence no density. As d is a function
    of z (and of the inputs u), the law of z alone has one:

    .. math:: \log p(z) = \sum_t \log p\big(z_t \mid d_{t-1}(z_{<t}, u_{<t}), c_t\big)

    so the value of the site is z, and d is computed again where it is wanted (`memories`), by one fused run of the
    network. Two laws with one network and one u differ in their heads only, and their divergence along a path is the
    sum of that of the heads, :math:`\mathrm{KL}(q(\cdot \mid d_{t-1}) \| p(\cdot \mid d_{t-1}))`, in closed form.

    Sampling: T sequential calls of GRU and head. Density: one run of the GRU and one call of the head for all steps.

    Args:
        memory: one-layer `torch.nn.GRU` with ``batch_first``, of ``D + C`` inputs and H units.
        head: law of the next state, a Normal with event shape ``(D,)``, given memories ``(..., H)`` and rows ``(...,
            E)`` of `context` or None; acts on last axes.
        start: memory before the first state, ``(H,)``.
        inputs: u, ``(B, T, C)``: row t enters the memory together with state t.
        context: c, ``(B, T, E)``: row t is given to the head for state t; None for none.
        lengths: ``(B,)``, as for `MarkovPath`.

    Shape:
        batch: ``(B,)`` · event: ``(T, D)``.

    Raises:
        ValueError: if shapes do not fit, or the head returns another law than a Normal of D dimensions.

    References:
        Chung, Kastner, Dinh, Goel, Courville, Bengio (2015), A recurrent latent variable model for sequential data,
        arXiv 1506.02216, eqs. (5) to (9).
    """

    def __init__(
        self,
        memory: nn.GRU,
        head: Head,
        start: Tensor,
        inputs: Tensor,
        *,
        context: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        if not isinstance(memory, nn.GRU) or not callable(head):
            what = f"{type(memory).__name__} and {type(head).__name__}"
            msg = f"`memory` must be a torch.nn.GRU and `head` a function of its states, received {what}."
            raise TypeError(msg)
        check_floating(start=start, inputs=inputs)
        if start.dim() < 1 or start.shape[-1] != memory.hidden_size or start.dim() > 2:
            msg = f"`start` must have shape ({memory.hidden_size},), a state of the memory; got {tuple(start.shape)}."
            raise ValueError(msg)
        if inputs.dim() != 3 or (context is not None and context.shape[:2] != inputs.shape[:2]):
            rows = None if context is None else tuple(context.shape)
            msg = f"`inputs` and `context` must have shape (B, T, .), received {tuple(inputs.shape)} and {rows}."
            raise ValueError(msg)
        check_lengths(lengths, inputs.shape[1])
        if lengths is not None and lengths.shape != inputs.shape[:1]:
            msg = f"`lengths` must have shape ({len(inputs)},), received {tuple(lengths.shape)}."
            raise ValueError(msg)
        self.memory, self.head, self.start = memory, head, start
        self.inputs, self.context, self.lengths = inputs, context, lengths
        batch = torch.Size(inputs.shape[:1])
        initial = head(start.expand(*batch, -1), None if context is None else context[:, 0])
        width = memory.input_size - inputs.shape[-1]
        if GaussianLaw.of(initial) is None or initial.event_shape != (width,):
            msg = (
                f"`head` must return a Normal law with event shape ({width},), what the memory reads beside its "
                f"inputs; received {type(initial).__name__} with event shape {tuple(initial.event_shape)}."
            )
            raise ValueError(msg)
        super().__init__(initial, batch, inputs.shape[1], validate_args=False)

    @property
    def num_steps(self) -> int:
        """Number of transitions T - 1."""
        return self.event_shape[0] - 1

    def with_head(self, head: Head, context: Tensor | None = None) -> RecurrentPath:
        """The law with the same memory and inputs, and another head: the guide of a variational recurrent network."""
        return RecurrentPath(self.memory, head, self.start, self.inputs, context=context, lengths=self.lengths)

    def memories(self, path: Tensor) -> Tensor:
        """Memory before every state of a path, ``(..., B, T, D) -> (..., B, T, H)``."""
        lead = path.shape[:-2]
        first = self.start.expand(*lead, 1, -1)
        if path.shape[-2] == 1:
            return first
        inputs = self.inputs[:, :-1].expand(*lead, -1, -1)
        rows = torch.cat([path[..., :-1, :], inputs], -1).flatten(0, -3)
        start = self.start.expand(1, len(rows), -1).contiguous()
        return torch.cat([first, self.memory(rows, start)[0].unflatten(0, lead)], -2)

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., B, D)`` with fresh noise; a series that has ended keeps its state."""
        z, states = initial, [initial]
        memory = self.start.expand(*z.shape[:-1], -1)
        moving = None if self.lengths is None else moving_steps(self.lengths, self.num_steps)
        for k in range(self.num_steps):
            memory = self._remember(memory, z, self.inputs[:, k])
            law = self.head(memory, None if self.context is None else self.context[:, k + 1])
            following = law.rsample()
            z = following if moving is None else torch.where(moving[:, k : k + 1], following, z)
            states.append(z)
        path = torch.stack(states, -2)
        if not bool(torch.isfinite(path.detach()[..., -1, :]).all()):
            name = f" at site '{self.site_name}'" if self.site_name else ""
            msg = f"RecurrentPath{name}: a path became non-finite. Bound the head, or use a smaller learning rate."
            raise ValueError(msg)
        return path

    def _remember(self, memory: Tensor, z: Tensor, row: Tensor) -> Tensor:
        rows = torch.cat([z, row.expand(*z.shape[:-1], -1)], -1)
        lead = rows.shape[:-1]
        weights: list[Tensor] = self.memory.all_weights[0]  # type: ignore[assignment]
        step = torch.gru_cell(rows.flatten(0, -2), memory.expand(*lead, -1).flatten(0, -2), *weights)
        return step.unflatten(0, lead)

    def kernels(self, path: Tensor) -> MarkovKernels:
        """Laws of every state given those before, for all steps at once.

        Raises:
            ValueError: if the path has a wrong shape.
        """
        if path.shape[-2:] != self.event_shape:
            msg = f"`path` must have shape (..., {', '.join(map(str, self.event_shape))}), got {tuple(path.shape)}."
            raise ValueError(msg)
        batch = torch.broadcast_shapes(path.shape[:-2], self.batch_shape)
        path = path.expand(*batch, *self.event_shape)
        steps = DenseSteps(self.num_steps, self.lengths, batch)
        if not self.num_steps:
            return ScoredKernels(path.new_zeros(0, *batch), steps, partial(self._again, path))
        memories = time_first(self.memories(path), len(batch))[1:]
        context = None if self.context is None else time_first(self.context.expand(*batch, -1, -1), len(batch))[1:]
        return MarkovKernels(self.head(memories, context), steps.states(path)[1], steps, partial(self._again, path))

    def _again(self, path: Tensor, packable: bool) -> MarkovKernels:
        del packable  # the memory of a series is its own
        return self.kernels(path)

    def check_same_grid(self, other: PathDistribution) -> None:
        """Numbers of points must agree, series by series.

        Raises:
            ValueError: if they do not.
        """
        lengths = [getattr(law, "lengths", None) for law in (self, other)]
        full = torch.full(self.batch_shape, self.event_shape[0], device=self.inputs.device)
        ours, theirs = (full if one is None else one for one in lengths)
        if other.event_shape[0] != self.event_shape[0] or not torch.equal(ours, theirs.expand(ours.shape)):
            msg = "guide and model have paths of different lengths. Give the same `lengths` to both."
            raise ValueError(msg)
