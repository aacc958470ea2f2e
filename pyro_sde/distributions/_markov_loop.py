"""One step of a Markov chain while it is sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution

from .markov_kernels import GaussianLaw, family, has_learned_flow

__all__ = ["Advance", "InContext", "module_of"]

Transition = Callable[[Tensor, Tensor, Tensor | None], Distribution]


def module_of(transition: object) -> nn.Module:
    """The module behind a transition, whose Pyro statements are recorded; an empty one for plain functions."""
    while not isinstance(transition, nn.Module):
        owner = getattr(transition, "__self__", None) or getattr(transition, "func", None)
        if owner is None:
            return nn.Module()
        transition = owner
    return transition


class InContext:
    """Calls a transition; inside the context of its `PyroModule` if it is a method, which does not enter it itself."""

    def __init__(self, transition: Transition, module: nn.Module) -> None:
        self.transition = transition
        self.module = module if isinstance(module, PyroModule) and module is not transition else None

    def __call__(self, z: Tensor, t: Tensor, inputs: Tensor | None) -> Distribution:
        """Law of the next states."""
        if self.module is None:
            return self.transition(z, t, inputs)
        with self.module._pyro_context:
            return self.transition(z, t, inputs)


class Advance:
    """Calls the transition and draws the next state, keeping what the density of the path can use again.

    Args:
        transition: law of the next state given state, index and inputs.
        scalar: whether states have event shape ``()``.
        given: whether the noise was given by the caller, so that only Normal transitions serve.
        where: the site, for messages.
    """

    def __init__(self, transition: Transition, scalar: bool, given: bool, where: str) -> None:
        self.transition = transition
        self.scalar = scalar
        self.given = given
        self.where = where
        self.gaussians: list[GaussianLaw] = []
        self.densities: list[Tensor] = []

    def __call__(self, z: Tensor, t: Tensor, row: Tensor | None, normal: Tensor | None) -> Tensor:
        """Next states ``(..., D)``; `normal` is used by Normal laws, others draw for themselves."""
        law = self._law(z, t, row)
        if normal is not None:
            gaussian = GaussianLaw.of(law)
            if gaussian is not None:
                self.gaussians.append(gaussian)
                return gaussian.draw(normal)
            if self.given:
                msg = (
                    f"MarkovPath{self.where}: only Normal(...).to_event(1) and MultivariateNormal transitions are "
                    f"driven by standard normal noise; that to state {int(t)} is {family(law)}."
                )
                raise ValueError(msg)
        if law.batch_shape != z.shape[:-1]:  # what does not depend on the state must still be drawn for every series
            law = law.expand(z.shape[:-1])
        following = law.rsample() if law.has_rsample and torch.is_grad_enabled() else law.sample()
        if has_learned_flow(law):  # now, while the transform remembers where the sample came from
            self.densities.append(law.log_prob(following))
        return following.unsqueeze(-1) if self.scalar else following

    def _law(self, z: Tensor, t: Tensor, row: Tensor | None) -> Distribution:
        try:
            return self.transition(z.squeeze(-1) if self.scalar else z, t, row)
        except ValueError as error:
            state = "" if bool(torch.isfinite(z).all()) else ", as the state before it is not finite"
            msg = f"MarkovPath{self.where}: the transition to state {int(t)} failed{state}: {error}"
            raise ValueError(msg) from error

    def kept(self, count: int) -> list[GaussianLaw] | list[Tensor]:
        """Laws or log-densities of all `count` steps, an empty list if the steps were of several kinds."""
        if count and len(self.gaussians) == count and len({one.full for one in self.gaussians}) == 1:
            return self.gaussians
        return self.densities if count and len(self.densities) == count else []
