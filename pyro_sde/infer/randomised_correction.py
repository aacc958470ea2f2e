r"""A bound without the bias of skipped gaps, at a fraction of the cost of simulating them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from ..distributions.kl import site_law
from ..distributions.multiscale_path import MultiScalePath
from ..ops._arguments import check_numbers

__all__ = ["GapwiseCorrection", "RandomisedCorrection", "SimulatedGaps"]


class SimulatedGaps(Messenger):
    """Inside it every `MultiScalePath` simulates its gaps: sites are sampled from `MultiScalePath.full`.

    Args:
        fills: number of gaps that are simulated, the first ones of every series; all of them if None.

    Attributes:
        num_gaps: gaps of the site with most of them, of those sampled so far.

    Raises:
        ValueError: if such a law is wrapped by ``.mask(...)`` or ``.to_event(...)``.
    """

    def __init__(self, fills: int | None = None) -> None:
        super().__init__()
        self.fills = fills
        self.num_gaps = 0

    def _pyro_sample(self, msg: Message) -> None:
        found = site_law(msg["fn"])
        if found is None or not isinstance(found.law, MultiScalePath) or msg["is_observed"]:
            return
        if found.law is not msg["fn"]:
            text = (
                f"site '{msg['name']}' has a MultiScalePath inside .mask(...) or .to_event(...), which cannot be "
                "exchanged for the full simulation. Write poutine.mask or a plate instead."
            )
            raise ValueError(text)
        self.num_gaps = max(self.num_gaps, found.law.num_gaps)
        if found.law._twin is None and self.fills != 0:
            msg["fn"] = found.law.full(self.fills)


class _Correction:
    """What both corrections have: a bound, a probability, and evaluations on common noise."""

    def __init__(self, elbo: Any, probability: float) -> None:  # noqa: ANN401
        check_numbers(probability=probability)
        if not 0 < probability <= 1:
            msg = f"`probability` must satisfy 0 < probability <= 1, received {probability}."
            raise ValueError(msg)
        if not callable(getattr(elbo, "differentiable_loss", None)):
            msg = (
                f"`elbo` must be a bound with `differentiable_loss`, such as PathELBO(), received "
                f"{type(elbo).__name__}."
            )
            raise TypeError(msg)
        self.elbo = elbo
        self.probability = probability


class RandomisedCorrection(_Correction):
    r"""Loss of the model that simulates its gaps, from the one that skips them: unbiased for any re-entry law.

    .. math:: \hat L = L_{\text{skip}} + \frac{B}{\varepsilon}\,(L_{\text{full}} - L_{\text{skip}}), \qquad
        B \sim \mathrm{Bernoulli}(\varepsilon)

    Both terms have the same coarse paths and the same noise inside windows. The mean of loss and gradient is that of
    the full simulation; the extra variance is :math:`(1/\varepsilon - 1)\,E (L_{\text{full}} - L_{\text{skip}})^2`,
    which falls with the burn-in. Cost: one more evaluation, of the full simulation, with probability
    :math:`\varepsilon`. Give it to SVI: ``SVI(model, guide, optim, loss=RandomisedCorrection(PathELBO(), 0.1))``.

    Note:
        Common noise comes from the CPU generator. On another device both terms are unbiased too, with more variance.

    Args:
        elbo: a bound with `differentiable_loss`, such as `PathELBO` or `Trace_ELBO`.
        probability: :math:`\varepsilon`, ``0 < probability <= 1``; 1 reproduces the full simulation.

    Attributes:
        difference: :math:`L_{\text{full}} - L_{\text{skip}}` of the latest evaluation with B = 1, None before: how
            large the bias of the skipped bound is.

    Raises:
        ValueError: if `probability` is not as described.
        TypeError: if `elbo` has no `differentiable_loss`.

    Derivation:
        B is independent of both terms, :math:`E[B / \varepsilon] = 1` and :math:`E(B / \varepsilon - 1)^2 =
        1 / \varepsilon - 1`. The idea is that of McLeish (2011), A general method for debiasing a Monte Carlo
        estimator, Monte Carlo Methods and Applications 17(4), with one term.
    """

    def __init__(self, elbo: Any, probability: float) -> None:  # noqa: ANN401
        super().__init__(elbo, probability)
        self.difference: float | None = None

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Loss to differentiate, the negative bound."""
        corrected = bool(torch.rand(()) < self.probability)
        before = torch.get_rng_state()
        skip = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        if not corrected:
            return skip
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        with SimulatedGaps():
            full = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        torch.set_rng_state(after)
        self.difference = float(skip.detach()) - float(full.detach())
        return skip + (full - skip) / self.probability


class GapwiseCorrection(_Correction):
    r"""`RandomisedCorrection` with a coin of its own for every gap.

    .. math:: \hat L = L_0 + \sum_{j=1}^{G} \frac{B_j}{\varepsilon}\,(L_j - L_{j-1}), \qquad
        B_j \sim \mathrm{Bernoulli}(\varepsilon) \text{ independent}

    with :math:`L_j` the loss of the model that simulates the first j gaps of every series, all on common noise. The
    mean is that of the full simulation again, since the sum telescopes. The extra variance is :math:`(1/\varepsilon -
    1) \sum_j E (L_j - L_{j-1})^2` instead of :math:`(1/\varepsilon - 1)\, E (\sum_j L_j - L_{j-1})^2`: less where
    gaps push the bound in one direction, up to G times, and equal where their terms are uncorrelated. Cost: two more
    evaluations for every gap that is drawn, of which each simulates the gaps up to it. So it is for few gaps, or for
    many with a small probability.

    Args:
        elbo: as for `RandomisedCorrection`.
        probability: :math:`\varepsilon` of every gap, ``0 < probability <= 1``; 1 reproduces the full simulation.

    Attributes:
        differences: :math:`L_j - L_{j-1}` of the bound for the gaps that were drawn in the latest evaluation, by j.

    Raises:
        ValueError: if `probability` is not as described.
        TypeError: if `elbo` has no `differentiable_loss`.

    Derivation:
        As for `RandomisedCorrection`, gap by gap; the variances of independent coins add up. A sum of corrections with
        coins of their own is in Rhee and Glynn (2015), Unbiased estimation with square root convergence for SDE
        models, Operations Research 63(5).
    """

    def __init__(self, elbo: Any, probability: float) -> None:  # noqa: ANN401
        super().__init__(elbo, probability)
        self.differences: dict[int, float] = {}

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Loss to differentiate, the negative bound."""
        before = torch.get_rng_state()
        with SimulatedGaps(0) as counted:
            total = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
        drawn = torch.rand(counted.num_gaps) < self.probability
        after = torch.get_rng_state()
        losses = {0: total}
        self.differences = {}
        for gap in (drawn.nonzero().flatten() + 1).tolist():
            for fills in (gap - 1, gap):
                if fills not in losses:
                    torch.set_rng_state(before)
                    with SimulatedGaps(fills):
                        losses[fills] = self.elbo.differentiable_loss(model, guide, *args, **kwargs)
            total = total + (losses[gap] - losses[gap - 1]) / self.probability
            self.differences[gap] = float(losses[gap - 1].detach()) - float(losses[gap].detach())
        torch.set_rng_state(after)
        return total
