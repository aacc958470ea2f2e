"""Linear-Gaussian Markov chains: prior and posterior path laws, their moments and samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import check_floating
from ._kalman_loop import ChainTensors
from ._kalman_method import run_moments, run_recurrence
from ._psd import check_finite, check_psd, psd_factor

__all__ = ["GaussianChain", "psd_factor"]


class GaussianChain:
    r"""Markov chain :math:`z_0 \sim N(m_0, P_0)`, :math:`z_{k+1} = A_k z_k + c_k + N(0, Q_k)`, k = 0..K-1.

    Noise may be singular or zero (a step of no length, directions without noise, a known start). All recursions run in
    float64, whatever the dtype of the tensors, and the results are cast to `dtype`: covariances of fine grids have
    entries far apart, and steps too small for single precision. Gradients are cast back by autograd.

    Batches broadcast, so that series may have their own matrices or share them. A chain whose matrices do not depend on
    time takes ``A.expand(K, D, D)``: an expanded tensor is neither copied nor checked more than once.

    Args:
        initial_mean: :math:`m_0`, ``(*batch, D)``.
        initial_covariance: :math:`P_0`, ``(*batch, D, D)``, positive semidefinite.
        transition: :math:`A_k`, ``(*batch, K, D, D)``.
        noise: covariances :math:`Q_k`, ``(*batch, K, D, D)``, positive semidefinite; symmetric parts are used.
        offset: :math:`c_k`, ``(*batch, K, D)``; zero if None.
        dtype: dtype of results; that of the tensors if None.
        validate: check the values, at the cost of one batched Cholesky factorisation. Without it NaN goes in and NaN
            comes out.

    Attributes:
        batch_shape: broadcast batch shape.
        dim: state dimension D.
        num_points: number of points T = K + 1.

    Raises:
        TypeError: if an argument is no floating-point tensor.
        ValueError: if shapes do not fit, an entry is not finite, or a covariance is not positive semidefinite up to
            rounding; the message names the argument and the time index.

    Example:
        >>> A, Q = torch.tensor([[0.5]]), torch.tensor([[0.75]])
        >>> chain = GaussianChain(torch.zeros(1), torch.eye(1), A.expand(3, 1, 1), Q.expand(3, 1, 1))
        >>> chain.marginals()[1].flatten()
        tensor([1., 1., 1., 1.])
        >>> chain.covariance(0, 2)
        tensor([[0.2500]])
    """

    def __init__(
        self,
        initial_mean: Tensor,
        initial_covariance: Tensor,
        transition: Tensor,
        noise: Tensor,
        offset: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        validate: bool = True,
    ) -> None:
        given = {
            "initial_mean": initial_mean,
            "initial_covariance": initial_covariance,
            "transition": transition,
            "noise": noise,
        }
        if offset is not None:
            given["offset"] = offset
        self.batch_shape = _check_shapes(given)
        self.initial_mean = initial_mean
        self.initial_covariance = initial_covariance
        self.transition = transition
        self.noise = noise
        self.offset = noise.new_zeros(()).expand(noise.shape[:-1]) if offset is None else offset
        self.dim = initial_mean.shape[-1]
        self.num_points = transition.shape[-3] + 1
        kept = initial_mean.dtype
        for tensor in given.values():
            kept = torch.promote_types(kept, tensor.dtype)
        self.dtype = kept if dtype is None else dtype
        if validate:
            epsilon = max(torch.finfo(tensor.dtype).eps for tensor in given.values())
            for name, tensor in given.items():
                if name in ("initial_covariance", "noise"):
                    check_psd(tensor.double(), name, name == "noise", epsilon=epsilon)
                else:
                    check_finite(tensor, name, name != "initial_mean", 2 if name == "transition" else 1)

    def tensors(self, batch_shape: torch.Size | None = None) -> ChainTensors:
        """The parameters in float64 with one batch dimension, for a batch shape that this chain's broadcasts to."""
        batch = self.batch_shape if batch_shape is None else batch_shape
        parts = (self.initial_mean, self.initial_covariance, self.transition, self.offset, self.noise)
        sizes = (1, 2, 3, 2, 3)
        return ChainTensors(
            *(
                part.double().expand(*batch, *part.shape[-size:]).reshape(batch.numel(), *part.shape[-size:])
                for part, size in zip(parts, sizes, strict=True)
            )
        )

    def marginals(self, method: str = "auto") -> tuple[Tensor, Tensor]:
        r"""Means :math:`m_{k+1} = A_k m_k + c_k` and covariances :math:`P_{k+1} = A_k P_k A_k^\top + Q_k`.

        Args:
            method: "sequential", "parallel" (depth O(log T)) or "auto", which takes the faster; equal to round-off.

        Returns:
            ``(*batch, T, D)`` and ``(*batch, T, D, D)``. Cost O(T).

        Raises:
            ValueError: if `method` is unknown.
        """
        mean, covariance = run_moments(method, self.tensors())
        shape = (*self.batch_shape, self.num_points, self.dim)
        return mean.reshape(shape).to(self.dtype), covariance.reshape(*shape, self.dim).to(self.dtype)

    def covariance(self, i: int, j: int, method: str = "auto") -> Tensor:
        r"""Covariance :math:`\mathrm{Cov}(z_i, z_j)`, which is :math:`P_i (A_{j-1} \dots A_i)^\top` for ``i <= j``.

        Args:
            i: first point; negative counts from the end.
            j: second point.
            method: as in `marginals`.

        Returns:
            ``(*batch, D, D)``. Cost O(max(i, j)).

        Raises:
            IndexError: if a point does not exist.
        """
        i, j = _point(i, "i", self.num_points), _point(j, "j", self.num_points)
        if i > j:
            return self.covariance(j, i, method).mT
        chain = self.tensors()
        past = chain._replace(transition=chain.transition[:, :i], offset=chain.offset[:, :i], noise=chain.noise[:, :i])
        covariance = run_moments(method, past)[1][:, -1]
        between = chain.transition[:, i:j]
        while between.shape[1] > 1:  # neighbours in pairs: depth O(log T)
            last = between[:, between.shape[1] // 2 * 2 :]
            between = torch.cat([between[:, 1::2] @ between[:, : 2 * (between.shape[1] // 2) : 2], last], 1)
        if between.shape[1]:
            covariance = covariance @ between[:, 0].mT
        return covariance.reshape(*self.batch_shape, self.dim, self.dim).to(self.dtype)

    def sample(self, standard_normal: Tensor, method: str = "auto") -> Tensor:
        r"""Reparameterised paths, from :math:`z_0 = m_0 + L_0 \epsilon_0`.

        Then :math:`z_{k+1} = A_k z_k + c_k + L_{k+1} \epsilon_{k+1}`, with :math:`L_0 L_0^\top = P_0` and
        :math:`L_{k+1} L_{k+1}^\top = Q_k` from `psd_factor`.

        Args:
            standard_normal: independent noise, ``(*sample, *batch, T, D)``; the batch part broadcasts.
            method: as in `marginals`.

        Returns:
            Paths ``(*sample, *batch, T, D)``.

        Definition:
            The recursion is that of the chain, with a factor of each covariance times standard normal noise.

        Raises:
            ValueError: if the shape of the noise does not fit, or `method` is unknown.
        """
        batch = _noise_batch(standard_normal, (self.num_points, self.dim), self.batch_shape)
        event = standard_normal.shape[-2:]
        own = batch[len(batch) - len(self.batch_shape) :]
        chain = self.tensors(own)
        noise = standard_normal.double().expand(*batch, *event).reshape(-1, own.numel(), *event)  # (S, B, T, D)
        initial = chain.mean + (psd_factor(chain.covariance) @ noise[:, :, 0].unsqueeze(-1)).squeeze(-1)
        increments = chain.offset + (psd_factor(chain.noise) @ noise[:, :, 1:].unsqueeze(-1)).squeeze(-1)
        states = run_recurrence(method, initial, chain.transition, increments)
        return states.reshape(*batch, *event).to(torch.promote_types(self.dtype, standard_normal.dtype))

    def expand(self, batch_shape: torch.Size | Sequence[int]) -> GaussianChain:
        """The same chain with a larger batch shape, without copies.

        Raises:
            ValueError: if the batch shape of this chain does not broadcast to `batch_shape`.
        """
        batch = torch.Size(batch_shape)
        if not _broadcasts_to(self.batch_shape, batch):
            msg = f"cannot expand a chain of batch shape {tuple(self.batch_shape)} to {tuple(batch)}."
            raise ValueError(msg)
        chain = copy.copy(self)
        chain.batch_shape = batch
        for name, size in (
            ("initial_mean", 1),
            ("initial_covariance", 2),
            ("transition", 3),
            ("noise", 3),
            ("offset", 2),
        ):
            part = getattr(self, name)
            setattr(chain, name, part.expand(*batch, *part.shape[-size:]))
        return chain

    def __repr__(self) -> str:
        """Class and sizes."""
        return f"GaussianChain(batch_shape={tuple(self.batch_shape)}, num_points={self.num_points}, dim={self.dim})"


def _check_shapes(given: dict[str, Tensor]) -> torch.Size:
    """Broadcast batch shape of the tensors of a chain."""
    check_floating(**given)
    dim = given["initial_mean"].shape[-1] if given["initial_mean"].dim() else 0
    steps = given["transition"].shape[-3] if given["transition"].dim() > 2 else -1
    wanted = {
        "initial_mean": (dim,),
        "initial_covariance": (dim, dim),
        "transition": (steps, dim, dim),
        "noise": (steps, dim, dim),
        "offset": (steps, dim),
    }
    for name, tensor in given.items():
        tail = wanted[name]
        if dim < 1 or steps < 0 or tuple(tensor.shape[max(tensor.dim() - len(tail), 0) :]) != tail:
            letters = {"initial_mean": "D", "initial_covariance": "D, D", "offset": "K, D"}.get(name, "K, D, D")
            shapes = {other: tuple(value.shape) for other, value in given.items()}
            msg = f"`{name}` must have shape (*batch, {letters}) with D >= 1 and the same K for all, received {shapes}."
            raise ValueError(msg)
    batches = [tensor.shape[: tensor.dim() - len(wanted[name])] for name, tensor in given.items()]
    try:
        return torch.broadcast_shapes(*batches)
    except RuntimeError as error:
        shapes = {name: tuple(batch) for name, batch in zip(given, batches, strict=True)}
        msg = f"the batch shapes of the tensors of a chain must broadcast, received {shapes}."
        raise ValueError(msg) from error


def _point(index: int, name: str, count: int) -> int:
    if not -count <= index < count:
        msg = f"`{name}` must be a point of the chain, {-count} <= {name} < {count}, received {index}."
        raise IndexError(msg)
    return index % count


def _noise_batch(noise: Tensor, event: tuple[int, int], batch: torch.Size) -> torch.Size:
    """Batch shape of paths made from `noise`."""
    check_floating(standard_normal=noise)
    if noise.dim() >= 2 and tuple(noise.shape[-2:]) == event:
        try:
            return torch.broadcast_shapes(noise.shape[:-2], batch)
        except RuntimeError:
            pass
    msg = (
        f"`standard_normal` must have shape (*sample, *batch, {event[0]}, {event[1]}) with batch shape {tuple(batch)}, "
        f"received {tuple(noise.shape)}."
    )
    raise ValueError(msg)


def _broadcasts_to(batch: torch.Size, target: torch.Size) -> bool:
    aligned = zip(reversed(batch), reversed(target), strict=False)
    return len(batch) <= len(target) and all(old in (1, new) for old, new in aligned)
