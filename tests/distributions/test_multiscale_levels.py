"""More than two levels: a fine path below a fine path, with windows at every level."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.distributions.multiscale_kernels import BurnIn
from pyro_sde.distributions.multiscale_path import MultiScalePath
from pyro_sde.ops.windows import Windows
from pyro_sde.sde import OrnsteinUhlenbeck
from pyro_sde.sde.two_scale import FineSDE, TwoScaleSDE
from pyro_sde.testing.statistics import z_test
from tests.distributions.multiscale_problem import quadratic

SEEN = torch.tensor([1.2, 3.2, 5.0], dtype=torch.float64)
SLOW = OrnsteinUhlenbeck(0.5, 0.5)


def matrix_of(rows):
    return torch.tensor(rows, dtype=torch.float64)


def linear(own, above, noise, offset=0.3):
    """Fine level ``own @ x + above @ (states above) + offset sin(2 t)`` with a diagonal or matrix diffusion."""
    own, above, noise = matrix_of(own), matrix_of(above), matrix_of(noise)

    def drift(t, x, held):
        return x @ own.mT + held @ above.mT + offset * torch.sin(2 * t)

    def diffusion(t, x, held):
        scale = 1 + 0.2 * torch.sin(3 * t)  # not of the state: log densities stay quadratic
        return noise * (scale if noise.dim() == 1 else scale.unsqueeze(-1))

    return FineSDE(drift, diffusion, noise_type="diagonal" if noise.dim() == 1 else "general")


SCALAR = [
    linear([[-1.0]], [[1.0]], [0.5]),
    linear([[-3.0]], [[0.5, 2.0]], [0.7]),
    linear([[-2.0]], [[0.4, 0.2, 1.0]], [0.4]),
]
PAIRS = [
    linear([[-1.0, 0.3], [-0.2, -1.5]], [[1.0], [0.5]], [[0.5, 0.2, 0.0], [0.1, 0.6, 0.1]]),
    linear([[-3.0, 0.5], [0.0, -2.0]], [[0.5, 2.0, 0.0], [0.0, 0.3, 1.0]], [0.7, 0.5]),
]


def normal(width, loc=0.2, scale=0.8):
    return dist.Normal(torch.full((width,), loc, dtype=torch.float64), scale).to_event(1)


class Chain:
    """A coarse path and fine levels below it, each with its windows."""

    def __init__(self, fines, befores, steps=(2, 3, 2), seen=SEEN, reentry=None):
        self.grid = TimeGrid(seen, start=0.0, end=5.5, max_step=0.5)
        self.fines, self.reentry = fines, reentry
        self.dims = [2 if fine in PAIRS else 1 for fine in fines]
        self.windows = [Windows.around(self.grid, before=befores[0], after=0.0, fine_steps=steps[0])]
        for before, count in zip(befores[1 : len(fines)], steps[1:], strict=False):
            self.windows.append(Windows.within(self.windows[-1], before=before, after=0.0, fine_steps=count))

    def laws(self, a, values=None, controls=None, gaps=None):
        """Laws of the fine levels given their values, which are sampled where there are none."""
        states, laws, found = a, [], []
        for number, (fine, dim, windows) in enumerate(zip(self.fines, self.dims, self.windows, strict=False)):
            sde = fine if controls is None else fine.controlled(controls[number])
            law = MultiScalePath(sde, normal(dim, 0.2 + number), states, windows, reentry=self.reentry)
            value = values[number] if values is not None else None
            if value is None:
                value = (law if gaps is None else law.full(gaps)).rsample()
            laws.append(law)
            found.append(value)
            states = law.beside(value)
        return laws, found

    def sizes(self):
        return [len(self.grid.times)] + [
            (windows.grid.num_steps + 1) * dim for windows, dim in zip(self.windows, self.dims, strict=False)
        ]

    def log_joint(self, flat):
        a, *parts = flat.split(self.sizes(), -1)
        a = a.unsqueeze(-1)
        values = [part.unflatten(-1, (-1, dim)) for part, dim in zip(parts, self.dims, strict=True)]
        laws, _ = self.laws(a, values)
        seen = self.windows[-1].observed(values[-1])[..., :1]
        total = dist.Normal(torch.tensor([[0.5], [-0.4], [0.9]]).double(), 0.3).to_event(2).log_prob(seen)
        total = total + SDEPath(SLOW, normal(1), self.grid).log_prob(a)
        return total + sum(law.log_prob(value) for law, value in zip(laws, values, strict=True))

    def evidence(self):
        return float(quadratic(self.log_joint, sum(self.sizes())).log_integral())


EVERYTHING = (9.0, 9.0, 9.0)


@pytest.mark.parametrize("fines", [SCALAR[:2], PAIRS])
def test_three_levels_without_gaps_are_the_path_law_on_the_fine_grid(fines):
    """The states above and the time are held over a step of the slowest grid and of the middle one."""
    chain = Chain(fines, EVERYTHING, seen=torch.tensor([1.2, 5.5]).double())
    a = SDEPath(SLOW, normal(1), chain.grid).sample((3,))
    laws, (b, c) = chain.laws(a)
    fine = fines[1]

    held = torch.cat([a[..., :-1, :].repeat_interleave(2, -2), b[..., :-1, :]], -1)
    times = chain.grid.times[:-1].repeat_interleave(2).unsqueeze(-1).expand(3, -1, 1)
    rows = torch.cat([held, times], -1).repeat_interleave(3, -2)
    dense = SDEPath(
        FineSDE(
            lambda t, z, row: fine.drift(row[..., -1:], z, row[..., :-1]),
            lambda t, z, row: fine.diffusion(row[..., -1:], z, row[..., :-1]),
            noise_type=fine.noise_type,
        ).with_inputs(rows),
        normal(chain.dims[1], 1.2),
        chain.grid.refine(6),
    )
    torch.testing.assert_close(laws[1].log_prob(c), dense.log_prob(c), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("fines", "befores"),
    [
        (SCALAR[:2], (0.6, 0.2)),
        (SCALAR[:2], (9.0, 0.2)),
        (SCALAR[:2], (1.5, 0.5)),
        (PAIRS, (0.6, 0.2)),
        (SCALAR, (0.6, 0.3, 0.1)),
        (SCALAR, (1.5, 0.3, 0.1)),
    ],
)
def test_gaps_at_every_level_leave_the_evidence_as_it_is(fines, befores):
    skipped, whole = Chain(fines, befores), Chain(fines, EVERYTHING)
    assert skipped.windows[-1].num_gaps == 2
    assert sum(skipped.sizes()) < sum(whole.sizes())
    assert skipped.evidence() == pytest.approx(whole.evidence(), abs=1e-9)


def pull_to(level, motions=None):
    def control(t, x, held):
        u = 0.4 * torch.sin(x) + 0.2 * level * held[..., :1] - 0.1 * t
        return u if motions is None else torch.cat([u, u[..., :1]], -1)

    return control


CONTROLS = [pull_to(1.0), pull_to(-1.0), pull_to(0.5)]


def bound(chain, seed, count, gaps=None):
    """Log weights of a controlled guide, per series of independent coarse paths."""
    pyro.set_rng_seed(seed)
    a = SDEPath(SLOW, normal(1), chain.grid).sample((count,))
    controls = [pull_to(1.0, 3), CONTROLS[1]] if chain.fines is PAIRS else CONTROLS
    guide, values = chain.laws(a, controls=controls, gaps=gaps)
    model, _ = chain.laws(a, values)
    after = torch.rand(())
    if gaps is not None:
        guide, model = ([law.full(gaps) for law in laws] for laws in (guide, model))
    seen = chain.windows[-1].observed(values[-1])[..., :1]
    total = dist.Normal(torch.tensor([[0.5], [-0.4], [0.9]]).double(), 1.0).to_event(2).log_prob(seen)
    ratios = [p.log_prob(x) - q.log_prob(x) for p, q, x in zip(model, guide, values, strict=True)]
    return total + sum(ratios), after


@pytest.mark.parametrize(("fines", "befores"), [(SCALAR, (0.6, 0.3, 0.1)), (PAIRS, (0.6, 0.2))])
def test_skipped_bound_is_the_full_one_at_three_and_four_levels(fines, befores):
    """On common noise, also where only the first gaps are simulated."""
    chain = Chain(fines, befores)
    bounds = [bound(chain, 1, 3000, gaps) for gaps in (None, 1, 2, 9)]
    assert len({float(after) for _, after in bounds}) == 1
    skipped = bounds[0][0]
    for other, _ in bounds[1:]:
        z_test(skipped - other, 0.0).require(0.25)
        assert float((skipped - other).std()) < 0.9 * math.sqrt(2) * float(skipped.std())


def test_a_burn_in_at_two_levels_is_another_model():
    chain = Chain(
        SCALAR[:2], (0.6, 0.2), reentry=BurnIn(lambda states: dist.Normal(0 * states[..., :1] + 3.0, 0.3).to_event(1))
    )
    skipped, full = (bound(chain, 2, 500, gaps)[0] for gaps in (None, 9))
    assert z_test(skipped - full, 0.0).p_value < 1e-8


def test_marginals_behind_common_gaps_are_those_of_the_full_laws():
    chain = Chain(PAIRS, (0.6, 0.2))
    pyro.set_rng_seed(3)
    a = SDEPath(SLOW, normal(1), chain.grid).sample()
    a = a.expand(4000, *a.shape)
    seen = []
    for gaps in (None, 9):
        _, values = chain.laws(a, gaps=gaps)
        seen.append(torch.cat([w.observed(x) for w, x in zip(chain.windows, values, strict=True)], -1))
    for power in (1, 2):
        z_test(seen[0] ** power - seen[1] ** power, 0.0).require(0.4)
    pairs = [x[..., :1] * x[..., 1:] for x in seen]  # of the levels with each other
    z_test(pairs[0] - pairs[1], 0.0).require(0.4)


def test_series_with_windows_of_their_own_have_the_density_that_they_have_alone():
    rows = torch.tensor([[0.7, 3.2, 5.0], [0.0, 4.5, 4.5]], dtype=torch.float64)
    chain = Chain(SCALAR, (0.6, 0.3, 0.1), seen=rows)
    a = SDEPath(SLOW, normal(1), chain.grid).sample((3,))
    laws, values = chain.laws(a)
    for series in (0, 1):
        alone = Chain(SCALAR, (0.6, 0.3, 0.1), seen=rows[series][: 3 - series])
        own = [x[:, series, : w.grid.num_steps + 1] for x, w in zip(values, alone.windows, strict=True)]
        others, _ = alone.laws(a[:, series, : len(alone.grid.times)], own)
        for law, other, value in zip(laws, others, own, strict=True):
            torch.testing.assert_close(other.log_prob(value), law.log_prob(values[laws.index(law)])[:, series])
        chosen, expected = chain.windows[-1][series], alone.windows[-1]
        torch.testing.assert_close(chosen.grid.times, expected.grid.times)
        assert torch.equal(chosen.holes, expected.holes)
        assert torch.equal(chosen.outer.fine_places, expected.outer.fine_places)


def test_inputs_are_rows_of_the_slowest_grid():
    chain = Chain(SCALAR[:2], (0.6, 0.2))
    inputs = torch.arange(chain.grid.num_steps, dtype=torch.float64).unsqueeze(-1)
    seen = []

    def recording(t, x, held, row):
        seen.append((row, t))
        return 0 * x

    a = SDEPath(SLOW, normal(1), chain.grid).sample()
    (middle, _), (b, _) = chain.laws(a)
    inner = chain.windows[1]
    law = MultiScalePath(SCALAR[1].controlled(recording), normal(1), middle.beside(b), inner, inputs=inputs)
    law.kernels(law.sample())
    row, times = seen[-1]
    begins = chain.grid.times[row.squeeze(-1).long()]
    inside = inner.active
    assert bool((begins[inside] <= times.squeeze(-1)[inside] + 1e-12).all())
    assert bool((times.squeeze(-1)[inside] < begins[inside] + 0.5).all())


def test_float32_levels_are_close_to_float64():
    values = []
    for dtype in (torch.float64, torch.float32):
        chain = Chain(SCALAR[:2], (0.6, 0.2), seen=SEEN.to(dtype))
        a = torch.linspace(-1, 1, len(chain.grid.times), dtype=dtype).unsqueeze(-1)
        law = dist.Normal(torch.zeros(1, dtype=dtype), 1.0).to_event(1)
        fines = [FineSDE(lambda t, x, held: held[..., -1:] - x, lambda t, x, held: 0.5 * torch.ones_like(x))] * 2
        middle = MultiScalePath(fines[0], law, a, chain.windows[0])
        b = torch.linspace(0, 1, chain.windows[0].grid.num_steps + 1, dtype=dtype).unsqueeze(-1)
        fine = MultiScalePath(fines[1], law, middle.beside(b), chain.windows[1])
        c = torch.linspace(1, 0, chain.windows[1].grid.num_steps + 1, dtype=dtype).unsqueeze(-1)
        values.append(fine.log_prob(c))
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1].double(), values[0], rtol=1e-3, atol=1e-2)


def test_report_counts_the_steps_of_all_levels():
    chain = Chain(SCALAR[:2], (0.6, 0.2), reentry=BurnIn(lambda states: dist.Normal(states[..., :1], 0.3).to_event(1)))
    laws, _ = chain.laws(SDEPath(SLOW, normal(1), chain.grid).sample())
    report = laws[1].report()
    assert report.all_steps == chain.grid.num_steps * 6
    assert report.fine_steps == int(chain.windows[1].active.sum())
    assert report.rate == pytest.approx(-math.log(1 - 3.0 / 12) * 12, rel=0.05)  # of Euler steps of about 1 / 12
    assert 0.199 <= report.burn_in < 0.6


def test_levels_that_do_not_fit_are_named():
    chain = Chain(SCALAR[:2], (0.6, 0.2))
    a = SDEPath(SLOW, normal(1), chain.grid).sample()
    (middle, fine), (b, _) = chain.laws(a)
    outer, inner = chain.windows
    with pytest.raises(ValueError, match="`coarse` must be the states of all levels above.*middle.beside"):
        MultiScalePath(SCALAR[1], normal(1), torch.zeros(outer.grid.num_steps + 1, 2).double(), inner)
    with pytest.raises(ValueError, match="Windows.within.*the levels are in the wrong order"):
        MultiScalePath(SCALAR[1], normal(1), middle.beside(b), outer)
    with pytest.raises(ValueError, match="`path` must have shape"):
        middle.beside(b[1:])
    with pytest.raises(ValueError, match="levels above must be simulated first"):
        fine.full()


def test_exact_re_entry_needs_linear_levels_above_in_common_gaps_only():
    bent = FineSDE(lambda t, x, held: -x - x**3, lambda t, x, held: 0.5 * torch.ones_like(x))
    chain = Chain([bent, SCALAR[1]], (0.6, 0.2), reentry=None)
    a = SDEPath(SLOW, normal(1), chain.grid).sample()
    entry = BurnIn(lambda states: dist.Normal(0 * states[..., :1], 0.5).to_event(1))
    middle = MultiScalePath(bent, normal(1), a, chain.windows[0], reentry=entry)
    with pytest.raises(ValueError, match="not linear in the fine state"):
        MultiScalePath(SCALAR[1], normal(1), middle.beside(middle.sample()), chain.windows[1])
    whole = Chain([bent, SCALAR[1]], (9.0, 0.2))
    middle = MultiScalePath(bent, normal(1), a, whole.windows[0])
    law = MultiScalePath(SCALAR[1], normal(1), middle.beside(middle.sample()), whole.windows[1])
    assert torch.isfinite(law.log_prob(law.sample()))


def test_the_levels_of_a_nested_two_scale_sde_serve_the_laws():
    scales = TwoScaleSDE(TwoScaleSDE(SLOW, SCALAR[0], 1), SCALAR[1], 2)
    slow, middle, fast = scales.levels
    assert (slow, middle, fast) == (SLOW, SCALAR[0], SCALAR[1])
    z = torch.randn(4, 3, dtype=torch.float64)
    drift = scales.coefficients(torch.zeros(1).double(), z, (None,)).drift
    torch.testing.assert_close(drift[..., 2:], fast.drift(torch.zeros(1).double(), z[..., 2:], z[..., :2]))
    torch.testing.assert_close(drift[..., 1:2], middle.drift(torch.zeros(1).double(), z[..., 1:2], z[..., :1]))
