r"""Re-entry: the law of the fine state at the start of a window, given the coarse path and the window before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..ops.layout import time_first
from ..ops.windows import Windows, gather_rows
from ..sde.two_scale import FineSDE
from ._multiscale_levels import LevelsAbove, gaussian_moments, hole_laws, joined
from ._multiscale_moments import GapLaws, Level, exact_gaps

__all__ = ["AmortisedReEntry", "BurnIn", "ExactReEntry", "ReEntry"]


class ReEntry(ABC):
    """How a fine path goes on behind a gap. Model and guide must have the same one: its terms then cancel."""

    unbiased: bool
    """Whether the bound is that of the model which simulates the gaps."""

    @abstractmethod
    def gaps(
        self, fine: FineSDE, coarse: Tensor, windows: Windows, state_dim: int, above: LevelsAbove | None = None
    ) -> GapLaws:
        """Law of the fine state behind each gap given that before it; `above` if there are several levels above.

        Shape:
            coarse: ``(..., K + 1, D_a)`` · the laws: offsets ``(G, ..., D)``, gaps leftmost, D = `state_dim`.
        """


class ExactReEntry(ReEntry):
    r"""Closed moments over the gap, for fine dynamics that are linear given the coarse path.

    .. math:: m' = (I + hA(a))\,m + h\,c(a), \qquad V' = (I + hA)\,V\,(I + hA)^\top + h\,\sigma\sigma^\top

    The gap is integrated out, so the bound is that of the full simulation, without bias. Whether the dynamics are
    linear and the diffusion free of the fine state is checked by calls at a few states. Cost: D + 3 calls of the fine
    coefficients per coarse step of a gap, all at once, and products of D x D matrices.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.1, for Euler steps.
    """

    unbiased = True

    def gaps(
        self, fine: FineSDE, coarse: Tensor, windows: Windows, state_dim: int, above: LevelsAbove | None = None
    ) -> GapLaws:
        """Composed Euler steps; where the level above has a gap too, given its states at both ends.

        Raises:
            ValueError: if the fine SDE, or in common gaps one above it, is not conditionally linear.
        """
        levels = (Level(fine, windows.fine_steps, state_dim),)
        if above is None or not bool(above.windows.real_gaps.any()):
            return exact_gaps(levels, coarse, windows)
        holes = hole_laws(above, levels)
        laws = exact_gaps(levels, coarse, windows, holes[1:])
        if not (laws.diagonal and holes.diagonal):
            laws, holes = laws.dense(), holes.dense()
        return joined(holes[:1].then(laws[:1]), laws[1:])

    def __repr__(self) -> str:
        """Name."""
        return "ExactReEntry()"


class BurnIn(ReEntry):
    r"""Enter by a simple law given the coarse state, and let the prior dynamics forget it before the first observation.

    The bound is exact for the model whose fine state is drawn anew at the start of every window. For the model that
    simulates the gaps it is biased, and may lie *above* its evidence: the divergence of the entry from the right law
    falls at least like :math:`e^{-2\rho\tau}` over a burn-in of length :math:`\tau`, with :math:`\rho` the rate of
    contraction of the fine dynamics (their linear rate, if linear). `MultiScalePath.report` estimates this factor,
    `RandomisedCorrection` removes the bias.

    Args:
        entry: ``entry(a)`` returns a Gaussian (``Normal(...).to_event(1)`` or `MultivariateNormal`) over the fine state
            for coarse states ``(..., history * D_a)``.
        history: number of coarse states that `entry` sees, the last of them at the start of the window. Before the
            start of the grid its first state repeats.

    Raises:
        TypeError: if `entry` cannot be called.
        ValueError: if `history` is no positive integer; at use, if the entry law is not Gaussian over the fine state.

    References:
        Bakry, Gentil, Ledoux (2014), Analysis and Geometry of Markov Diffusion Operators: decay of the
        divergence under a logarithmic Sobolev inequality.
    """

    unbiased = False

    def __init__(self, entry: Callable[[Tensor], Distribution], *, history: int = 1) -> None:
        if not callable(entry):
            msg = f"`entry` must be a function of the coarse state, received {type(entry).__name__}."
            raise TypeError(msg)
        if not isinstance(history, int) or isinstance(history, bool) or history < 1:
            msg = f"`history` must be an integer >= 1, the number of coarse states; received {history!r}."
            raise ValueError(msg)
        self.entry = entry
        self.history = history

    def law(self, states: Tensor) -> Distribution:
        """Entry law for coarse states ``(..., history * D_a)``."""
        return self.entry(states)

    def coarse_states(self, coarse: Tensor, windows: Windows) -> Tensor:
        """Coarse states that the entry of each window sees, gaps leftmost, ``(G, ..., history * D_a)``."""
        back = torch.arange(self.history, device=coarse.device).flip(0)
        index = (windows.gap_ends.unsqueeze(-1) - back).clamp(min=0)  # (*batch, G, history)
        states = gather_rows(coarse, index.flatten(-2))  # (..., G * history, D_a)
        states = states.reshape(*states.shape[:-2], index.shape[-2], self.history * coarse.shape[-1])
        return time_first(states, states.dim() - 2)

    def gaps(
        self, fine: FineSDE, coarse: Tensor, windows: Windows, state_dim: int, above: LevelsAbove | None = None
    ) -> GapLaws:
        """Laws that do not depend on the state before the gap."""
        del fine, above
        states = self.coarse_states(coarse, windows)
        mean, covariance, diagonal = gaussian_moments("entry", self.law(states), state_dim)
        mean = mean.expand(*states.shape[:-1], state_dim)
        covariance = covariance.expand(*states.shape[:-1], *covariance.shape[-1 if diagonal else -2 :])
        return GapLaws(torch.zeros_like(covariance), mean, covariance, diagonal)

    def __repr__(self) -> str:
        """Name and entry."""
        return f"{type(self).__name__}({self.entry!r}, history={self.history})"


class AmortisedReEntry(BurnIn):
    r"""`BurnIn` whose entry law is learned: the marginal of the simulated prior, by maximum likelihood.

    .. math:: \min_\phi\; -E \log q_\phi(b(s) \mid a), \qquad b(s) \text{ simulated by the prior given } a

    In a bound its parameters are constants: a bound would bend them, and with them the model it is a bound for, to the
    data. They learn from `MultiScalePath.entry_loss` alone. Bias and remedy as for `BurnIn`; it falls to that of the
    best Gaussian.

    Args:
        entry: module as for `BurnIn`, with learned parameters.
        history: as for `BurnIn`.

    Raises:
        TypeError: if `entry` is no module.

    Derivation:
        :math:`-E \log q_\phi = \mathrm{KL}(p \,\|\, q_\phi) + \text{const}` with p the marginal of the simulated prior,
        so the minimum is the law of the family that is nearest to it.
    """

    def __init__(self, entry: nn.Module, *, history: int = 1) -> None:
        if not isinstance(entry, nn.Module):
            msg = f"`entry` must be a module with parameters to learn, received {type(entry).__name__}. Use BurnIn."
            raise TypeError(msg)
        super().__init__(entry, history=history)
        self.module = entry

    def law(self, states: Tensor) -> Distribution:
        """Entry law with constant parameters; the gradient with respect to the states is kept."""
        constants = {name: value.detach() for name, value in self.module.named_parameters()}
        return torch.func.functional_call(self.module, constants, (states,))

    def loss(self, states: Tensor, fine_states: Tensor, valid: Tensor) -> Tensor:
        r"""Mean of :math:`-\log q(b \mid a)` over valid entries.

        Shape:
            states: ``(G, ..., history * D_a)`` · fine_states: ``(G, ..., D)`` · valid: broadcastable to ``(G, ...)``.
        """
        log_q = self.module(states.detach()).log_prob(fine_states.detach())
        weights = valid.expand(log_q.shape).to(log_q.dtype)
        return -(log_q * weights).sum() / weights.sum().clamp(min=1)
