"""Re-entry laws against loops over fine steps."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_sde.distributions.multiscale_kernels import (
    AmortisedReEntry,
    BurnIn,
    ExactReEntry,
    gaussian_moments,
)
from pyro_sde.ops.grid import TimeGrid
from pyro_sde.ops.windows import Windows
from pyro_sde.sde.two_scale import FineSDE


def ragged(dtype=torch.float64) -> Windows:
    grid = TimeGrid(torch.tensor([[0.5, 1.0, 9.0], [0.0, 5.0, 5.0]], dtype=dtype), start=0.0, max_step=0.5)
    return Windows.around(grid, before=0.5, after=0.0, fine_steps=3)


def rotating(t, b, a):
    """Linear in b (2 dims), with a matrix that is not symmetric, and moved by a (1 dim) and the time."""
    x, y = b.unbind(-1)
    s = a[..., 0]
    return torch.stack([-2 * x + s * y + t.squeeze(-1), -s * x - 3 * y + s**2], -1)


def matrix_noise(t, b, a):
    """(..., 2, 3), moved by a."""
    rows = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.5, 0.2]], dtype=b.dtype)
    return rows * (1 + a[..., :1, None].square())


def diagonal(t, b, a):
    return torch.stack([-2 * b[..., 0] + a[..., 0], -3 * b[..., 1] + t.squeeze(-1)], -1)


def diagonal_noise(t, b, a):
    return torch.tensor([0.5, 0.7], dtype=b.dtype) * (1 + a[..., :1].square())


FINES = {
    "diagonal": FineSDE(diagonal, diagonal_noise),
    "coupled": FineSDE(rotating, diagonal_noise),
    "matrix": FineSDE(rotating, matrix_noise, noise_type="general"),
}


def by_loop(fine, coarse, windows, series, gap):
    """Affine map and covariance of a gap by one fine Euler step after the other."""
    n, times, steps = windows.fine_steps, windows.coarse.times[series], windows.coarse.steps[series]
    matrix, offset = torch.eye(2).double(), torch.zeros(2).double()
    covariance = torch.zeros(2, 2).double()
    for k in range(int(windows.gap_starts[series, gap]), int(windows.gap_ends[series, gap])):
        a, t, h = coarse[k], times[k : k + 1], steps[k] / n
        at = [fine.given(t, b, a).drift for b in (torch.zeros(2).double(), *torch.eye(2).double())]
        jacobian = torch.stack([at[1] - at[0], at[2] - at[0]], -1)
        noise = fine.noise.gram(fine.given(t, torch.zeros(2).double(), a).diffusion)
        for _ in range(n):
            step = torch.eye(2).double() + h * jacobian
            matrix, offset, covariance = step @ matrix, step @ offset + h * at[0], step @ covariance @ step.mT
            covariance = covariance + h * noise
    return matrix, offset, covariance


@pytest.mark.parametrize("kind", FINES)
def test_exact_moments_are_those_of_a_loop_over_fine_steps(kind):
    windows = ragged()
    coarse = torch.randn(4, 2, windows.coarse.num_steps + 1, 1, dtype=torch.float64)
    laws = ExactReEntry().gaps(FINES[kind], coarse, windows, 2)
    assert laws.diagonal == (kind == "diagonal")
    laws = laws.dense()
    for series in (0, 1):
        for gap in range(windows.num_gaps + 1):
            expected = by_loop(FINES[kind], coarse[3, series], windows, series, gap)
            for ours, theirs in zip((laws.matrix, laws.offset, laws.covariance), expected, strict=True):
                torch.testing.assert_close(ours[gap, 3, series], theirs, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_moments_reach_the_coarse_path_and_parameters():
    windows = ragged()
    coarse = torch.randn(2, windows.coarse.num_steps + 1, 1, dtype=torch.float64, requires_grad=True)

    def moments(path):
        laws = ExactReEntry().gaps(FINES["matrix"], path, windows, 2)
        return laws.matrix, laws.offset, laws.covariance

    assert torch.autograd.gradcheck(moments, coarse, fast_mode=True)


@pytest.mark.parametrize(
    ("drift", "diffusion", "match"),
    [
        (lambda t, b, a: b - b**3, diagonal_noise, "drift is not linear in the fine state"),
        (lambda t, b, a: a * b.abs(), diagonal_noise, "drift is not linear in the fine state"),
        (diagonal, lambda t, b, a: 1 + b**2, "diffusion depends on the fine state"),
    ],
)
def test_exact_re_entry_refuses_dynamics_that_it_is_not_valid_for(drift, diffusion, match):
    windows = ragged()
    with pytest.raises(ValueError, match=f"{match}.*Use BurnIn"):
        ExactReEntry().gaps(
            FineSDE(drift, diffusion), torch.ones(2, windows.coarse.num_steps + 1, 1).double(), windows, 2
        )


def test_float32_moments_are_close_to_float64():
    coarse = torch.randn(2, ragged().coarse.num_steps + 1, 1, dtype=torch.float64)
    double = ExactReEntry().gaps(FINES["matrix"], coarse, ragged(), 2)
    single = ExactReEntry().gaps(FINES["matrix"], coarse.float(), ragged(torch.float32), 2)
    assert single.covariance.dtype == torch.float32
    torch.testing.assert_close(single.covariance.double(), double.covariance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(single.offset.double(), double.offset, rtol=1e-4, atol=1e-5)


class Entry(nn.Module):
    def __init__(self, width=1):
        super().__init__()
        self.linear = nn.Linear(width, 2).double()

    def forward(self, a):
        return dist.Normal(self.linear(a), 0.5).to_event(1)


def test_burn_in_enters_by_its_law_at_the_coarse_state_of_the_start():
    windows = ragged()
    coarse = torch.randn(2, windows.coarse.num_steps + 1, 1, dtype=torch.float64)
    entry = Entry()
    laws = BurnIn(entry).gaps(FINES["diagonal"], coarse, windows, 2)
    assert not laws.matrix.any()
    for series in (0, 1):
        for gap in range(windows.num_gaps + 1):
            expected = entry.linear(coarse[series, windows.gap_ends[series, gap]])
            torch.testing.assert_close(laws.offset[gap, series], expected)
    torch.testing.assert_close(laws.covariance, torch.full_like(laws.covariance, 0.25))


def test_history_shows_the_coarse_states_before_the_start():
    windows = ragged()
    coarse = torch.arange(2.0 * (windows.coarse.num_steps + 1)).double().reshape(2, -1, 1)
    states = BurnIn(Entry(3), history=3).coarse_states(coarse, windows)
    for series in (0, 1):
        for gap in range(windows.num_gaps + 1):
            end = int(windows.gap_ends[series, gap])
            expected = [coarse[series, max(0, end - back), 0].item() for back in (2, 1, 0)]
            assert states[gap, series].tolist() == expected


def test_amortised_parameters_are_constants_of_a_bound_and_learn_from_the_loss():
    windows = ragged()
    coarse = torch.randn(2, windows.coarse.num_steps + 1, 1, dtype=torch.float64, requires_grad=True)
    reentry = AmortisedReEntry(Entry())
    laws = reentry.gaps(FINES["diagonal"], coarse, windows, 2)
    laws.offset.sum().backward()
    assert coarse.grad.abs().sum() > 0
    assert reentry.module.linear.weight.grad is None
    states = reentry.coarse_states(coarse, windows)
    valid = torch.ones(states.shape[:-1], dtype=torch.bool)
    valid[0] = False
    loss = reentry.loss(states, torch.zeros(*states.shape[:-1], 2).double(), valid)
    expected = -reentry.module(states[1:]).log_prob(torch.zeros(2).double()).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert reentry.module.linear.weight.grad.abs().sum() > 0


def test_moments_of_gaussians():
    factor = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    mean, covariance, flat = gaussian_moments("entry", dist.MultivariateNormal(torch.ones(2), scale_tril=factor), 2)
    torch.testing.assert_close(covariance, factor @ factor.mT)
    assert not flat
    mean, variance, flat = gaussian_moments("entry", dist.Normal(torch.ones(2), 3.0).to_event(1), 2)
    assert flat
    assert variance.tolist() == [9.0, 9.0]
    assert mean.tolist() == [1.0, 1.0]


def test_wrong_entries_are_named():
    with pytest.raises(TypeError, match="`entry` must be a function"):
        BurnIn(3.0)
    with pytest.raises(ValueError, match="`history` must be an integer >= 1"):
        BurnIn(Entry(), history=0)
    with pytest.raises(TypeError, match="`entry` must be a module"):
        AmortisedReEntry(lambda a: a)
    with pytest.raises(ValueError, match="`entry` must be a Gaussian"):
        gaussian_moments("entry", dist.Laplace(torch.zeros(2), 1.0).to_event(1), 2)
    with pytest.raises(ValueError, match=r"`entry` must have event shape \(2,\)"):
        gaussian_moments("entry", dist.Normal(torch.zeros(3), 1.0).to_event(1), 2)


def test_repr_names_the_law():
    assert repr(ExactReEntry()) == "ExactReEntry()"
    assert repr(BurnIn(len, history=2)).startswith("BurnIn(<built-in")
