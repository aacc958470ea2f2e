"""The contract of a path law: what every engine of Pyro may take for granted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..distributions.base import PathDistribution
from ..distributions.sde_path import SDEPath
from ._requirements import close, draw, finite_gradients, require, same_shape, seeded
from .fit import loop_log_prob
from .statistics import ContractError

__all__ = ["CLAUSES", "check_distribution"]


class _Exam(NamedTuple):
    """A law under examination, with two of its paths ``(2, *batch, T, D)``."""

    law: PathDistribution
    path: Tensor
    parameters: tuple[Tensor, ...]


def check_distribution(law: PathDistribution, *, parameters: Sequence[Tensor] = (), skip: Collection[str] = ()) -> None:
    """Examine a path law; every clause is one thing that some inference algorithm of Pyro relies on.

    * "shapes": event and batch shape, samples and log-densities with sample dimensions, one dtype, finite values.
    * "seed": the same seed gives the same path, by `sample` and by `rsample`.
    * "support": two event dimensions; samples are inside, NaN is not.
    * "expand": new and existing dimensions, independent draws along them, same density, same class; ValueError if
      impossible.
    * "mask": masked entries count 0, in the density and in the score parts.
    * "to_event": batch dimensions become event dimensions and their densities add up.
    * "broadcast": the density of a stack of paths is the stack of their densities.
    * "independence": the density of one batch entry depends on the path of that entry only.
    * "loop": for an `SDEPath` of Euler–Maruyama steps, the density is that of one step at a time by dense linear
      algebra (`loop_log_prob`).
    * "score_parts": the parts that Pyro's bounds need, reparameterised or not.
    * "has_rsample": ``has_rsample_(False)`` holds, survives `expand`, and samples then carry no gradient.
    * "gradients": of density and samples, with respect to path and parameters, are finite, and none is missing.
    * "validation": a path of a wrong shape or with NaN raises ValueError.
    * "deepcopy", "pickle": copies made before and after sampling draw and score as the law does. (Laws of functions
      without a module-level name cannot be pickled, laws of tensors with a graph cannot be copied: skip them.)

    All clauses run; the error lists every broken one. Global randomness is left as it was. Cost: some tens of calls of
    `sample` and `log_prob`. What it does not do: judge the samples (`gof`), compare two laws (`check_kl`).

    Args:
        law: the law, with a batch shape whose sizes are not 1 if those clauses are to bite.
        parameters: tensors of any shape that require a gradient and that density or samples depend on; those of the
            SDE of an `SDEPath` are included.
        skip: names of clauses to leave out.

    Raises:
        ContractError: if a clause is broken; the message lists all of them.
        ValueError: if `skip` names an unknown clause.
        TypeError: if `law` is not a path law.

    Example:
        >>> from pyro_sde import OrnsteinUhlenbeckPath
        >>> one = torch.ones(4, 2)
        >>> check_distribution(OrnsteinUhlenbeckPath(one, one, 0 * one, torch.tensor([0.0, 0.5, 2.0])))
    """
    if not isinstance(law, PathDistribution):
        msg = f"`law` must be a PathDistribution, received {type(law).__name__}."
        raise TypeError(msg)
    unknown = sorted(set(skip) - set(CLAUSES))
    if unknown:
        msg = f"`skip` names unknown clauses {unknown}; the clauses are {list(CLAUSES)}."
        raise ValueError(msg)
    sde = getattr(law, "sde", None)
    own = sde.parameters() if isinstance(sde, nn.Module) else ()
    trained = {id(p): p for p in (*parameters, *own) if p.requires_grad}
    broken = []
    with seeded():
        exam = _Exam(law, law.sample(torch.Size([2])).detach(), tuple(trained.values()))
        for name, check in CLAUSES.items():
            if name in skip:
                continue
            try:
                check(exam)
            except ContractError as error:
                broken.append(f"{name}: {error}")
            except Exception as error:  # noqa: BLE001 (any exception of the law is a finding)
                broken.append(f"{name}: raised {type(error).__name__}: {error}")
    if broken:
        msg = f"{law!r} breaks {len(broken)} of {len(CLAUSES)} clauses:\n  " + "\n  ".join(broken)
        raise ContractError(msg)


def _check_shapes(exam: _Exam) -> None:
    law = exam.law
    batch, event = law.batch_shape, law.event_shape
    require(len(event) == 2 and event[0] >= 1, f"event shape must be (T, D), is {tuple(event)}")
    for size in ((), (1,), (3, 2)):
        path = law.sample(torch.Size(size))
        same_shape("sample", path, (*size, *batch, *event))
        require(not path.requires_grad, "sample() carries a gradient; it must be drawn without one")
        require(bool(torch.isfinite(path).all()), "a sample is not finite")
        log_prob = law.log_prob(path)
        same_shape("log_prob", log_prob, (*size, *batch))
        require(log_prob.dtype == path.dtype, f"log_prob has dtype {log_prob.dtype}, samples {path.dtype}")
        require(bool(torch.isfinite(log_prob).all()), "log_prob of a sample is not finite")
    require(law.shape() == (*batch, *event), f"shape() is {tuple(law.shape())}")
    if law.has_rsample:
        same_shape("rsample", law.rsample(torch.Size([3])), (3, *batch, *event))


def _check_seed(exam: _Exam) -> None:
    methods = [exam.law.sample, exam.law.sample, *([exam.law.rsample] if exam.law.has_rsample else [])]
    first, *others = (draw(method) for method in methods)
    for other in others:
        close("two draws with one seed", first, other.detach())


def _check_support(exam: _Exam) -> None:
    support = exam.law.support
    require(support.event_dim == 2, f"support must have 2 event dimensions, has {support.event_dim}")
    inside = support.check(exam.path)
    same_shape("support.check", inside, (2, *exam.law.batch_shape))
    require(bool(inside.all()), "a sample lies outside the support")
    require(not bool(support.check(exam.path * torch.nan).any()), "a path of NaN counts as inside the support")


def _check_expand(exam: _Exam) -> None:
    law, batch = exam.law, exam.law.batch_shape
    for wide in (law.expand(torch.Size([3, *batch])), law.expand(torch.Size([1, *batch])).expand([3, *batch])):
        require(type(wide) is type(law), f"expand changed the class to {type(wide).__name__}")
        require(wide.batch_shape == (3, *batch), f"expand gave batch shape {tuple(wide.batch_shape)}")
        path = wide.sample()
        same_shape("sample of the expanded law", path, (3, *batch, *law.event_shape))
        require(
            not torch.equal(path[0], path[1]) or torch.equal(law.sample(), law.sample()),
            "draws along an expanded dimension are copies of one draw",
        )
        close("log_prob of the expanded law", wide.log_prob(path), law.log_prob(path))
        one = law.log_prob(exam.path[0])
        close("log_prob of one path under the expanded law", wide.log_prob(exam.path[0]), one.expand(3, *batch))
    require(law.batch_shape == batch, "expand changed the law that it was called on")
    impossible = [(*batch[:-1], batch[-1] + 1), ()] if len(batch) and batch[-1] > 1 else []
    for shape in impossible:
        try:
            law.expand(torch.Size(shape))
        except ValueError:
            continue
        require(False, f"expand from {tuple(batch)} to {shape} did not raise ValueError")


def _check_mask(exam: _Exam) -> None:
    law, path = exam.law, exam.path
    mask = (torch.arange(law.batch_shape.numel()) % 2 == 0).reshape(law.batch_shape)
    log_prob = law.log_prob(path)
    expected = torch.where(mask, log_prob, torch.zeros_like(log_prob))
    close("log_prob of the masked law", law.mask(mask).log_prob(path), expected)
    close("score parts of the masked law", law.mask(mask).score_parts(path).log_prob, expected)
    close("log_prob of mask(False)", law.mask(False).log_prob(path), torch.zeros_like(log_prob))
    close("log_prob of mask(True)", law.mask(True).log_prob(path), log_prob)


def _check_to_event(exam: _Exam) -> None:
    law, path = exam.law, exam.path
    log_prob = law.log_prob(path)
    for n in range(1, len(law.batch_shape) + 1):
        event = law.to_event(n)
        split = len(law.batch_shape) - n
        require(event.batch_shape == law.batch_shape[:split], f"to_event({n}) gave {tuple(event.batch_shape)}")
        require(event.event_shape == (*law.batch_shape[split:], *law.event_shape), f"to_event({n}) has a wrong event")
        close(f"log_prob of to_event({n})", event.log_prob(path), log_prob.sum(tuple(range(-n, 0))))
        same_shape("sample of to_event", event.sample(), (*law.batch_shape, *law.event_shape))


def _check_broadcast(exam: _Exam) -> None:
    law, path = exam.law, exam.path
    stacked = torch.stack([law.log_prob(path[0]), law.log_prob(path[1])])
    close("log_prob of stacked paths", law.log_prob(path), stacked)
    close("log_prob with singleton sample dimensions", law.log_prob(path[:, None, None]), stacked[:, None, None])


def _check_independence(exam: _Exam) -> None:
    path = exam.path[0].clone().requires_grad_()
    log_prob = exam.law.log_prob(path).reshape(-1)
    if not log_prob.requires_grad:
        return
    for entry in {0, len(log_prob) - 1}:
        (gradient,) = torch.autograd.grad(log_prob[entry], path, retain_graph=True)
        gradient = gradient.reshape(len(log_prob), -1).abs().amax(1)
        gradient[entry] = 0
        other = int(gradient.argmax())
        require(
            not float(gradient[other]),
            f"the density of batch entry {entry} depends on the path of entry {other}: "
            f"gradient {float(gradient[other]):.3g}. Give a latent of shape (B,) to the SDE as (B, 1)",
        )


def _check_loop(exam: _Exam) -> None:
    if isinstance(exam.law, SDEPath) and exam.law.solver.is_euler:
        close("log_prob and one step at a time", exam.law.log_prob(exam.path), loop_log_prob(exam.law, exam.path))


def _check_score_parts(exam: _Exam) -> None:
    law, path = exam.law, exam.path[0]
    for reparameterised in {law.has_rsample, False}:
        variant = copy.copy(law).has_rsample_(reparameterised)
        parts = variant.score_parts(path)
        log_prob = law.log_prob(path)
        close("score_parts.log_prob", parts.log_prob, log_prob)
        zero = isinstance(parts.score_function, int | float) and parts.score_function == 0
        require(zero == reparameterised, "the score function must be the number 0 if, and only if, reparameterised")
        if reparameterised:
            close("score_parts.entropy_term", torch.as_tensor(parts.entropy_term), log_prob)
        else:
            close("score_parts.score_function", torch.as_tensor(parts.score_function), log_prob)


def _check_has_rsample(exam: _Exam) -> None:
    variant = copy.copy(exam.law).has_rsample_(False)
    wide = variant.expand(torch.Size([2, *exam.law.batch_shape]))
    require(not wide.has_rsample, "expand forgot has_rsample_(False)")
    for law in (variant, wide):
        require(not law().requires_grad, "a law with has_rsample_(False) draws samples with a gradient")
    before = exam.law.has_rsample
    require(before == exam.law.expand(exam.law.batch_shape).has_rsample, "expand changed has_rsample")


def _check_gradients(exam: _Exam) -> None:
    path = exam.path.clone().requires_grad_()
    log_prob = exam.law.log_prob(path).sum()
    if log_prob.requires_grad:
        finite_gradients("log_prob", log_prob, (path,))
    used = finite_gradients("log_prob", log_prob, exam.parameters)
    if exam.law.has_rsample:
        used |= finite_gradients("rsample", exam.law.rsample().square().sum(), exam.parameters)
    unused = [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(exam.parameters) if i not in used]
    require(not unused, f"neither density nor samples have a gradient for parameters {unused}")


def _check_validation(exam: _Exam) -> None:
    law = copy.copy(exam.law)
    law._validate_args = True
    wrong = {
        "too many points": torch.cat([exam.path, exam.path[..., -1:, :]], -2),
        "too many states": torch.cat([exam.path, exam.path[..., -1:]], -1),
        "NaN": exam.path * torch.nan,
    }
    for text, path in wrong.items():
        try:
            law.log_prob(path)
        except ValueError:
            continue
        require(False, f"log_prob of a path with {text} did not raise ValueError")


def _check_copies(exam: _Exam, make: Callable[[PathDistribution], PathDistribution]) -> None:
    expected, drawn = exam.law.log_prob(exam.path), draw(exam.law.sample)
    kept = exam.law()  # a living sample, with its graph: the copy must not take it along
    for other in (make(exam.law), make(exam.law.expand(exam.law.batch_shape))):
        close("log_prob of the copy", other.log_prob(exam.path), expected)
        close("sample of the copy", draw(other.sample), drawn)
    require(bool(torch.isfinite(kept).all()), "a sample is not finite")


def _check_deepcopy(exam: _Exam) -> None:
    _check_copies(exam, copy.deepcopy)


def _check_pickle(exam: _Exam) -> None:
    _check_copies(exam, lambda law: pickle.loads(pickle.dumps(law)))  # noqa: S301 (our own bytes)


CLAUSES: dict[str, Callable[[_Exam], None]] = {
    "shapes": _check_shapes,
    "seed": _check_seed,
    "support": _check_support,
    "expand": _check_expand,
    "mask": _check_mask,
    "to_event": _check_to_event,
    "broadcast": _check_broadcast,
    "independence": _check_independence,
    "loop": _check_loop,
    "score_parts": _check_score_parts,
    "has_rsample": _check_has_rsample,
    "gradients": _check_gradients,
    "validation": _check_validation,
    "deepcopy": _check_deepcopy,
    "pickle": _check_pickle,
}
"""Clauses of `check_distribution` by name."""
