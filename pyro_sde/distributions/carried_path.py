r"""The law of an SDE at observation times, whose values carry their log-ratio to the prior."""

from __future__ import annotations

import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor
from torch.distributions import Distribution

from ..ops.grid import TimeGrid
from ..sde.base import SDE, ControlledSDE
from ..solvers._carried import CarriedBackend, CarriedProblem
from ..solvers.noise import GivenNoise, StepNoise
from ..solvers.reversible_adjoint import ReversibleHeunAdjoint
from ._carried import Record, attach, record_of, same_equation
from ._same_grid import check_same_times
from .base import PathDistribution
from .kernels import TransitionKernels
from .kl import CarriesTerms, PathTerms, _check_initial_ratio, _initial_kl
from .sde_path import SDEPath

__all__ = ["CarriedPath"]


class CarriedPath(PathDistribution, CarriesTerms):
    r"""Law of the states of an SDE at the observation times of a grid, for adjoint and adaptive solvers.

    The states between observations are not kept, so there is no density of them. Instead a value carries, as an
    attribute of the plain tensor, what the solve has summed up about its control u:

    .. math::
        \log p := \log p_0(z_0), \qquad
        \log q := \log q_0(z_0) + \underbrace{\tfrac12 \int |u|^2\,dt}_{\text{kl}}
        + \underbrace{\int u \cdot dW}_{\text{martingale}}

    Both are densities with respect to the prior given its first state, so their difference, and every bound, is that of
    `SDEPath` as steps go to 0. A guide must be the control form of the SDE of the model::

        model: CarriedPath(prior, p0, grid)
        guide: CarriedPath(prior.controlled(control), q0, grid, inputs=context)

    Use it where a path does not fit into memory, or an adaptive solver is wanted; else `SDEPath` is faster (see
    docs/how-to/adjoint-and-adaptive.md) and can do more: a value must come from the guide as it was sampled, so
    conditioning, NUTS, reweighted wake-sleep and sticking the landing are refused by name.

    Args:
        sde: the prior, or ``prior.controlled(control)``.
        initial: law of the state at ``grid.times[..., 0]``, event shape ``(D,)``.
        grid: the solver grid; its `max_step` is the step of solvers with fixed steps.
        inputs: ``(*batch, K, C)``, as for `SDEPath`.
        backend: what solves and differentiates; `ReversibleHeunAdjoint` if None.
        validate_args: as for every torch distribution.

    Attributes:
        effects: as for `SDEPath`.

    Shape:
        batch shape: as for `SDEPath` · event shape: ``(N, D)``, the states at ``grid.observed_times``; do not call
        ``grid.observed`` on them.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit; the message names the argument.
        TypeError: if `backend` is not a back-end of `pyro_sde.solvers`, or another argument has a wrong type.

    References:
        Li, Wong, Chen, Duvenaud (2020), arXiv 2001.01328, section 5; Kidger et al. (2021), arXiv 2105.13493.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_sde import TimeGrid
        >>> from pyro_sde.sde import OrnsteinUhlenbeck
        >>> grid = TimeGrid(torch.tensor([0.0, 1.0, 3.0]), max_step=0.01)
        >>> CarriedPath(OrnsteinUhlenbeck(1.0, 0.5), dist.Normal(torch.zeros(2), 1.0).to_event(1), grid)
        CarriedPath(batch_shape=(), event_shape=(3, 2))
    """

    def __init__(
        self,
        sde: SDE,
        initial: Distribution,
        grid: TimeGrid,
        *,
        inputs: Tensor | None = None,
        backend: CarriedBackend | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if backend is not None and not isinstance(backend, CarriedBackend):
            msg = (
                "`backend` must be ReversibleHeunAdjoint() or TorchsdeAdjoint(), received "
                f"{type(backend).__name__}. Fixed-grid solvers go to SDEPath(..., solver=...)."
            )
            raise TypeError(msg)
        whole = SDEPath(sde, initial, grid, inputs=inputs)  # checks and probes everything
        self.sde, self.grid, self.inputs = sde, grid, inputs
        self.backend = ReversibleHeunAdjoint() if backend is None else backend
        self.effects = whole.effects
        self._rows = sde.bind_rows(inputs)
        self._brownian_dim = whole.noise_shape()[-1]
        self._identity = object()  # shared by expanded and named copies
        super().__init__(initial, whole.batch_shape, grid.observed_times.shape[-1], validate_args=validate_args)

    @property
    def has_density(self) -> bool:
        """No: a value has what it carries."""
        return False

    # ---------------------------------------------------------------- sampling
    def simulate(self, initial: Tensor) -> Tensor:
        """States at the observation times ``(..., N, D)`` with their record, from first states ``(..., D)``.

        Raises:
            ValueError: if a state is not finite.
        """
        return self._solve(initial, None)

    def solve(self, initial: Tensor, noise: Tensor) -> Tensor:
        """States and record for given standard normal noise; for comparisons on one Brownian path.

        Only for `ReversibleHeunAdjoint`, whose steps are those of the grid.

        Shape:
            initial: ``(..., D)`` · noise: ``(..., K, M)`` · returns ``(..., N, D)``.

        Raises:
            ValueError: if `noise` has a wrong shape or needs gradients, or the back-end draws its own noise.
        """
        steps, width = self.grid.num_steps, self._brownian_dim
        if noise.shape[-2:] != (steps, width) or noise.requires_grad:
            msg = (
                f"`noise` must have shape (..., {steps}, {width}) and no gradient, received {tuple(noise.shape)}"
                f"{' that requires gradients' if noise.requires_grad else ''}."
            )
            raise ValueError(msg)
        batch = torch.broadcast_shapes(initial.shape[:-1], noise.shape[:-2])
        return self._solve(initial.expand(*batch, -1), GivenNoise(noise.movedim(-2, 0)))

    def _solve(self, initial: Tensor, noise: StepNoise | None) -> Tensor:
        if torch.jit.is_tracing():
            msg = (
                f"{self._name()}: the solve of a carried path cannot be compiled by TorchScript. Use Trace_ELBO or "
                "PathELBO instead of JitTrace_ELBO and JitPathELBO, or SDEPath."
            )
            raise ValueError(msg)
        first = initial.expand(*torch.broadcast_shapes(initial.shape[:-1], self.batch_shape), initial.shape[-1])
        problem = CarriedProblem(self.sde, self.grid, first, self._rows, self._brownian_dim, self.effects)
        states, kl, martingale = self.backend.solve(problem, noise)
        if not bool(torch.isfinite(states.detach()).all() & torch.isfinite(kl.detach()).all()):
            msg = (
                f"{self._name()}: states or the log-ratio became non-finite before time "
                f"{float(self.grid.times.detach().max()):g}. Drift, diffusion or control grows too fast for the step: "
                "use a smaller max_step, bounded coefficients, or a smaller initial scale of the networks."
            )
            raise ValueError(msg)
        reference = self.sde.base if isinstance(self.sde, ControlledSDE) else self.sde
        return attach(states, Record(first, kl, martingale, self._identity, reference, 0))

    # ---------------------------------------------------------------- densities
    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density with respect to the prior given its first state: see the class.

        For the law that sampled the value this is :math:`\log q`, for the law of the model :math:`\log p`.

        Raises:
            ValueError: if the value carries no record, or not the martingale, or is of a guide that is not the control
                form of this law's SDE.
        """
        record = self._record(value)
        if record.law is not self._identity:
            self._check_reference(record)
            return self.initial.log_prob(record.initial)
        if record.martingale is None:
            msg = (
                f"{self._name()}: this value carries kl but no martingale (its back-end does not follow it), so "
                'log q is not known; without it importance weights would be wrong. Use PathELBO(kl="closed"), or a '
                "back-end with martingale=True."
            )
            raise ValueError(msg)
        return self.initial.log_prob(record.initial) + record.kl + record.martingale

    def score_parts(self, x: Tensor) -> ScoreParts:
        """Score parts with the full gradient of the log-ratio; sticking the landing is not possible here.

        Raises:
            ValueError: as `log_prob`, and if `initial` is not reparameterised, whose gradient would be lost.
        """
        if not self.has_rsample:
            msg = (
                f"{self._name()}: `initial` is not reparameterised, and a carried value has no density whose score "
                "would give the gradient. Use a reparameterised law of the first state, or SDEPath."
            )
            raise ValueError(msg)
        log_prob = self.log_prob(x)
        return ScoreParts(log_prob, 0, log_prob)  # type: ignore[arg-type]

    def carried_terms(self, p: PathDistribution, path: Tensor, *, closed: bool) -> PathTerms:
        """Terms of a bound with this law in the guide and `p` in the model, from the record of the value.

        Raises:
            ValueError: as `log_prob`, and if `p` is no `CarriedPath`.
        """
        if not isinstance(p, CarriedPath):
            msg = (
                f"the guide has a CarriedPath and the model a {type(p).__name__}, whose densities are not comparable. "
                "Use CarriedPath on both sides, or SDEPath on both."
            )
            raise ValueError(msg)
        self.check_same_grid(p)
        record = self._record(path)
        if record.law is not self._identity:
            msg = "the value was sampled by another law than this guide's, whose log-ratio it does not carry."
            raise ValueError(msg)
        p._check_reference(record)
        if closed:
            zero = record.kl.new_zeros(())
            return PathTerms(zero, zero, _initial_kl(self, p, record.initial) + record.kl)
        log_q, log_p = self.log_prob(path), p.initial.log_prob(record.initial)
        _check_initial_ratio(log_q - log_p)
        return PathTerms(log_q, log_p, None)

    def kernels(self, path: Tensor) -> TransitionKernels:
        """There are none: the states between observations are not kept.

        Raises:
            ValueError: always.
        """
        del path
        msg = f"{self._name()}: a carried path has no transition kernels. Use SDEPath where they are needed."
        raise ValueError(msg)

    def check_same_grid(self, other: PathDistribution) -> None:
        """Times must agree to round-off."""
        check_same_times(self.grid, other)

    # ---------------------------------------------------------------- records
    def _name(self) -> str:
        return f"CarriedPath at site '{self.site_name}'" if self.site_name else "CarriedPath"

    def _record(self, value: Tensor) -> Record:
        record = record_of(value)
        if record is None:
            msg = (
                f"{self._name()}: this value carries no log-ratio. It was conditioned on, detached, stacked, copied or "
                'changed after it was sampled (as by NUTS, reweighted wake-sleep or kl="stl"), and the states at '
                "the observation times alone have no density. Use SDEPath instead, whose values are whole paths."
            )
            raise ValueError(msg)
        return record

    def _check_reference(self, record: Record) -> None:
        ours = self.sde
        if self.inputs is not None and record.reference.inputs is self.inputs:
            ours = ours.with_inputs(self.inputs)
        if not same_equation(ours, record.reference):
            msg = (
                f"{self._name()}: the guide is not the control form of this model's SDE, so the log-ratio that its "
                "value carries belongs to another prior. Build the guide's law from the same SDE object, "
                "prior.controlled(control)."
            )
            raise ValueError(msg)
