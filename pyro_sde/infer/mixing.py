r"""Fast mixing of a fine posterior: a penalty on dynamics that forget their past too slowly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from ..distributions.kl import site_law
from ..distributions.multiscale_path import MultiScalePath
from ..ops._arguments import check_numbers
from ..ops.layout import time_first

__all__ = ["FinePaths", "MixingRegulariser", "contraction_rates", "mixing_penalty"]


class FinePaths(Messenger):
    """Keeps the first law and path of every `MultiScalePath` site: in an evaluation of a bound, those of the guide.

    Attributes:
        sites: law and path by the name of the site.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, tuple[MultiScalePath, Tensor]] = {}

    def _pyro_post_sample(self, msg: Message) -> None:
        found = site_law(msg["fn"])
        if found is not None and isinstance(found.law, MultiScalePath) and isinstance(msg["value"], Tensor):
            self.sites.setdefault(str(msg["name"]), (found.law, msg["value"]))


def contraction_rates(law: MultiScalePath, path: Tensor) -> Tensor:
    r"""Rate at which two paths of the same noise approach each other, at least, along a path.

    .. math:: \rho_k = -\lambda_{\max}\big(\tfrac12 (J_k + J_k^\top)\big), \qquad
        J_k = \partial_b \big(f_b + \sigma_b u\big)(t_k, b_k, a_k)

    Then :math:`|b_\tau - b'_\tau| \le e^{-\int \rho\,dt}\,|b_0 - b'_0|` for nearby paths: what a window remembers of
    how it was entered. For a diffusion that does not depend on the fine state. Cost: D directional derivatives of the
    coefficients, for all steps at once.

    Args:
        law: the fine law, of a guide or a model.
        path: ``(..., R, D)``.

    Returns:
        Rates ``(R - 1, ...)``, time leftmost, 0 on steps outside the windows; per unit of time.

    References:
        Söderlind (2006), The logarithmic norm. History and modern theory, BIT Numerical Mathematics 46.
    """
    rank = max(path.dim() - 2, len(law.batch_shape))
    states, times = time_first(path, rank)[:-1], time_first(law.grid.times.unsqueeze(-1), rank)[:-1]
    _, jacobian = law.drift_jacobian_along(times, states)
    symmetric = (jacobian + jacobian.mT) / 2
    fastest = symmetric[..., 0, 0] if symmetric.shape[-1] == 1 else torch.linalg.eigvalsh(symmetric)[..., -1]
    active = time_first(law.windows.active.unsqueeze(-1), rank).squeeze(-1)
    return torch.where(active, -fastest, torch.zeros_like(fastest))


def mixing_penalty(law: MultiScalePath, path: Tensor, rate: float) -> Tensor:
    r"""How far a fine law mixes more slowly than wanted, along a path.

    .. math:: \frac{1}{|S|} \int_S \big(\kappa - \rho(t)\big)_+^2\,dt

    over the windows S, with :math:`\rho` from `contraction_rates` and :math:`\kappa` the rate wanted. It is 0 where the
    dynamics contract fast enough, so they are bent nowhere else.

    Args:
        law: the fine law, usually of the guide.
        path: ``(..., R, D)``.
        rate: :math:`\kappa > 0`, per unit of time; with a burn-in of length :math:`\tau`, at least
            :math:`\log(1 / \text{tolerance}) / (2 \tau)` for a tolerated rest of the divergence of the entry law.

    Returns:
        ``(...)``, per unit of time squared.

    Raises:
        ValueError: if `rate` is not positive.

    Derivation:
        The lower end of `rate` solves :math:`e^{-2 \kappa \tau} = \text{tolerance}`, the factor by which the divergence
        of the entry law falls over a burn-in (`BurnIn`). The squared hinge is a choice: smooth, and 0 where none is
        needed.
    """
    _check_positive("rate", rate)
    slow = (rate - contraction_rates(law, path)).clamp(min=0).square()
    steps = time_first(law.grid.steps.unsqueeze(-1), slow.dim() - 1).squeeze(-1)
    active = time_first(law.windows.active.unsqueeze(-1), slow.dim() - 1).squeeze(-1)
    weights = steps * active
    return (slow * weights).sum(0) / weights.sum(0).clamp(min=torch.finfo(weights.dtype).tiny)


class MixingRegulariser:
    r"""Loss of a bound plus a penalty on fine posterior dynamics that mix slowly.

    .. math:: \hat L = L + w\, \mathrm{mean}\, \frac{1}{|S|} \int_S \big(\kappa - \rho(t)\big)_+^2\,dt

    The mean is over series and particles. A posterior that forgets how a window was entered needs a short burn-in only,
    so windows stay short. The penalty is no part of the bound: report the bound without it. Paths count as given, its
    gradient reaches the dynamics alone.
    Give it to SVI: ``SVI(model, guide, optim, loss=MixingRegulariser(PathELBO(), rate=5.0, weight=0.1))``.

    Args:
        elbo: a loss with arguments as of a `differentiable_loss`: a bound such as `PathELBO`, or a
            `RandomisedCorrection`.
        rate: :math:`\kappa > 0`, the rate wanted, per unit of time.
        weight: :math:`w \ge 0`, nats times the unit of time squared.

    Attributes:
        penalty: the mean of the latest evaluation, summed over sites, without the weight.

    Raises:
        ValueError: if `rate` or `weight` is not as described; at use, if the guide has no `MultiScalePath`.
        TypeError: if `elbo` is no such loss.

    References:
        Bakry, Gentil, Ledoux (2014), Analysis and Geometry of Markov Diffusion Operators: contraction by the symmetric
        part of the Jacobian.
    """

    def __init__(self, elbo: Any, *, rate: float, weight: float) -> None:  # noqa: ANN401
        _check_positive("rate", rate)
        check_numbers(weight=weight)
        if not 0 <= weight < math.inf:
            msg = f"`weight` must be a number >= 0, received {weight!r}."
            raise ValueError(msg)
        loss: Any = getattr(elbo, "differentiable_loss", elbo)
        if not callable(loss):
            msg = f"`elbo` must be a bound with `differentiable_loss` or a loss, received {type(elbo).__name__}."
            raise TypeError(msg)
        self.elbo, self.rate, self.weight = elbo, rate, weight
        self._loss: Any = loss
        self.penalty = 0.0

    def __call__(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Loss to differentiate."""
        with FinePaths() as seen:
            loss = self._loss(model, guide, *args, **kwargs)
        if not seen.sites:
            msg = "the guide has no MultiScalePath, so there is no fine posterior whose mixing could be penalised."
            raise ValueError(msg)
        total = torch.zeros_like(loss)
        for law, path in seen.sites.values():
            total = total + mixing_penalty(law, path.detach(), self.rate).mean()
        self.penalty = float(total.detach())
        return loss + self.weight * total


def _check_positive(name: str, value: float) -> None:
    check_numbers(**{name: value})
    if not 0 < value < math.inf:
        msg = f"`{name}` must be a number > 0, received {value!r}."
        raise ValueError(msg)
