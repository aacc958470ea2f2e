r"""Linear time-invariant SDEs with any matrices."""

from __future__ import annotations

import torch

from .linear import LinearSDE, Parameter, shape_of
from .system import LinearSystem

__all__ = ["LTI"]


class LTI(LinearSDE):
    r"""Linear time-invariant SDE with any matrices, :math:`dz = (A z + b)\,dt + L\,dW,\; f = H z`.

    Args:
        drift_matrix: A, ``(*batch, D, D)``, per unit of time.
        diffusion_matrix: L, ``(*batch, D, M)``, of any rank.
        offset: b, ``(*batch, D)``; zero if None.
        observation_matrix: H, ``(*batch, O, D)``; the whole state if None.

    Raises:
        ValueError: if the shapes do not fit each other.

    Example:
        >>> decay = LTI(torch.tensor([[-1.0, 1.0], [0.0, -2.0]]), torch.tensor([[0.0], [1.0]]))
        >>> decay.stationary()[1]
        tensor([[0.0833, 0.0833],
                [0.0833, 0.2500]])
    """

    def __init__(
        self,
        drift_matrix: Parameter,
        diffusion_matrix: Parameter,
        offset: Parameter | None = None,
        observation_matrix: Parameter | None = None,
    ) -> None:
        matrix, noise, output = shape_of(drift_matrix), shape_of(diffusion_matrix), shape_of(observation_matrix)
        size = matrix[-1] if matrix else 0
        problem = None
        if len(matrix) < 2 or matrix[-2] != size:
            problem = f"`drift_matrix` must have shape (*batch, D, D), received {tuple(matrix)}"
        elif len(noise) < 2 or noise[-2] != size:
            problem = f"`diffusion_matrix` must have shape (*batch, {size}, M), received {tuple(noise)}"
        elif offset is not None and shape_of(offset)[-1:] != (size,):
            problem = f"`offset` must have shape (*batch, {size}), received {tuple(shape_of(offset))}"
        elif observation_matrix is not None and (len(output) < 2 or output[-1] != size):
            problem = f"`observation_matrix` must have shape (*batch, O, {size}), received {tuple(output)}"
        if problem:
            msg = f"{problem}."
            raise ValueError(msg)
        super().__init__(size)
        self._register("drift_matrix", drift_matrix)
        self._register("diffusion_matrix", diffusion_matrix)
        self._given = ["drift_matrix", "diffusion_matrix"]
        for name, value in (("offset", offset), ("observation_matrix", observation_matrix)):
            if value is not None:
                self._register(name, value)
                self._given.append(name)

    def _system(self, device: torch.device | None) -> LinearSystem:
        values, dtype = self._read(*self._given, device=device)
        given = dict(zip(self._given, values, strict=True))
        matrix = given["drift_matrix"]
        identity = torch.eye(self.state_dim, dtype=matrix.dtype, device=matrix.device)
        return LinearSystem(
            "LTI",
            matrix,
            given["diffusion_matrix"],
            given.get("observation_matrix", identity),
            dtype,
            offset=given.get("offset"),
        )
