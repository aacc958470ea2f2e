"""Reparameterisation of a path site by the noise that drives it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.reparam.reparam import Reparam, ReparamMessage, ReparamResult
from torch import Tensor
from torch.distributions import Independent

from ..distributions.base import DrivenPath
from ..distributions.kl import SiteLaw, site_law

__all__ = ["PathNoiseReparam", "is_point_mass"]


class PathNoiseReparam(Reparam):
    r"""Replaces a latent `SDEPath` or `GaussianPath` by its first state and the standard normal noise that drives it.

    .. math::
        z_0 \sim p_0, \quad \epsilon_k \sim N(0, I_M), \quad
        z_{k+1} = z_k + f(t_k, z_k)\,h_k + \sigma(t_k, z_k)\,\sqrt{h_k}\,\epsilon_k

    The model is the same; only the coordinates of its posterior change. Neighbouring states of a path are nearly equal,
    so the posterior of the path itself becomes ill-conditioned as the grid is refined (condition number 77, 1,094,
    17,125 at 20, 80, 320 steps of an Ornstein–Uhlenbeck example), while that of the noise does not (13 at all three).
    Use it for HMC and NUTS over paths, for `AutoMultivariateNormal` and other automatic guides, and wherever the
    diffusion is degenerate (Langevin dynamics), where the path has no density with respect to Lebesgue measure. Cost:
    K sequential steps per evaluation, where the density of a path is one batched call.

    The site ``z`` becomes ``z_initial`` (event shape ``(D,)``; left out if the initial law is a Delta), ``z_noise``
    (event shape ``(K, M)``; the noise of padded steps moves nothing) and a deterministic ``z``. Plates, `.mask` and
    `.to_event` around the path law stay around both. An initial value for ``z`` is turned into one for the noise;
    directions without noise then follow from the others.

    Raises:
        TypeError: at the site, if its law is another.
        ValueError: at the site, if it is observed.

    References:
        Papaspiliopoulos, Roberts, Sköld (2007), A general framework for the parametrization of hierarchical models
        (non-centred); Gorinova, Moore, Hoffman (2019), arXiv 1906.03028.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import BrownianMotion
        >>> initial, grid = dist.Normal(torch.zeros(2), 1.0).to_event(1), TimeGrid(torch.tensor([0.0, 1.0, 3.0]))
        >>> model = lambda: pyro.sample("z", SDEPath(BrownianMotion(), initial, grid))
        >>> trace = poutine.trace(poutine.reparam(model, {"z": PathNoiseReparam()})).get_trace()
        >>> {name: tuple(trace.nodes[name]["value"].shape) for name in trace.stochastic_nodes}
        {'z_initial': (2,), 'z_noise': (2, 2)}
    """

    def apply(self, msg: ReparamMessage) -> ReparamResult:
        """Sample first state and noise, and return the path that they make as a deterministic site."""
        name = msg["name"]
        site = _latent_path(name, msg["fn"], bool(msg["is_observed"]))
        law = site.law
        given = msg["value"]
        first = None if given is None else given[..., 0, :]
        noise = None if given is None else law.noise_of(given)
        first = _sample_initial(name, site, law, first)
        noise = _sample_noise(name, site, law, noise, first)
        # Every site broadcasts over the plates by itself; a Delta initial law may have seen fewer of them.
        first = first.expand(*torch.broadcast_shapes(first.shape[:-1], noise.shape[:-2]), first.shape[-1])
        value = _solve(law, first, noise)
        if given is not None and given.shape == value.shape and _agree(given, value):
            value = given  # the caller's tensor, so that Pyro sees that the initial value was kept
        deterministic = dist.Delta(value, event_dim=2 + site.reinterpreted).mask(False)
        return {"fn": deterministic, "value": value, "is_observed": True}


def _latent_path(name: str, fn: object, is_observed: bool) -> SiteLaw:
    site = site_law(fn)
    if site is None or not isinstance(site.law, DrivenPath):
        law = type(fn).__name__ if site is None else type(site.law).__name__
        msg = (
            f"site '{name}': PathNoiseReparam serves sites with a law that normal noise drives, such as SDEPath "
            f"or GaussianPath, received {law}. Name only path sites in the config of poutine.reparam."
        )
        raise TypeError(msg)
    if is_observed:
        msg = (
            f"site '{name}' is observed, but PathNoiseReparam serves latent paths: the density of an observed path "
            "belongs to its own coordinates. Remove the site from the config of poutine.reparam."
        )
        raise ValueError(msg)
    return site


def _sample_initial(name: str, site: SiteLaw, law: DrivenPath, value: Tensor | None) -> Tensor:
    """First state ``(..., D)``, from a site of its own unless the initial law is a point."""
    if is_point_mass(law.initial):
        return law.initial.sample()
    fn = _wrap(law.initial, site)  # type: ignore[arg-type]
    return pyro.sample(f"{name}_initial", fn, obs=value, infer={"is_observed": False})


def _sample_noise(name: str, site: SiteLaw, law: DrivenPath, value: Tensor | None, like: Tensor) -> Tensor:
    """Standard normal noise ``(..., K, M)``; no site if there is no step."""
    shape = law.noise_shape()
    if shape[-2] == 0:
        return like.new_zeros(shape)
    fn = _wrap(dist.Normal(like.new_zeros(shape), like.new_ones(())).to_event(2), site)
    return pyro.sample(f"{name}_noise", fn, obs=value, infer={"is_observed": False})


def _solve(law: DrivenPath, first: Tensor, noise: Tensor) -> Tensor:
    """Path of the given noise; NaN where it explodes and validation is off.

    HMC tries parameters far outside the typical set. `pyro.infer.MCMC` switches validation off meanwhile and rejects
    what has no finite energy, so an exploding path must not stop it.
    """
    try:
        return law.solve(first, noise)
    except ValueError:
        if law._validate_args:
            raise
        shape = (*first.shape[:-1], *law.event_shape)
        return first.new_zeros(shape) + (first.sum() + noise.sum()) * float("nan")


def _wrap(fn: TorchDistributionMixin, site: SiteLaw) -> TorchDistributionMixin:
    """The wrappers of a path site around another law of the same batch shape."""
    if site.mask is not None:
        fn = fn.mask(site.mask)
    return fn.to_event(site.reinterpreted) if site.reinterpreted else fn


def is_point_mass(fn: object) -> bool:
    """Whether a law is a Delta, looking through `.to_event`."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to the round-off of a solve."""
    with torch.no_grad():
        eps = torch.finfo(ours.dtype).eps
        size = 1 + torch.maximum(ours.abs().amax(), theirs.abs().amax())
        return bool(((ours - theirs).abs() <= 1e3 * eps * size).all())
