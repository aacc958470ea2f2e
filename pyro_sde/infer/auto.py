"""Automatic guides whose path sites are posterior SDEs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to

from ..distributions.kl import SiteLaw, site_law
from ..distributions.sde_path import SDEPath
from ..nn.base import Encoding, check_widths
from ..nn.mlp import ControlNet
from ._auto_base import PathMessenger, is_identity, rewrap
from ._free_control import ROW_UNIT, FreeControl
from .reparam import is_point_mass

__all__ = ["AutoSDE"]

_NUM_DRAWS = 255  # for the quantiles of an initial law without known mean


class AutoSDE(PathMessenger):
    r"""Guide that gives every path site a posterior SDE, and every other latent site a mean-field Normal.

    .. math:: dz = \big(f(t, z) + \sigma(t, z)\, u(t, z)\big)\,dt + \sigma(t, z)\,dW, \qquad z_0 \sim q_0

    Drift, diffusion, grid and inputs are those of the model's `SDEPath` at the site, read while the model runs, so that
    the divergence is finite by construction, hierarchical models work (the posterior follows the sampled parameters of
    the prior), and training starts at the prior with a divergence of zero where its initial law is Normal.

    Without an encoder the control is free at every solver step,

    .. math:: u_k(z) = b_k + A_k z + \mathrm{net}(t_k, z),

    with rows :math:`(b_k, A_k)` per series and a network shared by all, zero at the start. It is exact for
    linear-Gaussian models as the step goes to 0; use it for data that fit in memory: K (M + M D) numbers per series. In
    subsampled plates the rows of the series at hand are used; all series must then live on one grid or on rows of one
    padded `TimeGrid` (``grid[indices]``).

    With an encoder, rows and :math:`q_0` are functions of the data, and a `ControlNet` reads the rows: use it for many
    series, minibatches, and new series after training.

    Other latent sites get :math:`N(\mu, s^2)` in unconstrained space, as in `AutoNormalMessenger`. Parameters are
    created at the first call and named ``AutoSDE.<site>.<name>``. Cost: that of the prior plus the control, once per
    step. Guides can be pickled if their models can.

    Args:
        model: the model; it may contain any number of path sites.
        encoder: called with the model's arguments; returns an `Encoding`, or a dict of them by site. The arguments must
            be those of the minibatch if there are minibatches.
        hidden: widths of the control network; ``()`` for a purely affine control (without an encoder only).
        init_scale: initial standard deviation of sites that are no paths, in unconstrained space, ``> 0``.

    Raises:
        TypeError: if `encoder` cannot be called or returns something else, or a path site has another law than
            `SDEPath`.
        ValueError: if an argument is out of range, a latent site is discrete, the shape of a path site changes between
            calls, or a parameter of the same name and another shape is in Pyro's store.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328
        (posterior SDE with an encoder); Archer, Park, Buesing, Cunningham, Paninski (2015), Black box variational
        inference for state space models, arXiv 1511.07367 (free parameters per step).

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_sde import SDEPath, TimeGrid
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> initial, grid = (
        ...     dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ...     TimeGrid(torch.tensor([0.0, 1.0]), max_step=0.1),
        ... )
        >>> guide = AutoSDE(lambda: pyro.sample("z", SDEPath(OrnsteinUhlenbeck(1.0, 0.5), initial, grid)))
        >>> guide()["z"].shape
        torch.Size([11, 2])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        encoder: Callable[..., Encoding | Mapping[str, Encoding]] | None = None,
        *,
        hidden: Sequence[int] = (32,),
        init_scale: float = 0.1,
    ) -> None:
        if encoder is not None and not callable(encoder):
            msg = f"`encoder` must be a function of the model's arguments, received {type(encoder).__name__}."
            raise TypeError(msg)
        widths = check_widths("hidden", hidden)
        if encoder is not None and not widths:
            msg = "`hidden` must name at least one layer if there is an encoder: its rows enter through the network."
            raise ValueError(msg)
        super().__init__(model, "AutoSDE", init_scale)
        self.hidden = tuple(widths)
        self.encoder = encoder
        self._encoding: Encoding | Mapping[str, Encoding] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Draw from the guide and replay the model; returns the values of all sample sites."""
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._encoding = None

    def get_posterior(self, name: str, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Posterior law of one site, called while the model runs.

        Override it for sites that need another guide, and call this method for the others. `prior` is the law of the
        model at the site, given the values of upstream sites (`upstream_value`).

        Args:
            name: the site.
            prior: its law in the model, broadcast over the plates of the model.

        Returns:
            The posterior law, in the wrappers (mask, event dimensions) of the prior.
        """
        site = site_law(prior)
        if site is None:
            return self.mean_field(name, prior)
        if not isinstance(site.law, SDEPath):
            msg = (
                f"site '{name}': AutoSDE builds posteriors of SDEPath laws, received {type(site.law).__name__}. "
                "Override get_posterior for this site."
            )
            raise TypeError(msg)
        q0, control, rows = (
            self._free_control(name, site, site.law)
            if self.encoder is None
            else self._encoded_control(name, site.law, self._encode(name))
        )
        law = site.law
        sde = law.sde if law.inputs is None else law.sde.with_inputs(law.inputs)
        with law.effects:  # sample statements inside the prior's drift were executed when the prior was built
            posterior = SDEPath(sde.controlled(control), q0, law.grid, inputs=rows)
        return rewrap(site, posterior)

    # ---------------------------------------------------------------- path sites
    def _free_control(self, name: str, site: SiteLaw, law: SDEPath) -> tuple[Distribution, nn.Module, Tensor]:
        """Initial law, control and one row of parameters per step."""
        states, brownian = law.event_shape[-1], law.noise_shape()[-1]
        times, steps = law.grid.times.detach(), law.grid.num_steps
        shape = (*self.full_batch(law.batch_shape, site.reinterpreted), steps, brownian * (1 + states))
        rows = self.sites.param(name, "rows", shape, lambda: times.new_zeros(shape), 2 + site.reinterpreted)

        def build() -> FreeControl:
            start, end = times.min().item(), times.max().item()
            return FreeControl(states, brownian, self.hidden, (start, end)).to(times)

        control = self.sites.module(name, "control", build)
        # In these units neither energy nor learning rate depends on the unit of time; see ROW_UNIT for their size.
        return self._initial(name, site, law), control, rows * (ROW_UNIT * control.unit)

    def _encoded_control(self, name: str, law: SDEPath, encoding: Encoding) -> tuple[Any, nn.Module, Tensor]:
        """Initial law, control and rows of an encoder."""
        rows, q0 = encoding.context, encoding.initial
        states, brownian = law.event_shape[-1], law.noise_shape()[-1]
        steps, batch = law.grid.num_steps, tuple(law.batch_shape)
        if q0.event_shape != law.event_shape[-1:] or rows.shape[-2] != steps:
            msg = (
                f"site '{name}' has {steps} steps and {states} states, but the encoder returned {rows.shape[-2]} rows "
                f"of context and an initial law of event shape {tuple(q0.event_shape)}. Give the encoder the grid and "
                "the state dimension of the model."
            )
            raise ValueError(msg)
        try:
            torch.broadcast_shapes(rows.shape[:-2], q0.batch_shape, batch)
        except RuntimeError as error:
            msg = (
                f"site '{name}' has batch shape {batch}, but the encoder returned {tuple(rows.shape[:-2])}. Pass the "
                "minibatch to model and encoder, with plate(name, size, subsample=indices)."
            )
            raise ValueError(msg) from error
        width = rows.shape[-1]
        control = self.sites.module(
            name, "control", lambda: ControlNet(states, width, brownian, self.hidden).to(rows.detach())
        )
        return (law.initial if is_point_mass(law.initial) else q0), control, rows

    def _encode(self, name: str) -> Encoding:
        """The encoder's answer for a site; the encoder runs once per call of the guide."""
        if self._encoding is None:
            args, kwargs = self.args_kwargs
            self._encoding = self.encoder(*args, **kwargs)  # type: ignore[misc]
        encoding = self._encoding
        if isinstance(encoding, Mapping):
            if name not in encoding:
                msg = f"`encoder` returned encodings of the sites {sorted(encoding)}, but none of path site '{name}'."
                raise ValueError(msg)
            encoding = encoding[name]
        if not isinstance(encoding, Encoding):
            msg = f"`encoder` must return an Encoding, or a dict of them by site; received {type(encoding).__name__}."
            raise TypeError(msg)
        return encoding

    def _initial(self, name: str, site: SiteLaw, law: SDEPath) -> Any:  # noqa: ANN401 (a distribution of Pyro)
        """Normal law of the first state in unconstrained space, at the prior's mean and standard deviation."""
        prior = law.initial
        if is_point_mass(prior):
            return prior
        shape = torch.Size((*law.batch_shape, law.event_shape[-1]))
        return self.normal(name, prior, shape, site.reinterpreted, lambda: _moments(prior))


def _moments(law: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 (a distribution of Pyro)
    """Mean and standard deviation in unconstrained space; median and quantiles of draws where there is no formula."""
    transform = biject_to(law.support)
    if is_identity(transform):
        try:
            loc, scale = law.mean, law.stddev
        except NotImplementedError:
            pass
        else:
            if bool(torch.isfinite(loc).all() & torch.isfinite(scale).all() & (scale > 0).all()):
                return loc, scale
    draws = transform.inv(law.sample((_NUM_DRAWS,)))
    low, loc, high = draws.quantile(torch.tensor([0.16, 0.5, 0.84]).to(draws), 0)
    return loc, (0.5 * (high - low)).clamp(min=1e-6)
