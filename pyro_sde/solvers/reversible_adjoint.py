r"""Reversible Heun steps, differentiated backwards from the last state: exact gradients in constant memory.

Reversible Heun carries two copies y and z of the state. With the Stratonovich drift F (control included), the diffusion
g and the control u, all at :math:`(t_k, z_k)`, one step is

.. math::
    z_{k+1} &= 2 y_k - z_k + F_k h_k + g_k\,\Delta W_k \\
    y_{k+1} &= y_k + \tfrac12 (F_k + F_{k+1}) h_k + \tfrac12 (g_k + g_{k+1})\,\Delta W_k

and is undone by the same formulas with the roles of both ends exchanged. The log-ratio is summed on the way,
:math:`\tfrac12 |u_k|^2 h_k` and :math:`u_k \cdot \Delta W_k`: as :math:`u_k` is known before :math:`\Delta W_k`,
:math:`E \exp(-\sum_k \tfrac12 |u_k|^2 h_k - \sum_k u_k \cdot \Delta W_k) = 1` holds for any step size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._carried import CarriedBackend, CarriedProblem, CarriedSolution, ControlTerms
from ._visits import Visits
from .captured import LocalGraph, StandIns, find_captured
from .noise import SeededNoise, StepNoise

__all__ = ["ReversibleHeunAdjoint"]


@dataclass(frozen=True)
class ReversibleHeunAdjoint(CarriedBackend):
    r"""Back-end of `CarriedPath`: reversible Heun steps of the grid, and their exact gradient in constant memory.

    The forward pass keeps the two copies of the state at the end and at the observation times. The backward pass
    reconstructs the others and differentiates one step at a time, with the noise drawn again from a seed. The gradient
    is that of autograd through the same steps, to the round-off of the reconstruction, which starts anew at every
    observation time.

    Strong order 0.5, for additive noise 1; weak order 1. Cost: forward one evaluation of the coefficients per step,
    backward one with its vector-Jacobian product. Memory: independent of the number of steps, but for `inputs` (and,
    if they have gradients, those).

    Where `inputs` change from one step to the next, the later row serves both steps at their common time. Times of the
    grid have no gradient.

    Args:
        block: steps whose noise is drawn at once.

    Raises:
        ValueError: if `block` is not a positive integer.

    References:
        Kidger, Foster, Li, Lyons (2021), Efficient and accurate gradients for neural SDEs, arXiv 2105.13493,
        algorithms 1 and 2.
    """

    block: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.block, int) or isinstance(self.block, bool) or self.block < 1:
            msg = f"`block` must be a number of steps >= 1, received {self.block!r}."
            raise ValueError(msg)

    def solve(self, problem: CarriedProblem, noise: StepNoise | None = None) -> CarriedSolution:
        """Solve a problem with given noise, or with fresh noise.

        Raises:
            ValueError: if times need gradients, or a tensor that does cannot be followed; the message names it.
        """
        if problem.grid.times.requires_grad:
            msg = (
                "the times of `grid` need gradients, which ReversibleHeunAdjoint does not compute: they would be lost. "
                "Detach the times, or use SDEPath."
            )
            raise ValueError(msg)
        shape = (*problem.initial.shape[:-1], problem.brownian_dim)
        walk = _Walk(problem, noise or SeededNoise(shape, problem.initial), self.block)
        rows = [row for row in problem.rows if row is not None]
        captured: tuple[Tensor, ...] = ()
        if torch.is_grad_enabled():
            captured = find_captured(walk.terms, walk.arguments(0, problem.initial, rows), walk.names)
        outputs = _Solve.apply(walk, len(rows), problem.initial, *rows, *captured)
        states, kl, martingale = outputs
        return CarriedSolution(states.movedim(0, -2), kl, martingale)


class _Cotangents(NamedTuple):
    """Gradients that wait for the coefficients at one time."""

    drift: Tensor
    diffusion: Tensor
    control: Tensor | None


class _Walk:
    """The steps of a grid, forwards and backwards."""

    def __init__(self, problem: CarriedProblem, noise: StepNoise, block: int) -> None:
        grid = problem.grid
        self.sde = problem.sde.stratonovich()
        self.terms = ControlTerms(self.sde, problem)
        self.names = dict(problem.sde.named_parameters())
        self.times = grid.times.detach().unsqueeze(-1)  # (*batch, K + 1, 1)
        self.steps = grid.steps.detach().unsqueeze(-1)
        self.num_steps = grid.num_steps
        self.padded = bool((grid.steps == 0).any())
        self.noise, self.block = noise, block
        self._drawn: tuple[int, Tensor] | None = None
        batch = problem.initial.shape[:-1]
        self.visits = Visits(grid.observed_index.expand(*(batch if grid.batch_shape else ()), -1))

    def arguments(self, k: int, z: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
        """Arguments of `terms` at time k."""
        row = min(k, self.num_steps - 1)
        return [self.times[..., k, :], z, *(r[..., row, :] if self.num_steps else _empty(r) for r in rows)]

    def step(self, k: int) -> Tensor:
        """Step size ``(*batch, 1)``."""
        return self.steps[..., k, :]

    def increment(self, k: int) -> Tensor:
        """Brownian increment ``(..., M)`` of a step, 0 where it is padded."""
        number = k // self.block
        start = number * self.block
        if self._drawn is None or self._drawn[0] != number:
            self._drawn = number, self.noise.block(start, min(start + self.block, self.num_steps)).detach()
        return self._drawn[1][k - start] * self.step(k).sqrt()

    def apply(self, diffusion: Tensor, vector: Tensor) -> Tensor:
        return self.sde.noise.apply(diffusion, vector)

    def outer(self, vector: Tensor, increment: Tensor) -> Tensor:
        """Gradient with respect to a diffusion of its product with an increment."""
        if not self.sde.noise.matrix_dims:
            return vector * increment
        return vector.unsqueeze(-1) * increment.unsqueeze(-2)  # (..., D, 1) * (..., 1, M)

    def forward(self, initial: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """States and second copies at observation times (N, ..., D), both at the end, kl and martingale."""
        y = z = initial
        values, copies = (initial.new_empty((self.visits.count, *initial.shape)) for _ in range(2))
        kl, martingale = (initial.new_zeros(initial.shape[:-1]) for _ in range(2))
        self.visits.write(0, (values, y), (copies, z))
        terms = self.terms(*self.arguments(0, z, rows))
        for k in range(self.num_steps):
            h, dw = self.step(k), self.increment(k)
            drift, diffusion, *control = terms
            if control:
                kl = kl + 0.5 * (control[0].square() * h).sum(-1)
                martingale = martingale + (control[0] * dw).sum(-1)
            z = self.moved(k, 2 * y - z + drift * h + self.apply(diffusion, dw), z)
            terms = self.terms(*self.arguments(k + 1, z, rows))
            y = y + 0.5 * h * (drift + terms[0]) + 0.5 * self.apply(diffusion + terms[1], dw)
            self.visits.write(k + 1, (values, y), (copies, z))
        return values, copies, y, z, kl, martingale

    def moved(self, k: int, new: Tensor, old: Tensor) -> Tensor:
        """The new state, or the old one of series whose step is padded."""
        return torch.where(self.step(k) > 0, new, old) if self.padded else new


class _Solve(torch.autograd.Function):
    """States at observation times, kl and martingale; backwards, one reconstructed step at a time."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, num_rows: int, initial: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        values, copies, y, z, kl, martingale = walk.forward(initial, tensors[:num_rows])
        ctx.walk, ctx.num_rows = walk, num_rows
        ctx.save_for_backward(values, copies, y, z, *tensors)
        return values, kl, martingale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        if torch.is_grad_enabled():
            msg = (
                "the gradient of ReversibleHeunAdjoint cannot be differentiated again (create_graph=True). Use "
                'SDEPath with Execution(backward="loop").'
            )
            raise RuntimeError(msg)
        kept, tensors = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        rows, captured = tensors[: ctx.num_rows], tensors[ctx.num_rows :]
        wanted = ctx.needs_input_grad[3 : 3 + ctx.num_rows]
        sums = [torch.zeros_like(row) if want else None for row, want in zip(rows, wanted, strict=True)]
        sweep = _Sweep(ctx.walk, rows, captured, sums)
        initial = sweep.run(kept, gradients)
        return None, None, initial, *sweep.row_gradients, *sweep.sums


class _Sweep:
    """The backward pass: local graphs from the last time to the first."""

    def __init__(
        self, walk: _Walk, rows: Sequence[Tensor], captured: Sequence[Tensor], row_gradients: list[Tensor | None]
    ) -> None:
        self.walk, self.rows = walk, rows
        self.stand_ins = StandIns(captured, walk.names)
        self.row_gradients = row_gradients
        self.sums: list[Tensor | None] = [None] * len(captured)

    def graph(self, k: int, z: Tensor) -> LocalGraph:
        walk = self.walk
        wanted = [False, True, *(gradient is not None for gradient in self.row_gradients)]
        return LocalGraph(walk.terms, walk.arguments(k, z, self.rows), self.stand_ins, wanted)

    def differentiate(self, k: int, graph: LocalGraph, pending: _Cotangents, adjoint: Tensor) -> Tensor:
        """Adjoint of z with the part through the coefficients of time k added; other parts are summed."""
        cotangents = [pending.drift, pending.diffusion]
        if len(graph.outputs) == 3:
            control = pending.control
            cotangents.append(torch.zeros_like(graph.outputs[2]) if control is None else control)
        (_, through, *rows), captured = graph.vjp(cotangents)
        row = min(k, self.walk.num_steps - 1)
        for total, part in zip(self.row_gradients, rows, strict=True):
            if total is not None and part is not None and self.walk.num_steps:
                total[..., row, :] += part
        self.sums = [_plus(total, part) for total, part in zip(self.sums, captured, strict=True)]
        return adjoint if through is None else adjoint + through

    def run(self, kept: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """Gradient with respect to the first state."""
        walk = self.walk
        values, copies, y, z = kept
        of_states, of_kl, of_martingale = gradients
        adjoint_y, adjoint_z = torch.zeros_like(y), torch.zeros_like(z)
        graph = self.graph(walk.num_steps, z)
        pending = _Cotangents(torch.zeros_like(graph.outputs[0]), torch.zeros_like(graph.outputs[1]), None)
        for k in itertools.count(walk.num_steps, -1):
            adjoint_y = walk.visits.gradient(k, of_states, adjoint_y)
            if k == 0:
                return adjoint_y + self.differentiate(k, graph, pending, adjoint_z)
            h, dw = walk.step(k - 1), walk.increment(k - 1)
            drift, diffusion = graph.outputs[:2]
            pending = pending._replace(
                drift=pending.drift + 0.5 * h * adjoint_y,
                diffusion=pending.diffusion + walk.outer(0.5 * adjoint_y, dw),
            )
            adjoint_z = self.differentiate(k, graph, pending, adjoint_z)
            z = walk.moved(k - 1, 2 * y - z - drift * h - walk.apply(diffusion, dw), z)
            z = walk.visits.restart(k - 1, copies, z)
            graph = self.graph(k - 1, z)
            y = y - 0.5 * h * (drift + graph.outputs[0]) - 0.5 * walk.apply(diffusion + graph.outputs[1], dw)
            y = walk.visits.restart(k - 1, values, y)
            both = walk.moved(k - 1, 0.5 * adjoint_y + adjoint_z, torch.zeros_like(adjoint_y))
            pending = _Cotangents(h * both, walk.outer(both, dw), self.of_control(graph, h, dw, of_kl, of_martingale))
            adjoint_y = walk.moved(k - 1, adjoint_y + 2 * adjoint_z, adjoint_y)
            adjoint_z = walk.moved(k - 1, -adjoint_z, adjoint_z)
        raise RuntimeError  # the loop ends at k = 0

    @staticmethod
    def of_control(graph: LocalGraph, h: Tensor, dw: Tensor, kl: Tensor, martingale: Tensor) -> Tensor | None:
        """Gradient of the log-ratio with respect to the control of one step."""
        if len(graph.outputs) < 3:
            return None
        return kl.unsqueeze(-1) * graph.outputs[2] * h + martingale.unsqueeze(-1) * dw


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if total is None or part is None:
        return part if total is None else total
    return total + part


def _empty(row: Tensor) -> Tensor:
    return row.new_zeros((*row.shape[:-2], row.shape[-1]))
