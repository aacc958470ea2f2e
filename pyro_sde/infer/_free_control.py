"""The control of `AutoSDE` without an encoder: one row of parameters per solver step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..nn.mlp import ControlNet

__all__ = ["FreeControl", "ROW_UNIT"]

# Near a precise observation the control is tens of units; in these, Adam at its usual 0.01 gets there in 100 steps.
ROW_UNIT = 10.0


class FreeControl(nn.Module):
    r"""Control b + A z + net(t, z) from rows ``(b, A)``; the network sees time scaled to [0, 1].

    Attribute `unit` is the control whose energy :math:`\tfrac12 \int |u|^2 dt` over the time span is one half.
    """

    def __init__(self, states: int, brownian: int, hidden: Sequence[int], span: tuple[float, float]) -> None:
        super().__init__()
        self.shape = (brownian, states)
        self.start, self.length = span[0], (span[1] - span[0]) or 1.0
        self.unit = self.length**-0.5
        self.net = ControlNet(states, 1, brownian, hidden) if hidden else None

    def forward(self, t: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """Control at time t ``(..., 1)`` and state z ``(..., D)`` for rows ``(..., M + M D)``."""
        offset, matrix = rows.split([self.shape[0], self.shape[0] * self.shape[1]], -1)
        # (..., M, D) @ (..., D, 1) -> (..., M)
        control = offset + (matrix.unflatten(-1, self.shape) @ z.unsqueeze(-1)).squeeze(-1)
        return control if self.net is None else control + self.unit * self.net(t, z, (t - self.start) / self.length)
