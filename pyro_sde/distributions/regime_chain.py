r"""The law of the regimes that the steps of a path follow."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..ops.hidden_markov import check_log_probabilities
from ._markov_loop import InContext, module_of

__all__ = ["RegimeChain"]

RegimeTransition = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class RegimeChain:
    r"""Law of regimes :math:`s_0 \sim p_0`, :math:`s_{k+1} \sim p(\cdot \mid s_k, z_{k+1})` of a `SwitchingPath`.

    Args:
        log_initial: :math:`\log p_0`, ``(*batch, K)``, normalised.
        log_transition: :math:`\log p(j \mid i)`, normalised over j, ``(*batch, K, K)``, row i the regime that is left;
            or, for recurrent switching, a function or module of ``(z, t, inputs)`` that returns ``(..., K, K)``. It is
            called as the transition is, at the state z from which the step to `t` departs, with the row of `inputs` of
            that step.

    Attributes:
        num_regimes: K.

    Raises:
        ValueError: if shapes do not fit, or probabilities do not sum to 1.
        TypeError: if `log_transition` is neither, or a tensor is not of floating-point numbers.
    """

    def __init__(self, log_initial: Tensor, log_transition: Tensor | RegimeTransition) -> None:
        for name, value in (("log_initial", log_initial), ("log_transition", log_transition)):
            if isinstance(value, Tensor) and not value.is_floating_point():
                msg = f"`{name}` must be of floating-point numbers, received {value.dtype}."
                raise TypeError(msg)
        if not isinstance(log_initial, Tensor) or log_initial.dim() < 1:
            shape = tuple(log_initial.shape) if isinstance(log_initial, Tensor) else type(log_initial).__name__
            msg = f"`log_initial` must have shape (*batch, K), received {shape}."
            raise ValueError(msg)
        check_log_probabilities("log_initial", log_initial)
        self.log_initial = log_initial
        self.log_transition = log_transition
        self.num_regimes = log_initial.shape[-1]
        if isinstance(log_transition, Tensor):
            self.check_table(log_transition)
        elif not callable(log_transition):
            msg = (
                "`log_transition` must be a tensor (*batch, K, K) or a function of (z, t, inputs), received "
                f"{type(log_transition).__name__}."
            )
            raise TypeError(msg)
        self.module = nn.Module() if isinstance(log_transition, Tensor) else module_of(log_transition)

    @property
    def recurrent(self) -> bool:
        """Whether regimes hang on the state."""
        return not isinstance(self.log_transition, Tensor)

    def check_table(self, table: Tensor) -> None:
        """Raise ValueError unless a table of log-probabilities fits."""
        width = self.num_regimes
        if not isinstance(table, Tensor) or table.shape[-2:] != (width, width):
            shape = tuple(table.shape) if isinstance(table, Tensor) else type(table).__name__
            msg = (
                f"`log_transition` must have shape (*batch, {width}, {width}) for the K = {width} regimes of "
                f"`log_initial`, received {shape}."
            )
            raise ValueError(msg)
        check_log_probabilities("log_transition", table)

    def table(self, z: Tensor, t: Tensor, inputs: Tensor | None) -> Tensor:
        """Log-probabilities of the step that departs from z, broadcastable to ``(..., K, K)``."""
        if isinstance(self.log_transition, Tensor):
            return self.log_transition
        return InContext(self.log_transition, self.module)(z, t, inputs)  # type: ignore[arg-type, return-value]
