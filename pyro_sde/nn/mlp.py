"""Networks for drifts and controls, with any leading dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..ops._arguments import is_finite
from .base import check_positive, check_widths, inverse_softplus, make_activation
from .state_network import StateNetwork, is_plain

__all__ = ["ControlNet", "DriftNet", "MLP", "SplitNet"]


class MLP(nn.Module):
    r"""Perceptron :math:`x \mapsto W_n\, a(\dots a(W_1 x + b_1)) + b_n` on the last dimension.

    Args:
        in_dim: size of the last dimension of the input.
        out_dim: size of the last dimension of the output.
        hidden: widths of the hidden layers; none makes an affine map.
        activation: "elu", "gelu", "relu", "silu", "softplus" or "tanh".
        zero_last: start with a zero last layer, so that the output is 0 until it is trained.
        last_scale: factor on the initial last layer, ``>= 0``; the usual initialisation if None.

    Shape:
        input: ``(..., in_dim)`` · output: ``(..., out_dim)``.

    Raises:
        TypeError: if `hidden` is no sequence.
        ValueError: if a size is not positive, `activation` is unknown, `last_scale` is negative, or `zero_last` and
            `last_scale` are both given.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        activation: str = "silu",
        zero_last: bool = False,
        last_scale: float | None = None,
    ) -> None:
        super().__init__()
        if zero_last and last_scale is not None:
            msg = f"give `zero_last` or `last_scale`, not both; received last_scale={last_scale}."
            raise ValueError(msg)
        if last_scale is not None and not (is_finite(last_scale) and last_scale >= 0):
            msg = f"`last_scale` must be a finite number >= 0, received {last_scale!r}."
            raise ValueError(msg)
        # all checks before the first layer, which draws its weights
        widths = [check_positive("in_dim", in_dim), *check_widths("hidden", hidden)]
        check_positive("out_dim", out_dim)
        make_activation(activation)
        layers: list[nn.Module] = []
        for width, following in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width, following), make_activation(activation)]
        last = nn.Linear(widths[-1], out_dim)
        scale = 0.0 if zero_last else last_scale
        if scale is not None:
            with torch.no_grad():
                last.weight.mul_(scale)
                last.bias.mul_(scale)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: ``(..., in_dim) -> (..., out_dim)``."""
        return self.layers(x)


class SplitNet(nn.Module):
    """Perceptron of (t, z, inputs) whose first layer is a sum of parts, so that nothing is concatenated.

    The parts broadcast against each other (one time for all series, one context row for all particles), and
    the part of the inputs can be computed once for all steps before a sequential loop.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        hidden: Sequence[int],
        *,
        time_features: int,
        period: float | None,
        activation: str,
        last_scale: float,
    ) -> None:
        super().__init__()
        state_dim, input_dim, out_dim = sizes
        widths = check_widths("hidden", hidden)
        if not widths:
            msg = "`hidden` must name at least one layer; write an affine drift as a function of your own."
            raise ValueError(msg)
        _check_time(time_features, period)
        check_positive("out_dim", out_dim)
        self.input_dim, self.period = input_dim, period
        self.activation = make_activation(activation)
        width = widths[0]
        # Each part is initialised by its own fan-in: a wide context must not shrink the state's weights.
        self.state_part = nn.Linear(check_positive("state_dim", state_dim), width)
        phi_dim = time_features if period is None else 2 * time_features
        self.time_part = nn.Linear(phi_dim, width, bias=False) if time_features else None
        self.input_part = nn.Linear(input_dim, width, bias=False) if input_dim else None
        self.tail = MLP(width, out_dim, widths[1:], activation=activation, last_scale=last_scale)
        # Integers are exact in every float type, so `.double()` loses nothing.
        self.register_buffer("harmonics", torch.arange(1.0, time_features + 1), persistent=False)

    def project_inputs(self, inputs: Tensor) -> Tensor:
        """Part of the first layer that depends on the inputs only, for all rows at once.

        Args:
            inputs: ``(..., C)``, for example all context rows ``(*batch, K, C)``.

        Returns:
            ``(..., H)`` for `forward_projected`.

        Raises:
            ValueError: if this network takes no inputs or their last dimension has another size.
        """
        if self.input_part is None:
            msg = "`inputs` were given to a network without inputs; build it with `input_dim`."
            raise ValueError(msg)
        if inputs.shape[-1] != self.input_dim:
            msg = f"`inputs` must have shape (..., {self.input_dim}), received {tuple(inputs.shape)}."
            raise ValueError(msg)
        return self.input_part(inputs)

    def forward_projected(self, t: Tensor, z: Tensor, projected: Tensor | None) -> Tensor:
        """Output for rows ``(..., H)`` from `project_inputs`: `forward` for a loop over steps."""
        hidden = self.state_part(z)
        if self.time_part is not None:
            hidden = hidden + self.time_part(self._features(t))
        if projected is not None:
            hidden = hidden + projected
        return self.tail(self.activation(hidden))

    def forward(self, t: Tensor, z: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Output at time t ``(..., 1)``, state z ``(..., D)``, inputs ``(..., C)``; leading dims broadcast.

        Raises:
            ValueError: if inputs are missing, not expected, or of another size.
        """
        if inputs is not None:
            return self.forward_projected(t, z, self.project_inputs(inputs))
        if self.input_part is not None:
            msg = f"`inputs` of shape (..., {self.input_dim}) are missing; pass `inputs` to the path law."
            raise ValueError(msg)
        return self.forward_projected(t, z, None)

    def state_network(self, t: Tensor, inputs: Tensor | None) -> StateNetwork | None:
        """This network as a function of the state; None if a subclass or a hook makes it something else.

        Args:
            t: all times, ``(K, ..., 1)``.
            inputs: all rows, ``(K, ..., C)``.
        """
        own = type(self).forward is SplitNet.forward and type(self).forward_projected in _OWN_FORWARDS
        own = own and all(isinstance(layer, nn.Linear | type(self.activation)) for layer in self.tail.layers)
        channels = 0 if inputs is None else inputs.shape[-1]
        if not own or channels != self.input_dim or not is_plain(self):
            return None
        shift = self.state_part.bias
        if inputs is not None and self.input_part is not None:
            shift = nn.functional.linear(inputs, self.input_part.weight, shift)  # one pass less than a sum of both
        if self.time_part is not None:
            shift = shift + self.time_part(self._features(t))
        layers = [layer for layer in self.tail.layers if isinstance(layer, nn.Linear)]
        return StateNetwork(
            shift,
            (self.state_part.weight, *(layer.weight for layer in layers)),
            tuple(layer.bias for layer in layers),
            self.activation,
            self._rate(),
        )

    def _rate(self) -> Tensor | None:
        return None

    def _features(self, t: Tensor) -> Tensor:
        if self.period is None:
            return t
        angle = t * (2 * math.pi / self.period) * self.get_buffer("harmonics")  # (..., 1) * (n,) -> (..., n)
        return torch.cat([angle.sin(), angle.cos()], -1)


class DriftNet(SplitNet):
    r"""Drift network :math:`f(t, z, c) = \mathrm{MLP}(W_z z + W_t \phi(t) + W_c c + b)` in the shape of z.

    Autonomous by default. Time enters as t itself (``time_features=1``; bring times to order 1 first) or
    periodically, as :math:`\sin, \cos(2\pi j t / \mathrm{period})` for j from 1 to n, which repeats
    in a forecast where a network of t itself would extrapolate.

    Args:
        state_dim: number D of state dimensions.
        hidden: widths of the hidden layers, at least one.
        input_dim: number C of input channels, 0 for none.
        time_features: 0 for none, 1 for t itself, n >= 1 harmonics with `period`.
        period: period of the first harmonic, in the unit of t.
        activation: as in `MLP`.
        last_scale: factor on the initial last layer, ``>= 0``; small, so that paths start tame.
        reversion: initial rate :math:`\lambda \ge 0`, per unit of time, of a learned linear pull
            :math:`-\lambda_i z_i` that is added to every component; 0 for none. With a bounded activation
            ("tanh") it keeps paths finite for ever.

    Shape:
        t: ``(..., 1)`` · z: ``(..., D)`` · inputs: ``(..., C)`` · output: ``(..., D)``; leading dims
        broadcast (those of t only if time enters).

    Raises:
        TypeError: if `hidden` is no sequence.
        ValueError: if a size, `activation`, `time_features`, `period`, `last_scale` or `reversion` is not as described.
    """

    def __init__(
        self,
        state_dim: int,
        hidden: Sequence[int] = (64, 64),
        *,
        input_dim: int = 0,
        time_features: int = 0,
        period: float | None = None,
        activation: str = "silu",
        last_scale: float = 0.1,
        reversion: float = 0.0,
    ) -> None:
        # before weights are drawn
        for name, value, kind in (("last_scale", last_scale, "number"), ("reversion", reversion, "rate")):
            if not (is_finite(value) and value >= 0):
                msg = f"`{name}` must be a finite {kind} >= 0, received {value!r}."
                raise ValueError(msg)
        super().__init__(
            (
                check_positive("state_dim", state_dim),
                check_positive("input_dim", input_dim) if input_dim else 0,
                state_dim,
            ),
            hidden,
            time_features=time_features,
            period=period,
            activation=activation,
            last_scale=last_scale,
        )
        raw = torch.full((state_dim,), inverse_softplus(reversion)) if reversion else None
        self.raw_reversion = None if raw is None else nn.Parameter(raw)

    def forward_projected(self, t: Tensor, z: Tensor, projected: Tensor | None) -> Tensor:
        """Output for rows ``(..., H)`` from `project_inputs`: `forward` for a loop over steps."""
        output = super().forward_projected(t, z, projected)
        rate = self._rate()
        return output if rate is None else output - rate * z

    def _rate(self) -> Tensor | None:
        return None if self.raw_reversion is None else nn.functional.softplus(self.raw_reversion)


class ControlNet(SplitNet):
    """Control network u(t, z, context), 0 at the start: the guide begins at the prior, with a KL of 0.

    Use it with ``sde.controlled(control)``. `project_inputs` computes the part of the context once for all
    steps.

    Args:
        state_dim: number D of state dimensions.
        context_dim: number C of context channels.
        out_dim: number of controlled dimensions: D for diagonal noise, M otherwise; D if None.
        hidden: widths of the hidden layers, at least one.
        time_features: as in `DriftNet`.
        period: as in `DriftNet`.
        activation: as in `MLP`.

    Shape:
        t: ``(..., 1)`` · z: ``(..., D)`` · inputs: ``(..., C)`` · output: ``(..., out_dim)``; leading dims
        broadcast.

    Raises:
        TypeError: if `hidden` is no sequence.
        ValueError: if a size, `activation`, `time_features` or `period` is not as described.
    """

    def __init__(
        self,
        state_dim: int,
        context_dim: int,
        out_dim: int | None = None,
        hidden: Sequence[int] = (64, 64),
        *,
        time_features: int = 0,
        period: float | None = None,
        activation: str = "silu",
    ) -> None:
        super().__init__(
            (
                check_positive("state_dim", state_dim),
                check_positive("context_dim", context_dim),
                state_dim if out_dim is None else out_dim,
            ),
            hidden,
            time_features=time_features,
            period=period,
            activation=activation,
            last_scale=0.0,
        )


_OWN_FORWARDS = (SplitNet.forward_projected, DriftNet.forward_projected)


def _check_time(time_features: int, period: float | None) -> None:
    if not isinstance(time_features, int) or isinstance(time_features, bool) or time_features < 0:
        msg = f"`time_features` must be an integer >= 0, received {time_features!r}."
        raise ValueError(msg)
    if period is None and time_features > 1:
        msg = (
            f"`time_features` must be 0 (autonomous) or 1 (t itself) without a `period`, received "
            f"{time_features}. Pass `period` for sines and cosines."
        )
        raise ValueError(msg)
    if period is not None and not (is_finite(period) and period > 0 and time_features > 0):
        msg = (
            "`period` must be a positive finite number and needs `time_features` >= 1; received "
            f"period={period!r}, time_features={time_features}."
        )
        raise ValueError(msg)
