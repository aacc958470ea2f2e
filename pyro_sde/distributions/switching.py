r"""The law of a path whose steps switch between regimes, with the regimes summed out exactly."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from ..ops.hidden_markov import HiddenMarkov
from ._coefficient_checks import broadcast_shapes
from ._markov_checks import Transition, check_inputs, check_lengths, check_start
from ._markov_loop import InContext, module_of
from ._markov_steps import DenseSteps
from ._same_grid import check_same_lengths
from ._switching_checks import check_kinds, probe_switching
from ._switching_kernels import SwitchingKernels
from .base import PathDistribution
from .effects import EffectRecorder
from .regime_chain import RegimeChain

__all__ = ["SwitchingPath"]


class SwitchingPath(PathDistribution):
    r"""Law of a path whose k-th step follows the law of a regime :math:`s_k`, one of K, with regimes summed out.

    .. math:: p(z) = p_0(z_0) \sum_{s} p(s_0) \prod_{k=1}^{T-2} p(s_k \mid s_{k-1}, z_k)
        \prod_{k=0}^{T-2} p(z_{k+1} \mid z_k, u_k, s_k)

    The density is exact, by a scan over the T - 1 steps (`HiddenMarkov`), and differentiable in path and parameters: no
    discrete site, no enumeration dimension, any reparameterised guide of the path. With ``obs=`` it is a switching
    autoregression. Regimes come back on request: `regime_posterior`, `viterbi`, `sample_regimes`. Cost: one batched
    call of the transition for all steps and regimes, and O(T K^2) to O(T K^3) for the scan; T - 1 calls to sample.

    The transition is called once at construction, for one series, to learn shapes and record its Pyro effects.

    Note:
        Samples carry no gradient (regimes are discrete), so it belongs in models, not in guides, and ``kl="closed"``
        has no closed form here: use "stl" or "full".

    Args:
        transition: function or module that maps a state ``z_prev`` ``(..., D)``, the index ``t`` ``(..., 1)`` of the
            state that comes and ``inputs`` ``(..., C)`` or None to the laws of the next state in all regimes: batch
            shape ``(..., K)``, event shape ``(D,)``. Otherwise as for `MarkovPath`; tensors with batch dimensions that
            it captures meet those of ``(B, K, D)``.
        initial: law of the first state, event shape ``(D,)``.
        regimes: law of the regimes.
        length: number of points T >= 2.
        inputs: ``(*batch, T - 1, C)``; row k is given to the step from state k to state k + 1 (lags, for an
            autoregression of higher order).
        lengths: ``(*batch,)``, from 1 to T; behind its end a series repeats its last state, as for `MarkovPath`.
        validate_args: as for every torch distribution.

    Attributes:
        regimes: as given.
        effects: context in which the transition answers its Pyro statements as it did at construction.

    Shape:
        batch shape: those of `initial`, `regimes`, `inputs`, `lengths` and of what the transition captured, broadcast.
        event shape: ``(T, D)``. Regimes: ``(*batch, T - 1)``, regime k that of the step from state k to k + 1.

    Raises:
        ValueError: if shapes or dtypes do not fit, or the transition has another number of regimes; in `log_prob` also
            if no regime can explain a step.
        TypeError: if an argument is of a wrong kind.

    References:
        Hamilton (1989), A new approach to the economic analysis of nonstationary time series, Econometrica 57, eqs.
        (4.1) to (4.6); Linderman et al. (2017), Bayesian learning and inference in recurrent switching linear dynamical
        systems, AISTATS, eqs. (1) to (4).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> speed = torch.tensor([[0.9], [-0.9]])  # (K, D)
        >>> def step(z, t, inputs):
        ...     return dist.Normal(speed * z.unsqueeze(-2), 0.1).to_event(1)
        >>> regimes = RegimeChain(torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
        >>> law = SwitchingPath(step, dist.Normal(torch.ones(1), 1.0).to_event(1), regimes, 4)
        >>> law.viterbi(torch.tensor([[1.0], [0.9], [0.81], [-0.73]]))
        tensor([0, 0, 1])
    """

    def __init__(
        self,
        transition: Transition,
        initial: Distribution,
        regimes: RegimeChain,
        length: int,
        *,
        inputs: Tensor | None = None,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_start(transition, initial, length)
        check_inputs(inputs, length - 1)
        check_lengths(lengths, length)
        check_kinds(regimes, length)
        self.regimes = regimes
        self.length = length
        self.inputs = inputs
        self.lengths = lengths
        self.transition = transition
        module = module_of(transition)
        self._law = InContext(transition, module)
        self.effects = EffectRecorder(nn.ModuleList([module, regimes.module]))
        captured = probe_switching(self._law, initial, regimes, inputs, self.effects)
        shapes = [("initial", initial.batch_shape), ("regimes", regimes.log_initial.shape[:-1]), *captured]
        shapes += [] if inputs is None else [("inputs", inputs.shape[:-2])]
        shapes += [] if lengths is None else [("lengths", lengths.shape)]
        super().__init__(initial, broadcast_shapes(shapes), length, validate_args=validate_args)
        self.has_rsample = False

    @property
    def num_steps(self) -> int:
        """Number of steps T - 1, each with a regime."""
        return self.length - 1

    @property
    def point_mask(self) -> Tensor:
        """Which points belong to their series, ``(*batch, T)``; for masks of a likelihood."""
        if self.lengths is None:
            return torch.ones(
                (*self.batch_shape, self.length), dtype=torch.bool, device=self.regimes.log_initial.device
            )
        mask = torch.arange(self.length, device=self.lengths.device) < self.lengths.unsqueeze(-1)
        return mask.expand(*self.batch_shape, self.length)

    # ---------------------------------------------------------------- sampling
    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """There is no reparameterised sample.

        Raises:
            ValueError: always; regimes are discrete.
        """
        del sample_shape
        site = f" at site '{self.site_name}'" if self.site_name else ""
        msg = (
            f"SwitchingPath{site}: paths have no reparameterised gradient, as regimes are discrete. Use sample(); in a "
            "guide take a reparameterised law, such as the posterior of a GaussianPath. The model sums regimes out."
        )
        raise ValueError(msg)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Paths ``(*sample_shape, *batch, T, D)`` without gradient."""
        return self.sample_joint(sample_shape)[0]

    def sample_joint(
        self,
        sample_shape: torch.Size | Sequence[int] = torch.Size(),  # noqa: B008
    ) -> tuple[Tensor, Tensor]:
        """Paths ``(*sample_shape, *batch, T, D)`` and the regimes ``(*sample_shape, *batch, T - 1)`` they followed.

        Raises:
            ValueError: if a path is not finite.
        """
        with torch.no_grad():
            path, regimes = self._unroll(self.initial.sample(torch.Size(sample_shape)))
        self._sampled = [ref for ref in self._sampled if ref() is not None]
        self._sampled.append(weakref.ref(path))
        return path, regimes

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)``, without gradient."""
        with torch.no_grad():
            return self._unroll(initial)[0]

    def _unroll(self, z: Tensor) -> tuple[Tensor, Tensor]:
        batch = torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        width = self.regimes.num_regimes
        steps = DenseSteps(self.num_steps, self.lengths, batch)
        z = z.expand(*batch, z.shape[-1])
        rows = steps.rows(self.inputs)
        times = steps.times(z).flatten()
        regime = Categorical(logits=self.regimes.log_initial.expand(*batch, width), validate_args=False).sample()
        states, chosen = [z], []
        for k in range(self.num_steps):
            row = None if rows is None else rows[k]
            moving = None if steps.moving is None else steps.moving[k]
            with self.effects:
                law = self._law(z, times[k : k + 1], row)
                table = self.regimes.table(z, times[k : k + 1], row) if k else None
            if table is not None:
                index = regime[..., None, None].expand(*batch, 1, width)
                logits = table.expand(*batch, width, width).gather(-2, index).squeeze(-2)
                following = Categorical(logits=logits, validate_args=False).sample()
                regime = following if moving is None else torch.where(moving.squeeze(-1), following, regime)
            draws = law.expand(torch.Size((*batch, width))).sample()  # (*batch, K, D): of all regimes, one is kept
            index = regime[..., None, None].expand(*batch, 1, draws.shape[-1])
            drawn = draws.gather(-2, index).squeeze(-2)
            z = drawn if moving is None else torch.where(moving, drawn, z)
            states.append(z)
            chosen.append(regime)
        self._check_finite(z)
        return torch.stack(states, -2), torch.stack(chosen, -1)

    def _check_finite(self, last: Tensor) -> None:
        if not bool(torch.isfinite(last).all()):
            site = f" at site '{self.site_name}'" if self.site_name else ""
            msg = (
                f"SwitchingPath{site}: the path became non-finite within {self.length} points. Make the dynamics of "
                "every regime stable, or the series shorter."
            )
            raise ValueError(msg)

    # ---------------------------------------------------------------- density
    def kernels(self, path: Tensor) -> SwitchingKernels:
        """Transition kernels along a path, regimes summed out, all steps in one call of the transition.

        Raises:
            ValueError: if the path has a wrong shape.
        """
        return SwitchingKernels(self.posterior(path))

    def posterior(self, path: Tensor) -> HiddenMarkov:
        """Posterior chain over the T - 1 regimes given a path ``(..., T, D)``: filter, posterior, pairs, samples.

        Its `log_evidence` is the log-density of the path given its first state.

        Raises:
            ValueError: if the path has a wrong shape.
        """
        if path.dim() < 2 or path.shape[-2:] != self.event_shape:
            size = ", ".join(map(str, self.event_shape))
            msg = f"`path` must have shape (..., {size}), received {tuple(path.shape)}."
            raise ValueError(msg)
        batch = torch.broadcast_shapes(path.shape[:-2], self.batch_shape)
        width = self.regimes.num_regimes
        steps = DenseSteps(self.num_steps, self.lengths, batch)
        before, after = steps.states(path)
        times, rows = steps.times(path), steps.rows(self.inputs)
        with self.effects:
            law = self._law(before, times, rows)
            later = None if rows is None else rows[1:]
            table = self.regimes.table(before[1:], times[1:], later)
        likelihood = law.log_prob(after.unsqueeze(-2)).expand(self.num_steps, *batch, width)
        if self.regimes.recurrent:  # (T - 2, ..., K, K) -> (*batch, T - 2, K, K)
            table = table.expand(self.num_steps - 1, *batch, width, width).movedim(0, -3)
        else:
            table = table.unsqueeze(-3)
        lengths = None if self.lengths is None else (self.lengths - 1).expand(batch)
        return HiddenMarkov(
            self.regimes.log_initial,
            table,
            likelihood.movedim(0, -2),
            lengths=lengths,
            validate=bool(self._validate_args),
        )

    def regime_posterior(self, path: Tensor) -> Tensor:
        """Probabilities of the regimes given a path, ``(..., T - 1, K)``."""
        return self.posterior(path).posterior()

    def viterbi(self, path: Tensor) -> Tensor:
        """Most probable regimes given a path, ``(..., T - 1)``, int64."""
        return self.posterior(path).viterbi()

    def sample_regimes(self, path: Tensor, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Regimes drawn from their joint posterior given a path, ``(*sample_shape, ..., T - 1)``, int64."""
        return self.posterior(path).sample(sample_shape)

    # ---------------------------------------------------------------- checks
    def check_same_grid(self, other: PathDistribution) -> None:
        """Numbers of points must agree, as a whole and series by series."""
        check_same_lengths(self.length, self.lengths, other)
