r"""SDEs of states that are bound to a set: positive, in an interval, on the simplex."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._constraints import Domain, Face, Positive, SquareRoot
from ._constraints_bounded import Arcsine, Interval, Simplex
from .base import SDE, Coefficients, ControlledSDE, Evaluator, Rows
from .noise import trailing_singleton

__all__ = [
    "Arcsine",
    "ConstrainedSDE",
    "Domain",
    "Interval",
    "Positive",
    "Simplex",
    "SquareRoot",
    "constrain",
    "domain_of",
]


class ConstrainedSDE(SDE):
    r"""SDE of the coordinate :math:`y = T(x)` of a constrained process :math:`dx = f\,dt + \sigma\,dW`.

    .. math:: dy_i = \big[\nabla T_i \cdot f + \tfrac12 \mathrm{tr}(\sigma^\top \nabla^2 T_i\, \sigma)\big]\,dt
        + \nabla T_i \cdot \sigma\,dW

    The user writes f and :math:`\sigma` of x; y has no constraint, so that no step can violate one, and
    :math:`x = T^{-1}(y)`. A Stratonovich SDE stays one and gets no second-order term. The Brownian motions are those of
    x: a control u adds :math:`\sigma u` to the drift of x and :math:`\nabla T\,\sigma u` to that of y, with the same
    divergence, so ``constrained.controlled(control)`` is the control form of both. The control is called with y.

    Cost: one call of drift and diffusion of x per evaluation, and some elementwise operations.

    Args:
        source: SDE of x; its inputs stay its own.
        domain: the constraint with its coordinate, such as ``Positive()``.

    Attributes:
        domain: the constraint.

    Shape:
        z: coordinates ``(..., D)``, ``(..., D - 1)`` for the simplex.

    Raises:
        TypeError: if `source` is not an `SDE` or `domain` not a `Domain`.
        ValueError: if `source` has a control (constrain first, control then), or elementwise noise on the simplex.

    References:
        Øksendal (2003), Stochastic Differential Equations, theorem 4.2.1; Kloeden and Platen (1992), section 4.4.

    Example:
        >>> import torch
        >>> growth = SDE(lambda t, x: 0.3 * x, lambda t, x: 0.4 * x)
        >>> log_growth = ConstrainedSDE(growth, Positive())
        >>> log_growth.coefficients(torch.zeros(1), torch.zeros(1), (None,)).drift
        tensor([0.2200])
    """

    def __init__(self, source: SDE, domain: Domain) -> None:
        nn.Module.__init__(self)  # drift and diffusion are made from one source: one name per parameter
        if not isinstance(source, SDE):
            msg = f"`source` must be an SDE of the constrained state, received {type(source).__name__}."
            raise TypeError(msg)
        if not isinstance(domain, Domain):
            msg = f"`domain` must be a Domain such as Positive(), received {type(domain).__name__}."
            raise TypeError(msg)
        if isinstance(source, ControlledSDE):
            msg = (
                "`source` has a control already. Constrain the prior and control that: constrain(prior, domain)"
                ".controlled(control), where the control is called with the coordinate."
            )
            raise ValueError(msg)
        if isinstance(domain, Simplex) and source.noise_type == "diagonal":
            msg = (
                '`source` has noise_type="diagonal", which cannot keep a state on the simplex: every Brownian motion '
                'must move entries that add up to 0. Write the diffusion as a matrix with noise_type="general".'
            )
            raise ValueError(msg)
        self.noise = source.noise
        self.noise_type = "general" if source.noise_type == "additive" else source.noise_type
        self.sde_type = source.sde_type
        self.diffusion = _CoordinateDiffusion(source, domain)
        self.drift = _CoordinateDrift(source, domain)
        self.domain = domain
        self.register_buffer("inputs", source.inputs, persistent=False)

    @property
    def source(self) -> SDE:
        """SDE of the constrained state."""
        return self.diffusion.source  # type: ignore[union-attr,return-value]

    def evaluator(self, rows: Rows) -> tuple[Evaluator, Rows]:
        """Coefficients of the coordinate, from one call of those of the state."""
        if not isinstance(self.diffusion, _CoordinateDiffusion):  # a copy for the drift alone
            return super().evaluator(rows)
        evaluate, rows = self.source.evaluator(rows)
        source, domain = self.source, self.domain

        def transformed(t: Tensor, y: Tensor, rows: Rows) -> Coefficients:
            x = domain.to_state(y)
            drift, diffusion, _ = evaluate(t, x, rows)
            return _transform(source, domain, drift, diffusion, x, y)

        return transformed, rows

    def check_boundary(self, t: Tensor, state: Tensor, rows: Rows = (None,)) -> None:
        """Raise ValueError if drift or diffusion of the state would carry it out of its set.

        At one point of each face of the boundary the diffusion across the face must be 0 and the drift must not point
        outwards; on the simplex the drift and every column of the diffusion must sum to 0. A coefficient that is not
        finite on the boundary is not examined there.

        Args:
            t: a time ``(..., 1)``.
            state: of the shape ``(*batch, D)`` that coefficients may count on; its values do not matter.
            rows: inputs at that time, as for `coefficients`.
        """
        with torch.no_grad():
            like = state.new_zeros(state.shape[-1])
            centre = self.domain.centre(like)
            inside = self.source.coefficients(t, centre, rows)
            if isinstance(self.domain, Simplex):
                _check_sums(inside)
            for face in self.domain.faces(like):
                points = face.points.reshape(len(like), *[1] * (state.dim() - 1), len(like))
                self._check_face(face, points, inside, self.source.coefficients(t, points, rows))

    def _check_face(self, face: Face, points: Tensor, inside: Coefficients, there: Coefficients) -> None:
        """Row i of the points has entry i on the boundary: entry i of drift and diffusion is the one across it."""
        tolerance = 10 * torch.finfo(points.dtype).eps ** 0.5
        for name, sign in (("diffusion", 1.0), ("drift", -face.inward)):
            value = self._by_entry(name, there, points)
            scale = torch.maximum(
                value.abs().amax(0).nan_to_num(0.0, 0.0), self._by_entry(name, inside, points[0]).abs()
            )
            across = torch.stack([sign * value[i, ..., i] for i in range(len(points))], -1)
            bad = (across > tolerance * scale) & across.isfinite()
            if bad.any():
                where = tuple(bad.nonzero()[0].tolist())
                need = "vanish there" if name == "diffusion" else "not point out of the set there"
                msg = (
                    f"`{name}` is {sign * float(across[where]):.4g} at {face.text} in dimension {where[-1]}, on the "
                    f"boundary of the constraint {self.domain.text}: it must {need}, or the process leaves the "
                    f"constraint. Correct the {name}, or leave the constraint out and keep the state inside by "
                    "solver=ReflectedEuler(lower=..., upper=...)."
                )
                raise ValueError(msg)

    def _by_entry(self, name: str, coefficients: Coefficients, points: Tensor) -> Tensor:
        """Drift, or size of the diffusion, of every entry of the state at some points."""
        if name == "drift":
            value = coefficients.drift
        else:
            value = self.noise.expand(coefficients.diffusion, points)
            value = value.norm(dim=-1) if self.noise.matrix_dims else value.abs()
        return value.expand(torch.broadcast_shapes(value.shape, points.shape))


def constrain(sde: SDE, domain: Domain) -> ConstrainedSDE:
    """SDE of the coordinate of a constrained process, `ConstrainedSDE`.

    Args:
        sde: SDE of the constrained state, as written in its own units.
        domain: ``Positive()``, ``Interval(low, high)``, ``Simplex()``, ``SquareRoot()`` or ``Arcsine(low, high)``.
    """
    return ConstrainedSDE(sde, domain)


def domain_of(sde: SDE) -> Domain:
    """Domain of a constrained SDE, looking through its controls.

    Raises:
        TypeError: if there is none.
    """
    inner = sde
    while isinstance(inner, ControlledSDE):
        inner = inner.base
    if not isinstance(inner, ConstrainedSDE):
        msg = (
            f"`sde` must be a constrained SDE or a controlled one of it, received {type(inner).__name__}. Write "
            "constrain(sde, Positive()), or give `domain`."
        )
        raise TypeError(msg)
    return inner.domain


class _CoordinateDrift:
    """Drift of the coordinate; a plain function, so that the parameters belong to the diffusion alone."""

    def __init__(self, source: SDE, domain: Domain) -> None:
        self.source, self.domain = source, domain

    def __call__(self, t: Tensor, y: Tensor, *rows: Tensor) -> Tensor:
        x = self.domain.to_state(y)
        drift, diffusion, _ = self.source.coefficients(t, x, rows or (None,))
        return _transform(self.source, self.domain, drift, diffusion, x, y).drift


class _CoordinateDiffusion(nn.Module):
    def __init__(self, source: SDE, domain: Domain) -> None:
        super().__init__()
        self.source = source
        self.domain = domain

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x = self.domain.to_state(y)
        source: Callable[..., Tensor] = self.source.diffusion  # type: ignore[assignment]
        diffusion = torch.as_tensor(source(t, x), dtype=y.dtype, device=y.device)
        return self.domain.diffusion(diffusion, x, y, self.source.noise)  # type: ignore[operator,arg-type]


def _transform(source: SDE, domain: Domain, drift: Tensor, diffusion: Tensor, x: Tensor, y: Tensor) -> Coefficients:
    """Itô's formula, after the shapes have been checked: a wrong one could broadcast against the slope."""
    problem = source.noise.shape_error(diffusion, x)
    if problem:
        _refuse_shape("diffusion", diffusion, x, problem)
    if trailing_singleton(drift, x) or (drift.dim() and drift.shape[-1] not in (1, x.shape[-1])):
        _refuse_shape("drift", drift, x, "it must broadcast against the state")
    second_order = diffusion if source.sde_type == "ito" else None
    return Coefficients(
        domain.drift(drift, second_order, x, y, source.noise), domain.diffusion(diffusion, x, y, source.noise), None
    )


def _refuse_shape(name: str, value: Tensor, x: Tensor, advice: str) -> None:
    msg = f"`{name}` returned shape {tuple(value.shape)} for states of shape {tuple(x.shape)}: {advice}."
    raise ValueError(msg)


def _check_sums(inside: Coefficients) -> None:
    for name, value, axis in (("drift", inside.drift, -1), ("diffusion", inside.diffusion, -2)):
        total = value.sum(axis).abs().amax()
        if float(total) > 100 * torch.finfo(value.dtype).eps * (1 + float(value.abs().amax())):
            what = "the drift" if name == "drift" else "every column of the diffusion"
            msg = (
                f"`{name}` adds up to {float(total):.4g} over the state at the centre of the simplex: {what} must add "
                "up to 0, or the state leaves the simplex."
            )
            raise ValueError(msg)
