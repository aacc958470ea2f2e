r"""The law of a Markov chain with any transition law."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution, constraints

from ._coefficient_checks import broadcast_shapes
from ._markov_checks import Transition, check_inputs, check_lengths, check_start, probe_transition
from ._markov_loop import Advance, InContext, module_of
from ._markov_steps import StepLayout, layout_of
from ._same_grid import check_same_lengths
from .base import DrivenPath, PathDistribution
from .effects import EffectRecorder
from .markov_kernels import GaussianLaw, MarkovKernels, SampledSteps, ScoredKernels, family

__all__ = ["MarkovPath"]


class MarkovPath(DrivenPath):
    r"""Law of a chain :math:`z_0 \sim p_0`, :math:`z_{k+1} \mid z_k \sim p_k(\cdot \mid z_k, u_k)` of T states.

    .. math:: \log p(z) = \log p_0(z_0) + \sum_{k=0}^{T-2} \log p_k(z_{k+1} \mid z_k, u_k)

    The discrete-time sibling of `SDEPath`: deep Markov models, stochastic recurrent networks, regimes. One sample site
    for the whole series, with the interface and the estimators of every path law; ``PathELBO(kl="closed")`` sums
    `torch.distributions.kl_divergence` of the transitions. Cost: T - 1 sequential calls of the transition to sample,
    one batched call for density and divergence, none for those of a guide with Normal transitions and "closed" or
    "full" (its laws are kept from sampling). With `lengths`, series that have ended cost nothing, unless the
    transition holds tensors with a batch of their own.

    The transition is called once at construction, for one series, to learn shapes and record its Pyro effects.

    Args:
        transition: function or module that maps a state ``z_prev`` ``(..., D)``, the index ``t`` ``(..., 1)`` of the
            state that comes (1 to T - 1, as a float) and ``inputs`` ``(..., C)`` or None to the law of the next state,
            batch shape ``(...)``, event shape ``(D,)``. Any distribution: ``Normal(...).to_event(1)``,
            `MultivariateNormal`, flows, mixtures. It is called for one step, and for many at once with any leading
            dimensions, so it acts on last axes only, and the batch goes in by `inputs`. Tensors with batch dimensions
            that it captures must have shape ``(B, 1)`` or ``(B, D)``.
        initial: law of the first state, event shape ``(D,)``; for discrete states (`Categorical`) it may be ``()``.
        length: number of points T.
        inputs: ``(*batch, T - 1, C)``; row k is given to the transition from state k to state k + 1.
        lengths: ``(*batch,)``, whole numbers from 1 to T. Behind its end a series repeats its last state, without noise
            and without density. Inputs there may be anything.
        validate_args: as for every torch distribution.

    Attributes:
        effects: context in which the transition answers its Pyro statements as it did at construction; enter it to call
            it yourself.
        has_rsample: whether initial law and transitions are reparameterised; if not, bounds use the score function.

    Shape:
        batch shape: those of `initial`, `inputs`, `lengths` and of what the transition captured, broadcast together.
        event shape: ``(T, D)``, or ``(T,)`` for states of event shape ``()``.

    Raises:
        ValueError: if shapes, dtypes or lengths do not fit; the message names the argument.
        TypeError: if an argument is of a wrong kind, or the transition returns no distribution.

    References:
        Krishnan, Shalit, Sontag (2017), Structured inference networks for nonlinear state space models, arXiv
        1609.09869, eqs. (1) and (6).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> def step(z, t, inputs):
        ...     return dist.Normal(0.9 * z, 0.3).to_event(1)
        >>> start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> law = MarkovPath(step, start, 5, lengths=torch.tensor([5, 3]))
        >>> law.sample().shape
        torch.Size([2, 5, 2])
    """

    def __init__(
        self,
        transition: Transition,
        initial: Distribution,
        length: int,
        *,
        inputs: Tensor | None = None,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_start(transition, initial, length)
        check_inputs(inputs, length - 1)
        check_lengths(lengths, length)
        self.transition = transition
        self.length = length
        self.inputs = inputs
        self.lengths = lengths
        module = module_of(transition)
        self.effects = EffectRecorder(module)
        self._law = InContext(transition, module)
        self._probed = probe_transition(self._law, initial, inputs, self.effects)
        self._memo = SampledSteps()
        self._layouts: dict[tuple[torch.Size, bool], StepLayout] = {}
        shapes = [("initial", initial.batch_shape), ("transition", self._probed.batch_shape)]
        shapes += [] if inputs is None else [("inputs", inputs.shape[:-2])]
        shapes += [] if lengths is None else [("lengths", lengths.shape)]
        batch = broadcast_shapes(shapes)
        self._start(initial, batch, validate_args)

    def _start(self, initial: Distribution, batch: torch.Size, validate_args: bool | None) -> None:
        """The part of `PathDistribution.__init__`, which knows states of event shape (D,) only."""
        self.initial = initial if initial.batch_shape == batch else initial.expand(batch)
        self._reparameterised = initial.has_rsample and (self.length == 1 or self._probed.has_rsample)
        self.has_rsample = self._reparameterised
        self._sampled = []
        event = torch.Size((self.length, *initial.event_shape))
        Distribution.__init__(self, batch, event, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Paths of states in the support of the transitions."""
        return self._probed.support

    @property
    def has_learned_flow(self) -> bool:
        """Whether transitions are learned flows, which score a path best, or only, as they sample it."""
        return self._probed.flow

    @property
    def num_steps(self) -> int:
        """Number of transitions T - 1."""
        return self.length - 1

    @property
    def point_mask(self) -> Tensor:
        """Which points belong to their series, ``(*batch, T)``; for masks of a likelihood."""
        if self.lengths is None:
            device = None if self.inputs is None else self.inputs.device
            return torch.ones((*self.batch_shape, self.length), dtype=torch.bool, device=device)
        mask = torch.arange(self.length, device=self.lengths.device) < self.lengths.unsqueeze(-1)
        return mask.expand(*self.batch_shape, self.length)

    def first_state(self, path: Tensor) -> Tensor:
        """First states of paths, ``(..., D)`` or ``(...)``."""
        return path[..., 0, :] if len(self.event_shape) == 2 else path[..., 0]

    def transition_law(self, state: Tensor, index: Tensor, inputs: Tensor | None = None) -> Distribution:
        """Law of the next states; arguments as for the transition, with the Pyro effects recorded at construction.

        For algorithms that walk along a path themselves, such as particle filters.
        """
        with self.effects:
            return self._law(state, index, inputs)

    # ---------------------------------------------------------------- sampling
    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised paths ``(*sample_shape, *batch, T, D)``.

        Raises:
            ValueError: if initial law or transitions are not reparameterised, or a path is not finite.
        """
        if not self._reparameterised:
            law = "transitions" if self.initial.has_rsample else f"initial law {family(self.initial)}"
            msg = (
                f"MarkovPath{self._site()}: paths have no reparameterised gradient, as the {law} have none (discrete "
                "states, mixtures). Use sample(): Trace_ELBO and PathELBO then estimate gradients by the score "
                "function. Or integrate such states out."
            )
            raise ValueError(msg)
        return self._draw(torch.Size(sample_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Paths without gradient."""
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape))

    def _draw(self, shape: torch.Size) -> Tensor:
        first = self.initial.rsample(shape) if self._reparameterised else self.initial.sample(shape)
        path = self.simulate(first)
        self._sampled = [ref for ref in self._sampled if ref() is not None]
        self._sampled.append(weakref.ref(path))
        return path

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)`` with fresh noise."""
        return self._unroll(initial, None)

    def noise_shape(self, batch: torch.Size | None = None) -> torch.Size:
        """Shape ``(*batch, T - 1, D)`` of the standard normal noise that drives a path.

        Raises:
            ValueError: if the transitions are not Normal.
        """
        if not self._probed.gaussian:
            raise ValueError(self._no_noise())
        return torch.Size((*(self.batch_shape if batch is None else batch), self.num_steps, self.event_shape[-1]))

    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        """Path with Normal or MultivariateNormal transitions that given standard normal noise drives.

        Shape:
            initial: ``(..., D)`` · noise: ``(..., T - 1, D)`` · returns ``(..., T, D)``.

        Raises:
            ValueError: if `noise` has a wrong shape, a transition is not Normal, or the path is not finite.
        """
        if noise.shape[-2:] != self.noise_shape()[-2:]:
            steps, width = self.noise_shape()[-2:]
            msg = f"`noise` must have shape (..., {steps}, {width}), received {tuple(noise.shape)}."
            raise ValueError(msg)
        return self._unroll(initial, noise)

    def noise_of(self, path: Tensor) -> Tensor:
        """Standard normal noise ``(..., T - 1, D)`` that drives a path; 0 behind the end of a series.

        Raises:
            ValueError: if a transition is not Normal.
        """
        kernels = self.kernels(path)
        if not kernels.steps.num_calls:
            return path.new_zeros(self.noise_shape(kernels.steps.batch))
        gaussian = GaussianLaw.of(kernels.law)
        if gaussian is None:
            raise ValueError(self._no_noise())
        return kernels.steps.from_rows(gaussian.standardise(kernels.next_state))

    def _no_noise(self) -> str:
        return (
            f"MarkovPath{self._site()}: only Normal(...).to_event(1) and MultivariateNormal transitions are driven by "
            "standard normal noise, and these are others."
        )

    def _unroll(self, initial: Tensor, noise: Tensor | None) -> Tensor:
        first = initial.unsqueeze(-1) if self._scalar else initial
        batches = [first.shape[:-1], self.batch_shape] + ([] if noise is None else [noise.shape[:-2]])
        batch = torch.broadcast_shapes(*batches)
        steps = self._layout(batch, packable=True)
        first = first.expand(*batch, first.shape[-1])
        normal = None
        if noise is not None:
            normal = steps.noise(noise.expand(*batch, *noise.shape[-2:]))
        elif self._probed.gaussian:
            normal = steps.draw_noise(first.shape[-1], first)
        advance = Advance(self._law, self._scalar, noise is not None, self._site())
        with self.effects:
            path = steps.unroll(advance, first, steps.rows(self.inputs), normal)
        self._check_finite(path)
        path = path.squeeze(-1) if self._scalar else path
        self._memo.keep(path, steps, advance.kept(steps.num_calls))
        return path

    # ---------------------------------------------------------------- density
    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (log-probability of discrete states) of paths; ``(..., *batch)``.

        Raises:
            ValueError: if the value has a wrong shape, is NaN, or is outside the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        kernels = self._scored(value)
        kernels = self.kernels(value) if kernels is None else kernels
        return self.initial.log_prob(self.first_state(value)) + kernels.log_prob().sum(0)

    def score_parts(self, x: Tensor) -> ScoreParts:
        """As for every path law; with learned flows as transitions the gradient of the entropy is the full one."""
        if self.has_rsample and self._scored(x) is not None:
            log_prob = self.log_prob(x)
            return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]
        return super().score_parts(x)

    def kernels(self, path: Tensor) -> MarkovKernels:
        """Transition kernels along a path, all steps in one call of the transition.

        Raises:
            ValueError: if the path has a wrong shape.
        """
        return self._kernels(path, packable=True)

    def sampled_kernels(self, path: Tensor) -> MarkovKernels:
        """As `kernels`, without any call for the path that this law sampled last, if sampling has told all."""
        recalled = self._memo.recall(path)
        if recalled is None:
            return self.kernels(path)
        steps, known = recalled
        again = partial(self._again, path)
        if isinstance(known, Tensor):
            return ScoredKernels(known, steps, again)
        return MarkovKernels(known.law(), steps.states(path)[1], steps, again)

    def _scored(self, path: Tensor) -> ScoredKernels | None:
        """Kernels that sampling has scored, as transforms without an inverse need; None for other laws and paths."""
        kernels = self.sampled_kernels(path) if self._memo.holds_densities else None
        return kernels if isinstance(kernels, ScoredKernels) else None

    def _again(self, path: Tensor, packable: bool) -> MarkovKernels:
        return self._kernels(path, packable=packable)

    def _kernels(self, path: Tensor, *, packable: bool) -> MarkovKernels:
        event = self.event_shape
        if path.shape[path.dim() - len(event) :] != event:
            msg = f"`path` must have shape (..., {', '.join(map(str, event))}), received {tuple(path.shape)}."
            raise ValueError(msg)
        states = path.unsqueeze(-1) if self._scalar else path
        steps = self._layout(torch.broadcast_shapes(states.shape[:-2], self.batch_shape), packable=packable)
        before, after = steps.states(states)
        again = partial(self._again, path)
        if not steps.num_calls:
            empty = torch.zeros(after.shape[:-1], dtype=after.dtype if after.is_floating_point() else None)
            return ScoredKernels(empty.to(after.device), steps, again)
        if self._scalar:
            before, after = before.squeeze(-1), after.squeeze(-1)
        law = self.transition_law(before, steps.times(before), steps.rows(self.inputs))
        return MarkovKernels(law, after, steps, again)

    def _layout(self, batch: torch.Size, *, packable: bool) -> StepLayout:
        captured = self._probed.batch_shape
        packable = packable and len(captured) <= 1 and captured.numel() == 1
        if (batch, packable) not in self._layouts:
            self._layouts[batch, packable] = layout_of(self.num_steps, self.lengths, batch, packable=packable)
        return self._layouts[batch, packable]

    # ---------------------------------------------------------------- checks
    def check_same_grid(self, other: PathDistribution) -> None:
        """Numbers of points must agree, as a whole and series by series."""
        check_same_lengths(self.length, self.lengths, other)

    def _check_finite(self, path: Tensor) -> None:
        with torch.no_grad():
            if not path.is_floating_point() or bool(torch.isfinite(path[..., -1, :]).all()):
                return
            bad = ~torch.isfinite(path).movedim(-2, 0)  # (T, ..., D)
            step, *_, dimension = bad.nonzero()[0].tolist()
            count, total = int(bad.any(0).any(-1).sum()), bad[0, ..., 0].numel()
        msg = (
            f"MarkovPath{self._site()}: the path became non-finite at state {step} of {self.length}, dimension "
            f"{dimension}, in {count} of {total} paths. Bound the transition: a smaller initial scale of its networks, "
            "a scale that cannot grow without limit, or gradient clipping."
        )
        raise ValueError(msg)

    def _site(self) -> str:
        return f" at site '{self.site_name}'" if self.site_name else ""

    @property
    def _scalar(self) -> bool:
        return len(self.event_shape) == 1

    def __getstate__(self) -> dict[str, object]:
        """State without links to sampled paths, for copies and pickles."""
        return {**super().__getstate__(), "_memo": SampledSteps(), "_layouts": {}}
