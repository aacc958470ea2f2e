r"""Linear systems with numbers for all parameters, and their algebra: sums, products, mixed outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops._matrices import block_diagonal, kron, one_batch
from ..ops._psd import psd_factor
from ..ops.discretise import Transition, check_finite, check_steps, discretise, share_equal_steps
from ..ops.stationary import stationary_moments

__all__ = ["LinearSystem", "mix_systems", "multiply_systems", "sum_systems"]


@dataclass(frozen=True)
class LinearSystem:
    r"""Matrices of :math:`dz = (A z + b)\,dt + L\,dW,\; f = H z`, all in float64, and its exact laws.

    What `LinearSDE.system` returns: the hyper-parameters have been read (and sampled, if they are Pyro samples), so
    that several laws derived from one system agree.

    Attributes:
        name: of the process, for messages.
        matrix: A, ``(*batch, D, D)``.
        diffusion: L, ``(*batch, D, M)``.
        observation: H, ``(*batch, O, D)``: the O processes that the state stands for.
        dtype: of the hyper-parameters; that of `stationary` by default.
        offset: b, ``(*batch, D)``, None for zero.
        exact: closed form of the transition over steps ``(*batch, K)`` in float64; None: `discretise` is used.
        moments: closed form of the stationary mean and covariance; None: `stationary_moments` is used.
    """

    name: str
    matrix: Tensor
    diffusion: Tensor
    observation: Tensor
    dtype: torch.dtype
    offset: Tensor | None = None
    exact: Callable[[Tensor], Transition] | None = None
    moments: Callable[[], tuple[Tensor, Tensor]] | None = None

    @property
    def state_dim(self) -> int:
        """D."""
        return self.matrix.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the hyper-parameters; that of H alone is not in `transition` and `stationary`."""
        return torch.broadcast_shapes(self._dynamics_shape, self.observation.shape[:-2])

    @property
    def _dynamics_shape(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.matrix.shape[:-2], self.diffusion.shape[:-2])
        return batch if self.offset is None else torch.broadcast_shapes(batch, self.offset.shape[:-1])

    def transition(self, dt: Tensor) -> Transition:
        r"""Exact transition over steps `dt` ``(*batch, K)``, in the dtype of `dt`; see `ops.discretise`.

        Raises:
            ValueError: if a step is negative or not finite, or the result is not finite.
        """
        if self.exact is None:
            return self._whole(discretise(self.matrix, self.diffusion, dt, self.offset))
        dt = check_steps(dt)
        shared = share_equal_steps(self._symmetric_transition, dt, self._dynamics_shape).to(dt.dtype)
        return check_finite(self._whole(shared), dt)

    def _whole(self, transition: Transition) -> Transition:
        """All three with all batch dimensions, as views."""
        matrix, offset, covariance = transition
        batch = torch.broadcast_shapes(matrix.shape[:-2], offset.shape[:-1], covariance.shape[:-2])
        size = self.state_dim
        return Transition(
            matrix.expand(*batch, size, size), offset.expand(*batch, size), covariance.expand(*batch, size, size)
        )

    def _symmetric_transition(self, dt: Tensor) -> Transition:
        transition = self.each_transition(dt.double())
        covariance = transition.covariance
        return transition._replace(covariance=0.5 * (covariance + covariance.mT))

    def each_transition(self, dt: Tensor) -> Transition:
        """As `transition`, for parts of a larger system: float64, nothing checked and each step computed anew."""
        if self.exact is None:
            return discretise(self.matrix, self.diffusion, dt, self.offset)
        return self.exact(dt)

    def stationary(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Stationary mean ``(*batch, D)`` and covariance ``(*batch, D, D)`` of the state.

        Raises:
            ValueError: if the process has none; the message names it and the eigenvalue that grows.
        """
        mean, covariance = self._moments()
        batch = torch.broadcast_shapes(mean.shape[:-1], covariance.shape[:-2])
        mean, covariance = mean.expand(*batch, -1), covariance.expand(*batch, -1, -1)
        return mean.to(dtype or self.dtype), covariance.to(dtype or self.dtype)

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self.moments is not None:
            return self.moments()
        return stationary_moments(self.matrix, self.diffusion, self.offset, name=self.name)


def sum_systems(systems: Sequence[LinearSystem], name: str) -> LinearSystem:
    """Independent systems side by side, whose outputs are added: block-diagonal matrices.

    Raises:
        ValueError: if they have different numbers of outputs.
    """
    outputs = [system.observation.shape[-2] for system in systems]
    if len(set(outputs)) > 1:
        msg = f"the terms of a sum must have equally many outputs, received {outputs}; see `Coregionalisation`."
        raise ValueError(msg)
    observation = torch.cat(one_batch([system.observation for system in systems], 2), -1)
    return _side_by_side(systems, observation, name)


def mix_systems(systems: Sequence[LinearSystem], mixing: Tensor, name: str) -> LinearSystem:
    """Independent systems side by side, whose stacked outputs are multiplied by `mixing` ``(*batch, O, outputs)``.

    Raises:
        ValueError: if `mixing` has not one column for each output.
    """
    outputs = block_diagonal([system.observation for system in systems])
    if mixing.dim() < 2 or mixing.shape[-1] != outputs.shape[-2]:
        msg = (
            f"`mixing` must have shape (*batch, O, {outputs.shape[-2]}), one column for each output of the processes; "
            f"received {tuple(mixing.shape)}."
        )
        raise ValueError(msg)
    return _side_by_side(systems, mixing @ outputs, name)


def multiply_systems(left: LinearSystem, right: LinearSystem, name: str) -> LinearSystem:
    r"""System whose covariance function is the product of those of two stationary systems with one output each.

    .. math::
        A = A_1 \oplus A_2, \quad P = P_1 \otimes P_2, \quad \Phi = \Phi_1 \otimes \Phi_2, \quad
        Q = Q_1 \otimes P_2 + \Phi_1 P_1 \Phi_1^\top \otimes Q_2

    The last is :math:`P - \Phi P \Phi^\top` with :math:`P_i = \Phi_i P_i \Phi_i^\top + Q_i` put in, so that nothing
    cancels over short steps.

    Raises:
        ValueError: if a system is not stationary, has several outputs or a mean.

    References:
        Solin and Särkkä (2014), Explicit link between periodic covariance functions and state space models, section 4.
    """
    for system in (left, right):
        if system.observation.shape[-2] != 1 or system.offset is not None:
            msg = (
                f"a product of processes needs one output and mean zero of each; {system.name} has "
                f"{system.observation.shape[-2]} outputs and {'no' if system.offset is None else 'an'} offset."
            )
            raise ValueError(msg)
    (_, left_covariance), (_, right_covariance) = left.stationary(torch.float64), right.stationary(torch.float64)
    identities = [torch.eye(s.state_dim, dtype=torch.float64, device=s.matrix.device) for s in (left, right)]
    noise = [
        kron(left.diffusion, psd_factor(right_covariance)),
        kron(psd_factor(left_covariance), right.diffusion),
    ]

    def exact(dt: Tensor) -> Transition:
        first, second = left.each_transition(dt), right.each_transition(dt)
        before = left_covariance.unsqueeze(-3)
        kept = first.matrix @ before @ first.matrix.mT
        covariance = kron(first.covariance, right_covariance.unsqueeze(-3)) + kron(kept, second.covariance)
        matrix = kron(first.matrix, second.matrix)
        return Transition(matrix, matrix.new_zeros(()).expand(matrix.shape[:-1]), covariance)

    def moments() -> tuple[Tensor, Tensor]:
        covariance = kron(left_covariance, right_covariance)
        return covariance.new_zeros(covariance.shape[:-1]), covariance

    return LinearSystem(
        name,
        kron(left.matrix, identities[1]) + kron(identities[0], right.matrix),
        torch.cat(one_batch(noise, 2), -1),
        kron(left.observation, right.observation),
        torch.promote_types(left.dtype, right.dtype),
        exact=exact,
        moments=moments,
    )


def _side_by_side(systems: Sequence[LinearSystem], observation: Tensor, name: str) -> LinearSystem:
    def exact(dt: Tensor) -> Transition:
        parts = [system.each_transition(dt) for system in systems]
        return Transition(
            block_diagonal([part.matrix for part in parts]),
            torch.cat(one_batch([part.offset for part in parts], 1), -1),
            block_diagonal([part.covariance for part in parts]),
        )

    def moments() -> tuple[Tensor, Tensor]:
        means, covariances = zip(*(system.stationary(torch.float64) for system in systems), strict=True)
        return torch.cat(one_batch(means, 1), -1), block_diagonal(covariances)

    offsets = [s.matrix.new_zeros(s.state_dim) if s.offset is None else s.offset for s in systems]
    dtype = systems[0].dtype
    for system in systems[1:]:
        dtype = torch.promote_types(dtype, system.dtype)
    return LinearSystem(
        name,
        block_diagonal([system.matrix for system in systems]),
        block_diagonal([system.diffusion for system in systems]),
        observation,
        dtype,
        offset=None if all(s.offset is None for s in systems) else torch.cat(one_batch(offsets, 1), -1),
        exact=exact,
        moments=moments,
    )
