"""Every form of a linear recurrence gives the states of the plain loop, and the gradients of autograd through it."""

import builtins
from importlib.util import find_spec

import pytest
import torch

from pyro_sde.ops import diagonal_recurrence, linear_recurrence, scan

COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(find_spec("numba") is None, reason="needs numba"))
FORMS = ["associative", "chunked", COMPILED, "loop"]
OTHERS = FORMS[:-1]
LENGTHS = [1, 2, 3, 4, 5, 8, 17, 31, 32, 33, 64, 100, 127]


def plain(matrices, offsets, initial, reverse=False):
    """The definition, step by step, by autograd."""
    states = [initial]
    order = range(len(offsets))
    for k in reversed(order) if reverse else order:
        matrix = matrices[k].mT if reverse else matrices[k]
        states.append(offsets[k] + (matrix @ states[-1].unsqueeze(-1)).squeeze(-1))
    return torch.stack(states[::-1] if reverse else states)


def recurrence(coefficients, offsets, initial, **options):
    """Matrices or, with one dimension less, elementwise factors."""
    run = linear_recurrence if coefficients.dim() > offsets.dim() else diagonal_recurrence
    return run(coefficients, offsets, initial, **options)


def as_matrices(coefficients, offsets):
    return coefficients if coefficients.dim() > offsets.dim() else torch.diag_embed(coefficients)


def problem(steps, batch=(2,), width=3, *, gain=0.97, spread=0.1, dtype=torch.float64, diagonal=False):
    torch.manual_seed(steps)
    shape = (steps, *batch, width)
    noise = spread * torch.randn(*shape, *(() if diagonal else (width,)), dtype=dtype)
    coefficients = noise + (gain if diagonal else gain * torch.eye(width, dtype=dtype))
    return coefficients, torch.randn(shape, dtype=dtype), torch.randn(*batch, width, dtype=dtype)


def relative_error(found, expected):
    return float((found - expected).abs().amax() / expected.abs().amax())


@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonal"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("form", ["auto", *FORMS])
@pytest.mark.parametrize("steps", LENGTHS)
def test_states_are_those_of_the_definition(steps, form, reverse, diagonal):
    given = problem(steps, diagonal=diagonal)
    expected = plain(as_matrices(*given[:2]), *given[1:], reverse)
    found = recurrence(*given, reverse=reverse, form=form)
    assert found.shape == (steps + 1, 2, 3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[-1 if reverse else 0], given[2])


@pytest.mark.parametrize("form", ["auto", *FORMS])
@pytest.mark.parametrize(
    ("coefficients", "offsets", "initial"),
    [
        ((40, 2, 2), (40, 2), (2,)),
        ((40, 1, 3, 2, 2), (40, 4, 1, 2), (1, 1, 2)),
        ((40, 4, 3, 2, 2), (40, 1, 1, 2), (4, 3, 2)),
    ],
    ids=["no batch", "both share", "coefficients of each"],
)
def test_batches_broadcast(coefficients, offsets, initial, form):
    torch.manual_seed(0)
    m, b, x = 0.5 * torch.randn(coefficients), torch.randn(offsets), torch.randn(initial)
    batch = torch.broadcast_shapes(offsets[1:-1], coefficients[1:-2])
    expected = plain(m, b.expand(40, *batch, 2), x.expand(*batch, 2))
    torch.testing.assert_close(linear_recurrence(m, b, x, form=form), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_no_steps_leave_the_initial_state(form):
    states = linear_recurrence(torch.zeros(0, 2, 2), torch.zeros(0, 2), torch.ones(2), form=form)
    assert states.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_a_batch_may_be_empty(form):
    given = [tensor.requires_grad_() for tensor in problem(50, (0,))]
    states = linear_recurrence(*given, form=form)
    assert states.shape == (51, 0, 3)
    states.sum().backward()
    assert given[0].grad.shape == (50, 0, 3, 3)


@pytest.mark.parametrize("width", [1, 2, 6, 9])
@pytest.mark.parametrize("form", OTHERS)
def test_width_does_not_matter(form, width):
    given = problem(50, width=width)
    for reverse in (False, True):
        expected = plain(*given, reverse)
        torch.testing.assert_close(linear_recurrence(*given, reverse=reverse, form=form), expected)


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize(
    ("gain", "spread"),
    [(0.8, 0.1), (0.0, 0.3), (1.0, 0.02), (1.01, 0.01)],
    ids=["contract", "forget", "neutral", "expand"],
)
@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonal"])
def test_forms_agree_to_round_off(form, gain, spread, diagonal):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        given = problem(1500, (1,), gain=gain, spread=spread, dtype=dtype, diagonal=diagonal)
        for reverse in (False, True):
            expected = recurrence(*given, reverse=reverse, form="loop")
            found = recurrence(*given, reverse=reverse, form=form)
            assert found.dtype == dtype
            assert relative_error(found, expected) < tolerance


@pytest.mark.parametrize("form", OTHERS)
def test_rotations_keep_their_digits(form):
    angle = torch.randn(2000, dtype=torch.float64)
    matrices = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2
    )
    offsets, initial = torch.zeros(2000, 2, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    total = torch.cat([angle.new_zeros(1), angle.cumsum(0)])
    expected = torch.stack([total.cos(), total.sin()], -1)
    assert relative_error(linear_recurrence(matrices, offsets, initial, form=form), expected) < 1e-11


@pytest.mark.parametrize("form", ["loop", COMPILED])
def test_products_that_overflow_do_no_harm_to_a_state_that_is_zero(form):
    matrices = torch.full((200, 1, 1), 1e3)
    offsets = torch.zeros(200, 1)
    assert not linear_recurrence(matrices, offsets, torch.zeros(1), form=form).any()


# --- gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonal"])
def test_first_and_second_derivatives(form, reverse, diagonal):
    given = problem(7, (2,), 2, diagonal=diagonal)
    given = tuple(tensor.requires_grad_() for tensor in given)

    def run(*tensors):
        return recurrence(*tensors, reverse=reverse, form=form)

    torch.autograd.gradcheck(run, given)
    torch.autograd.gradgradcheck(run, given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonal"])
def test_complex_derivatives(form, reverse, diagonal):
    given = problem(6, (), 2, dtype=torch.complex128, diagonal=diagonal)
    given = tuple(tensor.requires_grad_() for tensor in given)

    def run(*tensors):
        return recurrence(*tensors, reverse=reverse, form=form)

    expected = plain(as_matrices(*given[:2]), *given[1:], reverse)
    torch.testing.assert_close(run(*given), expected)
    torch.autograd.gradcheck(run, given)
    torch.autograd.gradgradcheck(run, given)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradients_of_shared_tensors_are_those_of_autograd(form, reverse):
    torch.manual_seed(0)
    matrices = (0.3 * torch.randn(60, 1, 3, 3, dtype=torch.float64)).requires_grad_()
    offsets = torch.randn(60, 4, 3, dtype=torch.float64, requires_grad=True)
    initial = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(61, 4, 3, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((weights * states.sin()).sum(), (matrices, offsets, initial))
        for states in (
            linear_recurrence(matrices, offsets, initial, reverse=reverse, form=form),
            plain(matrices, offsets, initial.expand(4, 3), reverse),
        )
    )
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("diagonal", [False, True], ids=["matrices", "diagonal"])
def test_functional_transforms_and_traces(form, reverse, diagonal):
    given = problem(5, (), 2, diagonal=diagonal)

    def run(*tensors):
        return recurrence(*tensors, reverse=reverse, form=form)

    batched = tuple(torch.stack([tensor, 2 * tensor]) for tensor in given)
    expected = torch.stack([run(*given), run(*(2 * tensor for tensor in given))])
    torch.testing.assert_close(torch.func.vmap(run)(*batched), expected)
    expected = torch.autograd.functional.jacobian(run, given)
    for found, wanted in zip(torch.func.jacrev(run, argnums=(0, 1, 2))(*given), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.jit.trace(run, given)(*given), run(*given))


def test_coefficients_without_gradient_get_none():
    matrices, offsets, initial = problem(40)
    offsets.requires_grad_()
    linear_recurrence(matrices, offsets, initial).sum().backward()
    assert matrices.grad is None
    assert offsets.grad is not None


# --- which form -------------------------------------------------------------------------


@pytest.fixture
def without_numba(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.split(".")[0] == "numba":
            raise ModuleNotFoundError(name)
        return original(name, *arguments, **options)

    scan._kernels.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    scan._kernels.cache_clear()


def chosen(steps, rows, width, dtype=torch.float32, diagonal=False, device="cpu"):
    return scan._choose(torch.empty(steps, rows, width, 1 if diagonal else width, dtype=dtype, device=device))


def test_auto_compiles_where_it_can():
    pytest.importorskip("numba")
    assert chosen(1000, 1, 3) == "compiled"
    assert chosen(1000, 1000, 3) == "compiled"
    assert chosen(10, 1, 3) == "loop"
    assert chosen(1000, 1, 3, torch.bfloat16) == "chunked"


def test_auto_is_shallow_where_launches_cost_most():
    assert chosen(1000, 64, 3, device="meta") == "associative"
    assert chosen(10, 64, 3, device="meta") == "loop"


def test_auto_without_numba_weighs_operations_against_arithmetic(without_numba):
    assert chosen(1000, 1, 3) == "chunked"
    assert chosen(1000, 8, 4) == "chunked"
    assert chosen(1000, 8, 8) == "chunked"
    assert chosen(1000, 64, 3) == "loop"
    assert chosen(300, 32, 6) == "loop"
    assert chosen(1000, 32, 8) == "loop"
    assert chosen(300, 32, 6, diagonal=True) == "chunked"
    assert chosen(100, 1024, 4, diagonal=True) == "loop"
    assert chosen(10, 1, 3) == "loop"


def test_auto_without_numba_is_silent(without_numba):
    given = problem(100)
    torch.testing.assert_close(linear_recurrence(*given), plain(*given))


def test_compiled_without_numba_names_the_extra(without_numba):
    with pytest.raises(ModuleNotFoundError, match=r"pyro_sde\[fast\]"):
        linear_recurrence(*problem(5), form="compiled")


def test_kernels_work_where_nothing_can_be_cached(monkeypatch):
    numba = pytest.importorskip("numba")
    original = numba.njit

    def refuse_to_cache(function, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(function)

    monkeypatch.setattr(numba, "njit", refuse_to_cache)
    scan._kernels.cache_clear()
    given = problem(5)
    torch.testing.assert_close(linear_recurrence(*given, form="compiled"), plain(*given))
    scan._kernels.cache_clear()


def test_one_version_of_a_kernel_serves_all_strides():
    pytest.importorskip("numba")
    scan._kernels.cache_clear()
    matrices, offsets, initial = problem(5, (2,))
    for m, b in ((matrices, offsets), (matrices.mT, offsets), (matrices, offsets.flip(-1)[..., [2, 1, 0]].mT.mT)):
        for reverse in (False, True):
            linear_recurrence(
                m, b.transpose(0, 1).contiguous().transpose(0, 1), initial, reverse=reverse, form="compiled"
            )
    assert len(scan._kernels()[0].signatures) == 1


# --- errors -----------------------------------------------------------------------------


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="`form` must be one of .*'fast'"):
        linear_recurrence(*problem(5), form="fast")


def test_compiled_refuses_other_types():
    given = [tensor.bfloat16() for tensor in problem(5)]
    with pytest.raises(ValueError, match="received torch.bfloat16"):
        linear_recurrence(*given, form="compiled")


def test_matrices_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"`matrices` must have shape \(K, \*batch, D, D\).*`diagonal_recurrence`"):
        linear_recurrence(torch.ones(5, 2, 3), torch.ones(5, 2), torch.ones(2))


@pytest.mark.parametrize(
    ("matrices", "offsets", "initial"),
    [
        ((5, 2, 2), (4, 2), (2,)),  # K
        ((5, 2, 2), (5, 3), (3,)),  # D
        ((5, 2, 2), (5, 7, 2), (7, 2)),  # a batch dimension that the matrices lack, which could be time or state
        ((5, 7, 2, 2), (5, 3, 2), (7, 2)),  # batches that do not broadcast
        ((5, 7, 2, 2), (5, 7, 2), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(matrices, offsets, initial):
    with pytest.raises(ValueError, match="`offsets` must have shape .*Insert dimensions of size 1"):
        linear_recurrence(torch.ones(matrices), torch.ones(offsets), torch.ones(initial))


def test_factors_need_a_state_dimension():
    with pytest.raises(ValueError, match="`offsets` must have shape"):
        diagonal_recurrence(torch.ones(5), torch.ones(5), torch.ones(()))
