r"""Hidden Markov chains over a finite number of regimes, in log space and in parallel over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ._arguments import check_floating, check_tensors
from ._regime_scan import (
    FORMS,
    backward_kernels,
    choose_form,
    forward_log,
    forward_max,
    safe_logsumexp,
    trace_back,
)
from .scan import linear_recurrence

__all__ = ["HiddenMarkov", "check_log_probabilities"]


class HiddenMarkov:
    r"""Regimes :math:`s_0 \sim p_0`, :math:`s_{n+1} \sim p_n(\cdot \mid s_n)` with likelihoods :math:`p(y_n \mid s_n)`.

    .. math:: p(y) = \sum_{s} p_0(s_0) \prod_n p_n(s_{n+1} \mid s_n) \prod_n p(y_n \mid s_n)

    Exact evidence, filter, posterior, most probable path and posterior samples for N observations and K regimes. All
    run in float64, whatever the dtype given, and results have that dtype. Probabilities of 0 (log-probabilities of
    -inf) are allowed anywhere, with finite gradients. Two forms: "loop" takes N operations and O(N K^2) arithmetic,
    "associative" O(log N) operations and O(N K^3) arithmetic; "auto" chooses by measured cost. Gradients are a linear
    recurrence (`linear_recurrence`) and can be differentiated again. Memory O(N K^2).

    Args:
        log_initial: :math:`\log p_0`, normalised, ``(*batch, K)``.
        log_transition: :math:`\log p_n(j \mid i)`, normalised over j, broadcastable to ``(*batch, N - 1, K, K)``; row i
            is the regime that is left.
        log_likelihood: :math:`\log p(y_n \mid s_n)`, ``(*batch, N, K)``; finite or -inf.
        mask: bool, ``(*batch, N)``; True = observed. What is masked counts as likelihood 1 and may be anything.
        lengths: ``(*batch,)``, numbers of observations from 0 to N. Behind its end a series keeps its last regime, and
            what is given there may be anything.
        form: "auto", "loop" or "associative".
        validate: check the values. Without it NaN goes in and NaN comes out.

    Attributes:
        batch_shape: broadcast batch shape.
        num_regimes: K.
        num_points: N.
        form: the form that sums take.

    Raises:
        ValueError: if shapes do not fit, `form` is unknown, probabilities do not sum to 1 or a value is NaN or +inf;
            the message names argument and step. Methods raise it if no regime can explain a step.

    References:
        Rabiner (1989), A tutorial on hidden Markov models, eqs. (19), (27), (37) and (33); Särkkä and
        García-Fernández (2021), Temporal parallelization of Bayesian smoothers, arXiv 1905.13002, and Hassan, Särkkä,
        García-Fernández (2021), Temporal parallelization of inference in hidden Markov models, arXiv 2102.05743.

    Example:
        >>> stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> chain = HiddenMarkov(torch.tensor([0.5, 0.5]).log(), stay, torch.tensor([[0.0, -2], [-0.1, 0], [0, -2]]))
        >>> chain.viterbi()
        tensor([0, 0, 0])
        >>> chain.posterior()[:, 0]
        tensor([0.9525, 0.9388, 0.9525])
    """

    def __init__(
        self,
        log_initial: Tensor,
        log_transition: Tensor,
        log_likelihood: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        form: str = "auto",
        validate: bool = True,
    ) -> None:
        if form not in (*FORMS, "auto"):
            msg = f"`form` must be one of {('auto', *FORMS)}, received {form!r}."
            raise ValueError(msg)
        self.batch_shape = _batch_shape(log_initial, log_transition, log_likelihood, mask, lengths)
        self.num_points, self.num_regimes = log_likelihood.shape[-2:]
        self.dtype = log_likelihood.dtype
        self._validate = validate
        inside = _inside(lengths, self.num_points)
        observed = inside if mask is None else (mask if inside is None else mask & inside)
        parts = [log_initial.double(), log_transition.double(), log_likelihood.double()]
        if observed is not None:
            parts[2] = torch.where(observed.unsqueeze(-1), parts[2], parts[2].new_zeros(()))
        if inside is not None:
            if parts[1].dim() == 2:  # one table for all steps
                parts[1] = parts[1].unsqueeze(0)
            keep = torch.full_like(parts[1][..., :1, :, :], -math.inf)
            keep.diagonal(dim1=-2, dim2=-1).zero_()
            parts[1] = torch.where(inside[..., 1:, None, None], parts[1], keep)
        if validate:
            check_log_probabilities("log_initial", parts[0], log_initial.dtype)
            check_log_probabilities("log_transition", parts[1], log_transition.dtype)
            _check_likelihood(parts[2])
        self.log_initial, self.log_transition, self.log_likelihood = parts
        work = (self.batch_shape.numel(), self.num_points, self.num_regimes, log_likelihood.device)
        self.form = choose_form(*work) if form == "auto" else form
        self._max_form = choose_form(*work, maximum=True) if form == "auto" else form

    # ---------------------------------------------------------------- recurrences
    def _flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """First states ``(R, K)``, transitions ``(N - 1, R, K, K)``, likelihoods ``(N - 1, R, K)``."""
        batch, count, width = self.batch_shape, self.num_points, self.num_regimes
        rows = batch.numel()
        likelihood = self.log_likelihood.expand(*batch, count, width).reshape(rows, count, width).transpose(0, 1)
        transition = self.log_transition.expand(*batch, count - 1, width, width)
        transition = transition.reshape(rows, count - 1, width, width).transpose(0, 1)
        return self.log_initial.expand(*batch, width).reshape(rows, width) + likelihood[0], transition, likelihood[1:]

    def _forward(self) -> tuple[Tensor, Tensor]:
        """States ``(N, R, K)`` of the filter, not normalised, and their sums ``(N, R)``."""
        first, transition, likelihood = self._flat()
        states = forward_log(first, transition, likelihood, self.form)
        totals = safe_logsumexp(states, -1)
        if self._validate:
            self._check_alive(totals)
        return states, totals

    def _shape(self, tensor: Tensor) -> Tensor:
        """``(n, R, ...) -> (*batch, n, ...)``, in the dtype of the likelihood."""
        tensor = tensor.transpose(0, 1)
        tensor = tensor.reshape(*self.batch_shape, *tensor.shape[1:])
        return tensor if tensor.dtype == torch.long else tensor.to(self.dtype)

    def log_evidence(self) -> Tensor:
        """Log-probability (or density) of all observations, regimes summed out; ``(*batch,)``.

        Raises:
            ValueError: if no regime can explain a step.
        """
        return self._forward()[1][-1].reshape(self.batch_shape).to(self.dtype)

    def log_increments(self) -> Tensor:
        r"""Terms :math:`\log p(y_n \mid y_{<n})`, ``(*batch, N)``; they sum to `log_evidence`.

        Raises:
            ValueError: if no regime can explain a step.
        """
        totals = self._forward()[1]
        return self._shape(torch.cat([totals[:1], totals.diff(dim=0)]))

    def filter(self) -> Tensor:
        r"""Probabilities :math:`p(s_n \mid y_{\le n})`, ``(*batch, N, K)``.

        Raises:
            ValueError: if no regime can explain a step.
        """
        states, totals = self._forward()
        return self._shape((states - totals.unsqueeze(-1)).exp())

    def posterior(self) -> Tensor:
        r"""Probabilities :math:`p(s_n \mid y)`, ``(*batch, N, K)``.

        Raises:
            ValueError: if no regime can explain a step.
        """
        return self._shape(self._smooth()[0])

    def pairwise(self) -> Tensor:
        r"""Probabilities :math:`p(s_n = i, s_{n+1} = j \mid y)`, ``(*batch, N - 1, K, K)``.

        Raises:
            ValueError: if no regime can explain a step.
        """
        smoothed, kernels = self._smooth()
        return self._shape(kernels * smoothed[1:].unsqueeze(-2))

    def _smooth(self) -> tuple[Tensor, Tensor]:
        """Posterior ``(N, R, K)`` and backward kernels ``(N - 1, R, K, K)``."""
        states, totals = self._forward()
        last = (states[-1] - totals[-1].unsqueeze(-1)).exp()
        kernels = backward_kernels(states, self._flat()[1])
        return linear_recurrence(kernels.mT, torch.zeros_like(states[1:]), last, reverse=True), kernels

    # ---------------------------------------------------------------- paths
    def viterbi(self) -> Tensor:
        """The most probable regimes given all observations, ``(*batch, N)``, int64; a path, not the best of each step.

        Raises:
            ValueError: if no regime can explain a step.
        """
        first, transition, likelihood = self._flat()
        states = forward_max(first, transition, likelihood, self._max_form)
        if self._validate:
            self._check_alive(states.amax(-1))
        maps = (states[:-1].unsqueeze(-1) + transition).argmax(-2)
        return self._shape(trace_back(maps, states[-1].argmax(-1)))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Regimes drawn from their joint posterior, ``(*sample_shape, *batch, N)``, int64.

        Forward filter, backward sampling: for every step a predecessor of every regime is drawn, and the maps so
        drawn are composed.

        Raises:
            ValueError: if no regime can explain a step.
        """
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            states, totals = self._forward()
            kernels = backward_kernels(states, self._flat()[1])  # of the regime that is left, by column
            count = shape.numel()
            last = _draw((states[-1] - totals[-1].unsqueeze(-1)).exp(), count)  # (S, R)
            maps = _draw(kernels.mT, count).movedim(0, 1)  # (N - 1, S, R, K)
            regimes = trace_back(maps.flatten(1, 2), last.flatten())  # (N, S * R)
        return regimes.T.reshape(*shape, *self.batch_shape, self.num_points)

    def log_joint(self, regimes: Tensor) -> Tensor:
        """Log-probability of regimes ``(..., *batch, N)`` together with the observations; ``(..., *batch)``.

        Raises:
            ValueError: if `regimes` has another number of points, or a regime does not exist.
        """
        check_tensors(regimes=regimes)
        if regimes.dtype != torch.long or regimes.shape[-1:] != (self.num_points,):
            msg = (
                f"`regimes` must be int64 of shape (..., {self.num_points}), received {regimes.dtype} of shape "
                f"{tuple(regimes.shape)}."
            )
            raise ValueError(msg)
        if bool(((regimes < 0) | (regimes >= self.num_regimes)).any()):
            msg = f"`regimes` must be numbers from 0 to {self.num_regimes - 1}, one is outside."
            raise ValueError(msg)
        batch = torch.broadcast_shapes(regimes.shape[:-1], self.batch_shape)
        count, width = self.num_points, self.num_regimes
        path = regimes.expand(*batch, count)
        own = self.log_likelihood.expand(*batch, count, width).gather(-1, path.unsqueeze(-1)).squeeze(-1)
        start = self.log_initial.expand(*batch, width).gather(-1, path[..., :1]).squeeze(-1)
        pairs = (path[..., :-1] * width + path[..., 1:]).unsqueeze(-1)
        moves = self.log_transition.expand(*batch, count - 1, width, width).flatten(-2).gather(-1, pairs)
        return (start + own.sum(-1) + moves.sum((-2, -1))).to(self.dtype)

    # ---------------------------------------------------------------- checks
    def _check_alive(self, totals: Tensor) -> None:
        """Raise ValueError if the observations have probability 0, naming the first step where it is so."""
        with torch.no_grad():
            dead = ~torch.isfinite(totals)
            if not bool(dead[-1].any()):
                return
            step, row = dead.nonzero()[0].tolist()
            series = _series(row, self.batch_shape)
            likelihood = self.log_likelihood.expand(*self.batch_shape, self.num_points, self.num_regimes)
            none = bool((likelihood.reshape(-1, self.num_points, self.num_regimes)[row, step] == -math.inf).all())
        cause = (
            "its log-likelihood is -inf in all of them, so the observation is outside the support of every regime"
            if none
            else "the regimes that explain it cannot be reached from those before it (log-probabilities of -inf)"
        )
        msg = (
            f"no regime can explain step {step} of {self.num_points}{series}: {cause}. Mask the step, or give every "
            "regime a positive probability there."
        )
        raise ValueError(msg)

    def __repr__(self) -> str:
        """Class and shapes."""
        sizes = f"num_points={self.num_points}, num_regimes={self.num_regimes}"
        return f"HiddenMarkov(batch_shape={tuple(self.batch_shape)}, {sizes})"


def check_log_probabilities(name: str, values: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless the exponentials of the last axis sum to 1, to the rounding of `dtype`.

    Args:
        name: of the argument, for the message.
        values: log-probabilities, ``(..., K)``.
        dtype: what the values were computed in; that of `values` if None.
    """
    tolerance = 1e-6 if (values.dtype if dtype is None else dtype) == torch.float64 else 1e-3
    with torch.no_grad():
        total = values.exp().sum(-1)
        bad = ~((total - 1).abs() <= tolerance)
        if not bool(bad.any()):
            return
        where = bad.nonzero()[0].tolist()
    place = f" at index {where}" if where else ""
    msg = (
        f"`{name}` must hold normalised log-probabilities along its last axis; their exponentials sum to "
        f"{total[tuple(where)].item():.6g}{place}. Normalise by log_softmax(-1), or take the log of probabilities."
    )
    raise ValueError(msg)


def _batch_shape(
    log_initial: Tensor, log_transition: Tensor, log_likelihood: Tensor, mask: Tensor | None, lengths: Tensor | None
) -> torch.Size:
    check_floating(log_initial=log_initial, log_transition=log_transition, log_likelihood=log_likelihood)
    if mask is not None:
        check_tensors(mask=mask)
    if lengths is not None:
        check_tensors(lengths=lengths)
        if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
            msg = f"`lengths` must be whole numbers, received {lengths.dtype}."
            raise TypeError(msg)
    if log_likelihood.dim() < 2 or log_likelihood.shape[-2] < 1:
        msg = f"`log_likelihood` must have shape (*batch, N, K) with N >= 1, received {tuple(log_likelihood.shape)}."
        raise ValueError(msg)
    count, width = log_likelihood.shape[-2:]
    if log_initial.shape[-1:] != (width,) or log_transition.shape[-2:] != (width, width):
        msg = (
            f"`log_initial` must have shape (*batch, {width}) and `log_transition` (*batch, N - 1, {width}, {width}) "
            f"for the K = {width} regimes of `log_likelihood`; received {tuple(log_initial.shape)} and "
            f"{tuple(log_transition.shape)}."
        )
        raise ValueError(msg)
    steps = log_transition.shape[-3:-2]
    if steps not in ((), (1,), (count - 1,)):
        msg = f"`log_transition` must have N - 1 = {count - 1} steps or 1, received {tuple(log_transition.shape)}."
        raise ValueError(msg)
    if mask is not None and (mask.dtype != torch.bool or mask.shape[-1:] != (count,)):
        msg = f"`mask` must be bool of shape (*batch, {count}), received {mask.dtype} of shape {tuple(mask.shape)}."
        raise ValueError(msg)
    if lengths is not None and lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= count:
        low, high = int(lengths.min()), int(lengths.max())
        msg = f"`lengths` must be numbers of observations from 0 to {count}, received values from {low} to {high}."
        raise ValueError(msg)
    shapes = [log_initial.shape[:-1], log_transition.shape[:-3], log_likelihood.shape[:-2]]
    shapes += [] if mask is None else [mask.shape[:-1]]
    shapes += [] if lengths is None else [lengths.shape]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        msg = f"batch shapes do not broadcast: {[tuple(shape) for shape in shapes]}."
        raise ValueError(msg) from error


def _inside(lengths: Tensor | None, count: int) -> Tensor | None:
    """Which points belong to their series, ``(*batch, N)``."""
    return None if lengths is None else torch.arange(count, device=lengths.device) < lengths.unsqueeze(-1)


def _check_likelihood(values: Tensor) -> None:
    with torch.no_grad():
        bad = values.isnan() | (values == math.inf)
        if not bool(bad.any()):
            return
        *series, step, regime = bad.nonzero()[0].tolist()
        value = values[(*series, step, regime)].item()
    place = f" of series {series}" if series else ""
    msg = f"`log_likelihood` is {value} at step {step}, regime {regime}{place}. Mask what is missing."
    raise ValueError(msg)


def _draw(probabilities: Tensor, count: int) -> Tensor:
    """`count` independent indices for every row of probabilities ``(..., K)``; ``(count, ...)``."""
    cumulative = probabilities.cumsum(-1)
    cumulative = cumulative / cumulative[..., -1:].clamp_min(torch.finfo(cumulative.dtype).tiny)
    point = torch.rand((count, *cumulative.shape[:-1]), dtype=cumulative.dtype, device=cumulative.device)
    # the first regime with more than the point below it; one without probability has as much as the one before it
    index = (cumulative <= point.unsqueeze(-1)).sum(-1)
    return index.clamp_max(cumulative.shape[-1] - 1)


def _series(row: int, batch: torch.Size) -> str:
    if not batch:
        return ""
    index = [int(i) for i in np.unravel_index(row, batch)]
    return f" of series {index}"
