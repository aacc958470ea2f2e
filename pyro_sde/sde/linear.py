r"""Linear SDEs, whose transitions and stationary laws are exact; sums and products of them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import PyroModuleList
from torch import Tensor, nn

from ..nn.state_network import StateNetwork
from ..ops.discretise import Transition
from ._arguments import check_coefficients
from .base import SDE, Coefficients, Evaluator, Rows
from .noise import noise_structure
from .system import LinearSystem, multiply_systems, sum_systems

__all__ = ["LinearSDE", "Parameter", "Product", "Sum", "check_parts", "shape_of", "systems_of"]

Parameter = float | Tensor | PyroParam | PyroSample


class LinearSDE(SDE, PyroModule):
    r"""Linear SDE :math:`dz = (A z + b)\,dt + L\,dW` with outputs :math:`f = H z` and exact laws.

    An ordinary `SDE` (for `SDEPath`, `controlled` and whatever takes one) that also knows its exact `transition` over
    any step and its `stationary` law. ``+`` and ``*`` of two processes give the process whose covariance function is
    the sum or product of theirs.

    Hyper-parameters may be numbers, tensors with batch dimensions (data, or samples of other sites), ``nn.Parameter``,
    ``PyroParam`` and ``PyroSample``. A learned one that must be positive is a ``PyroParam`` with that constraint; a
    plain ``nn.Parameter`` would leave the range at some optimiser step, and then raises. A process with samples belongs
    in the model as an attribute of a `PyroModule`, which names the sites; each of `system`, `transition`, `stationary`
    and a path law then sees the same draw. On its own, every call of these draws anew: take one `system`.

    Attributes:
        state_dim: D.

    Example:
        >>> from pyro.distributions import constraints
        >>> from pyro_sde.sde import Matern32
        >>> kernel = Matern32(PyroParam(torch.tensor(2.0), constraints.positive), variance=0.5)
        >>> [name for name, _ in kernel.named_parameters()]
        ['lengthscale_unconstrained']
        >>> kernel.transition(torch.tensor([0.1, 0.2])).matrix.shape
        torch.Size([2, 2, 2])
    """

    state_dim: int

    def __init__(self, state_dim: int, noise_type: str = "additive") -> None:
        PyroModule.__init__(self)  # drift and diffusion are made from the system, not stored
        self.noise = noise_structure(noise_type)
        self.noise_type = noise_type
        self.sde_type = "ito"
        self.state_dim = state_dim
        self.register_buffer("inputs", None, persistent=False)
        self._positive: set[str] = set()

    @abstractmethod
    def _system(self, device: torch.device | None) -> LinearSystem:
        """The system at the present values of the hyper-parameters; each is read once."""

    def system(self, device: torch.device | None = None) -> LinearSystem:
        """Matrices and exact laws at the present values of the hyper-parameters, which are read here.

        Args:
            device: of its tensors; that of the hyper-parameters by default.

        Raises:
            ValueError: if a hyper-parameter has left its range.
        """
        with self._reading():
            return self._system(device)

    def transition(self, dt: Tensor) -> Transition:
        r"""Exact transition :math:`N(\Phi z + c, Q)` over steps `dt`, in the dtype of `dt`.

        Shape:
            dt: ``(*batch, K)``, ``>= 0`` · matrix, covariance: ``(*batch, K, D, D)`` · offset: ``(*batch, K, D)``, with
            the batch dimensions of `dt` and of the hyper-parameters broadcast.

        Raises:
            ValueError: if a step is negative or not finite, or a hyper-parameter has left its range.
        """
        return self.system(dt.device).transition(dt)

    def stationary(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Stationary mean ``(*batch, D)`` and covariance ``(*batch, D, D)`` of the state, in `dtype`.

        By default in the dtype of the hyper-parameters, or torch's default if they are numbers.

        Raises:
            ValueError: if the process has none; the message names the eigenvalue of A that does not decay.
        """
        return self.system().stationary(dtype)

    @property
    def observation(self) -> Tensor:
        """H, ``(*batch, O, D)``: the outputs as rows over the state, in the dtype of the hyper-parameters."""
        system = self.system()
        return system.observation.to(system.dtype)

    @property
    def drift(self) -> Callable[..., Tensor]:  # type: ignore[override]
        r""":math:`A z + b` as a module that holds this one."""
        return _Coefficient(self, 0)

    @property
    def diffusion(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """L as a module that holds this one."""
        return _Coefficient(self, 1)

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Coefficients from one reading of the hyper-parameters, in the dtype of the states."""
        self._check_no_inputs(rows)
        system = self.system()
        matrix, noise, offset = system.matrix, system.diffusion, system.offset

        def evaluate(_t: Tensor, z: Tensor, _rows: Rows) -> Coefficients:
            a = matrix.to(z)
            drift = z @ a.mT if a.dim() == 2 else (a @ z.unsqueeze(-1)).squeeze(-1)
            if offset is not None:
                drift = drift + offset.to(z)
            return Coefficients(drift, noise.to(z), None)

        return evaluate, rows

    def _converted(self, sde_type: str, sign: float) -> SDE:
        """The diffusion does not depend on the state: both interpretations are one."""
        del sign
        converted = self._copy()
        converted.sde_type = sde_type
        return converted

    def _networks(self, t: Tensor) -> tuple[StateNetwork | None, StateNetwork | None]:  # noqa: ARG002
        """Drift and diffusion as functions of the state at all times `t`, for solvers that call no modules."""
        return None, None

    def _reading(self) -> AbstractContextManager[object]:
        """Inside it, a hyper-parameter that is a Pyro sample is a named site, drawn once."""
        sampled = any(isinstance(module, PyroModule) and module._pyro_samples for module in self.modules())
        return self._pyro_context if sampled else nullcontext()

    def _check_no_inputs(self, rows: Rows) -> None:
        if rows[0] is not None:
            msg = f"{type(self).__name__} takes no `inputs`: give them to a control, `sde.controlled(control)`."
            raise ValueError(msg)

    def __add__(self, other: LinearSDE) -> Sum:
        if not isinstance(other, LinearSDE):
            return NotImplemented
        return Sum([*_terms(self, Sum), *_terms(other, Sum)])

    def __mul__(self, other: LinearSDE) -> Product:
        if not isinstance(other, LinearSDE):
            return NotImplemented
        return Product([*_terms(self, Product), *_terms(other, Product)])

    def _register(self, name: str, value: Parameter, *, positive: bool = False) -> None:
        """Store a hyper-parameter under its name; numbers stay Python floats, exact in every dtype."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value, persistent=False)  # moves with the module, keeps its graph
        else:
            setattr(self, name, value)
        if positive:
            self._positive.add(name)
            if isinstance(value, int | float | Tensor):
                self._check_positive(name, torch.as_tensor(value))
        if not isinstance(value, PyroParam | PyroSample):
            check_coefficients(**{name: value})

    def _read(self, *names: str, device: torch.device | None) -> tuple[list[Tensor], torch.dtype]:
        """Hyper-parameters in float64, on one device, and the dtype of those that are tensors."""
        given = [getattr(self, name) for name in names]
        tensors = [value for value in given if isinstance(value, Tensor)]
        dtypes = [value.dtype for value in tensors if value.is_floating_point()] or [torch.get_default_dtype()]
        device = tensors[0].device if device is None and tensors else device
        values = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in given]
        for name, value in zip(names, values, strict=True):
            if name in self._positive:
                self._check_positive(name, value)
        return values, reduce(torch.promote_types, dtypes)

    def _check_positive(self, name: str, value: Tensor) -> None:
        if not is_validation_enabled():  # as in MCMC, which rejects what has no finite density
            return
        good = (value > 0) & torch.isfinite(value)
        if not bool(good.all()):
            msg = (
                f"`{name}` of {type(self).__name__} must be positive and finite, received "
                f"{value.detach()[~good].flatten()[0].item():g}. If it is learned, give "
                "PyroParam(value, constraints.positive)."
            )
            raise ValueError(msg)


class Sum(LinearSDE):
    r"""Sum :math:`f = \sum_i f_i` of independent processes; the state is that of all, one after the other.

    Also written ``a + b``. Its covariance function is the sum of theirs.

    Args:
        terms: linear SDEs with equally many outputs.

    Raises:
        ValueError: if there is no term, or they have different numbers of outputs.
    """

    def __init__(self, terms: Sequence[LinearSDE]) -> None:
        super().__init__(sum(term.state_dim for term in check_parts("terms", terms)))
        self.terms = PyroModuleList(terms)

    def _system(self, device: torch.device | None) -> LinearSystem:
        systems = systems_of(self.terms, device)
        return sum_systems(systems, " + ".join(system.name for system in systems))


class Product(LinearSDE):
    r"""Process whose covariance function is the product of those of stationary processes with one output each.

    Also written ``a * b``. The state is the Kronecker product of the states, D the product of their dimensions.

    Args:
        factors: stationary linear SDEs with one output and mean zero.

    Raises:
        ValueError: if there is no factor; at use, if one is not stationary, has a mean or several outputs.
    """

    def __init__(self, factors: Sequence[LinearSDE]) -> None:
        super().__init__(math.prod(factor.state_dim for factor in check_parts("factors", factors)))
        self.factors = PyroModuleList(factors)

    def _system(self, device: torch.device | None) -> LinearSystem:
        first, *others = systems_of(self.factors, device)
        return reduce(lambda a, b: multiply_systems(a, b, f"{a.name} * {b.name}"), others, first)


class _Coefficient(nn.Module):
    """A coefficient of a linear SDE as a module of its own: parameters stay with the SDE that it holds."""

    def __init__(self, sde: LinearSDE, index: int) -> None:
        super().__init__()
        self.sde = sde
        self.index = index

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        evaluate, rows = self.sde.evaluator((None,))
        coefficients = evaluate(t, z, rows)
        return coefficients.diffusion if self.index else coefficients.drift

    def state_network(self, t: Tensor, inputs: Tensor | None) -> StateNetwork | None:
        """This coefficient as a function of the state alone, None if it is not offered."""
        return None if inputs is not None else self.sde._networks(t)[self.index]


def check_parts(name: str, parts: Sequence[LinearSDE]) -> Sequence[LinearSDE]:
    """The parts of a compound process.

    Raises:
        TypeError: if they are no sequence.
        ValueError: if there is none, or one is no linear SDE.
    """
    if not isinstance(parts, Iterable):
        msg = f"`{name}` must be a sequence of linear SDEs, received {type(parts).__name__}."
        raise TypeError(msg)
    if not parts or not all(isinstance(part, LinearSDE) for part in parts):
        received = [type(part).__name__ for part in parts]
        msg = f"`{name}` must hold at least one linear SDE and nothing else, received {received}."
        raise ValueError(msg)
    return parts


def _terms(sde: LinearSDE, kind: type[Sum] | type[Product]) -> list[LinearSDE]:
    """Terms of a sum (factors of a product), so that brackets make no difference to the names of parameters."""
    if type(sde) is not kind:
        return [sde]
    return list(sde.terms if isinstance(sde, Sum) else sde.factors)  # type: ignore[attr-defined]


def systems_of(parts: nn.ModuleList, device: torch.device | None) -> list[LinearSystem]:
    """Systems of some linear SDEs."""
    return [part.system(device) for part in parts if isinstance(part, LinearSDE)]


def shape_of(value: Parameter | None) -> torch.Size:
    """Shape of a hyper-parameter, ``()`` for a number; of the prior if it is a sample.

    It is ``()`` too where it is not known yet.
    """
    given = value.init_value if isinstance(value, PyroParam) else value
    if isinstance(given, PyroSample) and isinstance(given.prior, TorchDistributionMixin):
        return given.prior.shape()
    return given.shape if isinstance(given, Tensor) else torch.Size()
