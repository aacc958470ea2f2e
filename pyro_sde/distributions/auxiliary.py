r"""Variables of the guide that the model does not have, with the reverse model that keeps the bound a bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK, Message
from torch import Tensor
from torch.distributions import Distribution, constraints

from .base import PathDistribution
from .kernels import TransitionKernels

__all__ = ["AuxiliaryModel", "ReverseLaw", "ReversePath", "auxiliary"]

_NO_CLOSED_FORM = (
    "a reverse model may look at the whole path that it is given, so the stochastic integral of the log-ratio has a "
    "mean of its own and must be kept"
)


def auxiliary(
    model: Callable[..., Any],
    name: str,
    reverse: Callable[..., Distribution] | None = None,
    *,
    given: Sequence[str] = (),
) -> AuxiliaryModel:
    r"""Model extended by the reverse model :math:`r(a \mid b)` of a variable `a` that only the guide has.

    .. math:: L = E_{q(a) q(b \mid a)}\big[\log p(y \mid b) + \log p(b) + \log r(a \mid b) - \log q(a)
        - \log q(b \mid a)\big] \le \log p(y)

    The gap is :math:`\mathrm{KL}(q(b) \| p(b|y)) + E_q \mathrm{KL}(q(a|b) \| r(a|b))`, so `reverse` is learned with the
    guide; without it the loss is no bound (Pyro alone, with ``infer={"is_auxiliary": True}``, then reports +3.9 for an
    evidence of -1.4). Use the result in place of the model, in `Trace_ELBO`, `PathELBO` and
    `RenyiELBO`; the guide samples `name` as any other site::

        extended = auxiliary(model, "a", lambda b: SDEPath(SDE(rho, sigma), r0, grid, inputs=b), given=["b"])
        svi = SVI(extended, guide, optim, PathELBO())

    The reverse site exists only where it has a value, from a guide or a condition: `Predictive` and other runs forward
    leave it out. Divergences in closed form are refused for it (``kl="closed"``; `TraceMeanField_ELBO` takes the
    log-ratio). A reverse path needs the diffusion of the guide's. For several variables, nest.

    Args:
        model: the model without the variable.
        name: name of the site in the guide.
        reverse: ``reverse(*values)`` returns the law r, on the values of the sites `given`.
        given: names of model sites, latent or observed. The site stands in the plates of the last of them.

    Raises:
        ValueError: if `reverse` or `given` is missing; when the model runs, if it lacks a site of `given` or has
            `name`.
        TypeError: if `model` or `reverse` cannot be called.

    References:
        Ranganath, Tran, Blei (2016), Hierarchical variational models, arXiv 1511.02386;
        Maaløe et al. (2016), Auxiliary deep generative models, arXiv 1602.05473.
    """
    return AuxiliaryModel(model, name, reverse, given=given)


class AuxiliaryModel:
    """A model with a reverse site; built by `auxiliary`.

    Attributes:
        model: the model without it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        name: str,
        reverse: Callable[..., Distribution] | None = None,
        *,
        given: Sequence[str] = (),
    ) -> None:
        if reverse is None or not given:
            msg = (
                f"the auxiliary site '{name}' has no reverse model: log q('{name}') would have nothing to be compared "
                "with, and the loss would be no bound. Give `reverse`, a function that returns the law "
                f"r({name} | values), and `given`, the names of the sites it sees."
            )
            raise ValueError(msg)
        for label, function in (("model", model), ("reverse", reverse)):
            if not callable(function):
                msg = f"`{label}` must be a function, received {type(function).__name__}."
                raise TypeError(msg)
        if isinstance(given, str):
            given = (given,)
        self.model, self.name, self.reverse, self.given = model, name, reverse, tuple(given)
        self.__wrapped__ = model  # whose parameters belong to this model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Run the model, and the reverse site as soon as the values that it needs are there."""
        with _ReverseSite(self) as site:
            result = self.model(*args, **kwargs)
        site.check_finished()
        return result


class _ReverseSite(Messenger):
    """Adds the reverse site behind the last of the sites that it is given."""

    def __init__(self, owner: AuxiliaryModel) -> None:
        super().__init__()
        self.owner = owner
        self.values: dict[str, Any] = {}
        self._inside = False

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] == self.owner.name and not self._inside:
            text = (
                f"the model has a site '{self.owner.name}' already, so it is not auxiliary: leave out `auxiliary`, or "
                "give the variable of the guide another name."
            )
            raise ValueError(text)

    def _pyro_post_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if name not in self.owner.given or self._inside:
            return
        self.values[name] = msg["value"]
        if len(self.values) == len(set(self.owner.given)) and _has_value(self.owner.name):
            law = self.owner.reverse(*(self.values[key] for key in self.owner.given))
            self._inside = True
            try:
                pyro.sample(self.owner.name, _reverse_law(law), infer={"reverse_model": True})  # type: ignore[arg-type]
            finally:
                self._inside = False

    def check_finished(self) -> None:
        missing = [name for name in self.owner.given if name not in self.values]
        if missing:
            msg = (
                f"the reverse model of '{self.owner.name}' is given the sites {list(self.owner.given)}, but the model "
                f"has not sampled {missing}. Name sites of the model."
            )
            raise ValueError(msg)


def _has_value(name: str) -> bool:
    """Whether a site of this name would be replayed or conditioned on."""
    for handler in _PYRO_STACK:
        if isinstance(handler, ReplayMessenger) and handler.trace is not None and name in handler.trace:
            return True
        if isinstance(handler, ConditionMessenger):
            data = handler.data
            if name in (data if isinstance(data, dict) else data.nodes):  # type: ignore[union-attr]
                return True
    return False


def _reverse_law(law: object) -> TorchDistribution:
    if isinstance(law, PathDistribution):
        return ReversePath(law)
    if isinstance(law, Distribution):
        return ReverseLaw(law)
    msg = f"`reverse` must return a distribution, received {type(law).__name__}."
    raise TypeError(msg)


class ReverseLaw(TorchDistribution):
    """A law as it is, that no closed-form divergence is registered for.

    Args:
        law: any law.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # type: ignore[override]

    def __init__(self, law: Distribution) -> None:
        self.law = law
        self.has_rsample = law.has_rsample
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """That of the law."""
        return self.law.support  # type: ignore[return-value]

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Samples of the law, ``(*sample_shape, *batch_shape, *event_shape)``."""
        return self.law.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Samples of the law, without gradient, of the shape of `rsample`."""
        return self.law.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the law: ``(..., *batch_shape, *event_shape) -> (..., *batch_shape)``."""
        return self.law.log_prob(value)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: ReverseLaw | None = None) -> ReverseLaw:
        """The same with a larger batch shape."""
        del _instance
        wide = ReverseLaw(self.law.expand(torch.Size(batch_shape)))
        wide.has_rsample = self.has_rsample
        return wide


class ReversePath(PathDistribution):
    """A path law as it is, whose divergence has no closed form.

    Args:
        law: the path law r.
    """

    def __init__(self, law: PathDistribution) -> None:
        self.law = law
        super().__init__(law.initial, law.batch_shape, law.event_shape[0], validate_args=law._validate_args)

    def simulate(self, initial: Tensor) -> Tensor:
        """Paths of the law."""
        return self.law.simulate(initial)

    def kernels(self, path: Tensor) -> TransitionKernels:
        """Those of the law, without a closed form."""
        return _ReverseKernels(self.law.kernels(path))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the law."""
        return self.law.log_prob(value)

    def check_same_grid(self, other: PathDistribution) -> None:
        """As the law does."""
        self.law.check_same_grid(other)

    @property
    def grid(self) -> object:
        """Grid of the law, None if it has none."""
        return getattr(self.law, "grid", None)

    @property
    def sde(self) -> object:
        """SDE of the law, None if it has none."""
        return getattr(self.law, "sde", None)

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: PathDistribution | None = None
    ) -> PathDistribution:
        """The same with a larger batch shape."""
        wide = super().expand(batch_shape, _instance)
        wide.law = self.law.expand(batch_shape)  # type: ignore[attr-defined]
        return wide


class _ReverseKernels(TransitionKernels):
    """Kernels with a density only."""

    def __init__(self, kernels: TransitionKernels) -> None:
        self.inner = kernels

    def log_prob(self) -> Tensor:
        return self.inner.log_prob()

    def kl(self, other: TransitionKernels) -> Tensor:
        del other
        raise NotImplementedError(_NO_CLOSED_FORM)

    def kl_from(self, other: TransitionKernels) -> Tensor:
        del other
        raise NotImplementedError(_NO_CLOSED_FORM)

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        self.inner.check_absolutely_continuous(other)

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        other.check_absolutely_continuous(self.inner)
