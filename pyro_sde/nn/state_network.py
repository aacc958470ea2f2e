"""What a coefficient of our own is made of, for solvers that evaluate it without calling its modules."""

from __future__ import annotations

from typing import NamedTuple

from pyro.nn import PyroModule
from torch import Tensor, nn

__all__ = ["StateNetwork", "is_plain"]


class StateNetwork(NamedTuple):
    r"""A coefficient as a function of the state z alone: what does not depend on z is in `shift` already.

    .. math:: y(z) = W_n\,a(\dots a(W_1 z + c) \dots) + b_n - \rho \odot z, \qquad
        \text{value} = y \text{ or } \mathrm{low} + \mathrm{span} \cdot \mathrm{sigmoid}(y)

    Without weights :math:`y = c - \rho \odot z`. A coefficient offers this form by a method
    ``state_network(t, inputs)``, called once for all times of a path; it returns None where the form would not be what
    its `forward` computes.

    Attributes:
        shift: :math:`c`, broadcastable to ``(K, *batch, H)``, time leftmost if it has all of these axes.
        weights: :math:`W_1` ``(H, D)``, :math:`W_2`, ...
        biases: :math:`b_2`, ..., one less than the weights.
        activation: :math:`a`, elementwise; None without weights.
        rate: :math:`\rho`, broadcastable to ``(*batch, D)``; None for 0.
        bounds: (low, span), numbers; None for no sigmoid.
        elementwise: whether output i depends on z_i only.

    Definition:
        The form is that of `MLP`, `DriftNet` and `DiagonalDiffusion` once time and inputs are known.
    """

    shift: Tensor
    weights: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()
    activation: nn.Module | None = None
    rate: Tensor | None = None
    bounds: tuple[float, float] | None = None
    elementwise: bool = False


def is_plain(module: nn.Module) -> bool:
    """Whether all linear layers of a module are ordinary: no hooks, no batch of weights, no `forward` of their own.

    A layer whose weight is computed (a parametrisation) is ordinary as long as it is a matrix. A `PyroModule` is not:
    its attributes are Pyro statements, which only a call of the module executes.
    """
    for part in module.modules():
        if isinstance(part, PyroModule):
            return False
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return False
        if isinstance(part, nn.Linear) and (type(part).forward is not nn.Linear.forward or part.weight.dim() != 2):
            return False
    return True
