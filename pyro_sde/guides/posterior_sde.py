r"""The posterior of an SDE as an SDE: an encoder reads the series, a control bends the prior."""

from __future__ import annotations

from collections.abc import Callable

from pyro.nn import PyroModule
from torch import Tensor

from ..distributions.sde_path import SDEPath
from ..nn.base import Encoder
from ..nn.mlp import ControlNet
from ..ops.grid import TimeGrid
from ..sde.base import SDE

__all__ = ["PosteriorSDE"]


class PosteriorSDE(PyroModule):
    r"""Posterior SDE :math:`dz = (f + \sigma u(t, z, c_t))\,dt + \sigma\,dW`, :math:`z_0 \sim q_0`.

    The encoder gives the initial law :math:`q_0` and the context :math:`c_t`, one row per solver step, which says what
    is still to be observed. Drift f and diffusion :math:`\sigma` are those of the prior, which is passed at every call
    and not owned: guide and model share it. The exact posterior of an SDE has this form, for any noise type and with
    noise-free states. As the control starts at 0, so does the path term :math:`\tfrac12 E\int |u|^2 dt` of the
    divergence.

    Cost: one run of the encoder over the N observations; sampling is then K sequential steps.

    Args:
        encoder: reads the series.
        control: ``control(t, z, context)`` with values ``(..., D)`` for diagonal noise, ``(..., M)`` otherwise; a
            `ControlNet` for diagonal noise if None. For M noise dimensions pass ``ControlNet(D, C, M)``.

    Shape:
        values: ``(*batch, N, O)`` · mask: ``(*batch, N, O)`` or ``(*batch, N)`` · law: batch ``batch``, event
        ``(K + 1, D)``.

    Raises:
        TypeError: if `encoder` is not an `Encoder`, or `control` cannot be called.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328,
        section 5.

    Example:
        >>> import torch
        >>> from pyro_sde.sde import NeuralSDE
        >>> from pyro_sde.nn import GRUEncoder
        >>> posterior = PosteriorSDE(GRUEncoder(value_dim=1, state_dim=2, context_dim=8))
        >>> grid = TimeGrid(torch.tensor([0.0, 0.4, 1.0]), max_step=0.1)
        >>> posterior(NeuralSDE(2), grid, torch.randn(5, 3, 1))
        SDEPath(batch_shape=(5,), event_shape=(11, 2))
    """

    def __init__(self, encoder: Encoder, control: Callable[..., Tensor] | None = None) -> None:
        super().__init__("posterior_sde")  # a prefix in the parameter store; a parent module replaces it
        if not isinstance(encoder, Encoder):
            msg = f"`encoder` must be an Encoder, received {type(encoder).__name__}. Try GRUEncoder(O, D, C)."
            raise TypeError(msg)
        if control is not None and not callable(control):
            msg = f"`control` must be a function of (t, z, context), received {type(control).__name__}."
            raise TypeError(msg)
        self.encoder = encoder
        self.control = ControlNet(encoder.state_dim, encoder.context_dim) if control is None else control

    def forward(self, prior: SDE, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> SDEPath:
        """Law of the path given the observed series.

        Args:
            prior: SDE of the model.
            grid: solver grid of the model.
            values: observations at ``grid.observed_times``; anything, also NaN, where they are not observed.
            mask: True = observed; everything at valid times if None.

        Raises:
            ValueError: if shapes or dtypes do not fit; the message names the argument.
        """
        encoding = self.encoder(grid, values, mask)
        return SDEPath(prior.controlled(self.control), encoding.initial, grid, inputs=encoding.context)
