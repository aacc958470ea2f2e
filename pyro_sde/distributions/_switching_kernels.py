"""Kernels of a path whose steps follow one of several laws, with the choices summed out."""

from __future__ import annotations

from torch import Tensor

from ..ops.hidden_markov import HiddenMarkov
from .gaussian_kernels import GaussianKernels
from .kernels import EulerKernels, TransitionKernels
from .markov_kernels import MarkovKernels

__all__ = ["SwitchingKernels"]


class SwitchingKernels(TransitionKernels):
    """Kernels of a `SwitchingPath` along a path: step k given all states before it, not the last one alone.

    Args:
        chain: posterior chain over the regimes given the path.
    """

    def __init__(self, chain: HiddenMarkov) -> None:
        self.chain = chain

    def log_prob(self) -> Tensor:
        r"""Terms :math:`\log p(z_{k+1} \mid z_0, \dots, z_k)`, ``(K, ...)``."""
        return self.chain.log_increments().movedim(-1, 0)

    def kl(self, other: TransitionKernels) -> Tensor:
        """A mixture over regimes has no closed-form divergence.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError

    def check_absolutely_continuous(self, other: TransitionKernels) -> None:
        """Both must have densities in all directions.

        Raises:
            ValueError: if the other has discrete states or directions without noise.
        """
        if not isinstance(other, SwitchingKernels):
            self.check_absolutely_continuous_from(other)

    def check_absolutely_continuous_from(self, other: TransitionKernels) -> None:
        """As `check_absolutely_continuous`, for kernels that leave it to this class.

        Raises:
            ValueError: if the others have discrete states or directions without noise.
        """
        singular = isinstance(other, EulerKernels | GaussianKernels) and not other.range.full
        if singular or (isinstance(other, MarkovKernels) and other.discrete):
            kind = "directions without noise" if singular else "discrete states"
            msg = (
                f"the KL divergence is infinite: one of guide and model has {kind}, and the other is a SwitchingPath, "
                "which has a density in all directions."
            )
            raise ValueError(msg)
