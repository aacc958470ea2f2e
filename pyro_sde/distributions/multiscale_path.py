r"""The law of fine variables given a coarse path, simulated near the observations only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from ..ops.layout import time_first
from ..ops.windows import Windows, gather_rows
from ..sde.base import SDE, ControlledSDE
from ..sde.noise import DiagonalNoise
from ..sde.two_scale import FineSDE
from ..solvers.execution import Execution
from ..solvers.noise import GivenNoise
from ._coefficient_checks import check_kind
from ._multiscale_checks import check_inputs, check_types, on_rows
from ._multiscale_levels import LevelsAbove, gaussian_moments
from ._multiscale_moments import GapLaws, Level
from ._multiscale_parallel import gaps_forget, simulate_apart
from ._multiscale_report import SkipReport, contraction_rate
from ._multiscale_sde import WindowControl, WindowSDE, coarse_rows
from .base import PathDistribution, check_initial
from .multiscale_kernels import AmortisedReEntry, BurnIn, ExactReEntry, ReEntry
from .sde_path import SDEPath

__all__ = ["MultiScalePath"]


class MultiScalePath(SDEPath):
    r"""Law of a fine path given a coarse one, inside windows around the observations.

    .. math:: db = f_b(a, b)\,dt + \sigma_b(a, b)\,dW' \text{ inside the windows}, \qquad
        b(s_j) \sim \pi(\cdot \mid b(e_{j-1}), a) \text{ behind a gap}

    The coarse path is a sample site of its own, usually a `SDEPath` on its own coarser grid, and this law is the second
    factor of the joint one::

        model:  a = pyro.sample("a", SDEPath(scales.coarse, a0, grid))
                b = pyro.sample("b", MultiScalePath(scales.fine, b0, a, windows))
                pyro.sample("y", dist.Normal(windows.observed(b), s).to_event(2), obs=y)
        guide:  a = pyro.sample("a", SDEPath(scales.coarse.controlled(u_a), q_a0, grid, inputs=context))
                b = pyro.sample("b", MultiScalePath(scales.fine.controlled(u_b), b0, a, windows, inputs=context))

    Outside its windows the guide is the prior given `a`: nothing is simulated there, and the divergence is exactly 0.
    The value is a plain tensor of the states on the rows of the windows, so every engine of Pyro applies; two sites,
    not one, because coarse and fine states live on different grids and because the coarse site may be auxiliary, in the
    guide only. Cost: fine steps inside windows and closed moments over gaps, instead of fine steps everywhere.

    A fine step sees coarse state and time at the start of its coarse step. Coefficients execute no Pyro statements.

    A third level c is given both slower ones, on windows inside those of b, and so on; `scales` is then nested::

        middle = MultiScalePath(scales.coarse.fine, b0, a, windows)
        b = pyro.sample("b", middle)
        inner = Windows.within(windows, before=0.1, after=0.0, fine_steps=10)
        c = pyro.sample("c", MultiScalePath(scales.fine, c0, middle.beside(b), inner))

    Windows that do not depend on each other, because the re-entry forgets (to round-off, if it is exact), are simulated
    side by side: as many sequential steps as the longest one has.

    Args:
        fine: `FineSDE`, or ``fine.controlled(control)`` in a guide, with ``control(t, b, a)`` or, with `inputs`,
            ``control(t, b, a, inputs)``. The control acts on fine steps inside windows.
        initial: law of the fine state at the start of the grid, event shape ``(D,)``; Gaussian unless every first
            window begins there. In a guide it may differ from that of the model.
        coarse: the coarse path, ``(*batch, K + 1, D_a)`` on ``windows.coarse``; of several levels, from `beside`.
        windows: where the fine path lives.
        reentry: law of the fine state behind a gap, the same in model and guide; `ExactReEntry` if None.
        inputs: ``(*batch, K, C)``, one row per step of the slowest grid, for the control.
        execution: as for `SDEPath`.
        validate_args: as for every torch distribution.

    Shape:
        batch shape: that of `initial`, `coarse`, `windows`, `inputs` and captured tensors, broadcast together.
        event shape: ``(R, D)``; ``windows.observed(value)`` are the states at the observations.

    Raises:
        TypeError: if `fine`, `windows`, `reentry` have other types.
        ValueError: if shapes do not fit, or the re-entry law is not valid for the dynamics.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.1 (moments over gaps).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_sde import TimeGrid
        >>> from pyro_sde.ops.windows import Windows
        >>> grid = TimeGrid(torch.tensor([0.0, 5.0]), max_step=0.1)
        >>> windows = Windows.around(grid, before=0.5, after=0.0, fine_steps=10)
        >>> fine = FineSDE(lambda t, b, a: 8 * (a - b), lambda t, b, a: 0.6 * torch.ones_like(b))
        >>> start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> MultiScalePath(fine, start, torch.zeros(51, 1), windows).sample().shape
        torch.Size([52, 1])
    """

    def __init__(
        self,
        fine: FineSDE | ControlledSDE,
        initial: Distribution,
        coarse: Tensor | LevelsAbove,
        windows: Windows,
        *,
        reentry: ReEntry | None = None,
        inputs: Tensor | None = None,
        execution: Execution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        reentry = ExactReEntry() if reentry is None else reentry
        prior = _prior_of(fine)
        check_types(windows, reentry)
        check_initial(initial)
        base, (states, windows, above) = windows, on_rows(coarse, windows)
        check_inputs(inputs, windows, controlled=isinstance(fine, ControlledSDE))
        dim = initial.event_shape[0]
        first, gaps = initial, None
        if bool(windows.real_gaps.any()):
            laws = reentry.gaps(prior, states, windows, dim, above)
            gaps = laws[1:] if windows.num_gaps else None
            first = _behind_first_gap(initial, laws[0], windows, dim)
        rows = coarse_rows(states, windows)
        sde = WindowSDE(prior, rows, windows, gaps, dim)
        inside = sde if gaps is None or not gaps.diagonal else WindowSDE(prior, rows, windows, None, dim)
        control_rows = None
        if isinstance(fine, ControlledSDE):
            columns = None if sde.noise is fine.noise or isinstance(sde.noise, DiagonalNoise) else dim
            control = WindowControl(fine.control, states.shape[-1], columns)
            sde, inside = ControlledSDE(sde, control), ControlledSDE(inside, control)
            control_rows = _control_rows(rows, windows, inputs)
        self._given = (fine, initial, reentry, inputs, coarse)
        self._coarse, self._above, self._base = states, above, base
        self.windows = windows
        self._apart = gaps if gaps_forget(gaps, windows) else None  # laws of gaps between windows that are independent
        self._inside = (inside, inside.bind_rows(control_rows))
        self._twin: int | None = None  # of a law that simulates gaps: width of the noise of the one that does not
        super().__init__(
            sde, first, windows.grid, inputs=control_rows, execution=execution, validate_args=validate_args
        )

    @property
    def reentry(self) -> ReEntry:
        """Law of the fine state behind a gap."""
        return self._given[2]

    @property
    def num_gaps(self) -> int:
        """Number of gaps that `full` can simulate, of the series with most."""
        return self._base.num_fills

    def beside(self, value: Tensor) -> LevelsAbove:
        """Coarse states of a level below this one: those of all levels down to this one, at its rows.

        Args:
            value: the value of the site of this law, ``(..., R, D)``.

        Raises:
            ValueError: if `value` has another number of rows.
        """
        windows = self._base.full(self._base.fills_of(value))
        slower = gather_rows(self._coarse, windows.coarse_rows)
        batch = torch.broadcast_shapes(slower.shape[:-2], value.shape[:-2])
        states = torch.cat([part.expand(*batch, *part.shape[-2:]) for part in (slower, value)], -1)
        level = Level(_prior_of(self._given[0]), windows.fine_steps, value.shape[-1])
        return LevelsAbove(states, windows, self._base, level, self._given[1], self._coarse, self._above)

    def full(self, fills: int | None = None) -> MultiScalePath:
        """The law that simulates gaps instead: same dynamics and windows of the guide, more fine steps.

        Simulated over all gaps its bound has no bias. Its value has more rows, which ``windows.observed`` takes as
        well. Sampled from the same state of the random generator, both laws have the same noise inside windows, and any
        two of them in the gaps that they simulate, and leave it in the same state.

        Args:
            fills: number of gaps that are simulated, the first ones of every series; all of them if None.

        Raises:
            ValueError: if the levels above have not simulated them.
        """
        fine, initial, reentry, inputs, coarse = self._given
        windows = self._base.full(fills)
        if self._above is not None and self._above.windows is not windows.outer:
            msg = (
                "the gaps of the levels above must be simulated first, this one is given their states there. Sample "
                "the level above from its own `full`, or all of them inside SimulatedGaps."
            )
            raise ValueError(msg)
        law = MultiScalePath(
            fine,
            initial,
            coarse,
            windows,
            reentry=reentry,
            inputs=inputs,
            execution=self.execution,
            validate_args=self._validate_args,
        )
        law._base, law._twin = self._base, self._noise_width
        law.site_name = self.site_name
        return law if law.batch_shape == self.batch_shape else law.expand(self.batch_shape)  # type: ignore[return-value]

    def simulate(self, initial: Tensor) -> Tensor:
        """Path from given first states ``(..., D)`` with fresh noise."""
        execution = self.execution or Execution.current()
        if execution.memory == "low":
            return super().simulate(initial)
        batch, like = initial.shape[:-1], {"dtype": initial.dtype, "device": initial.device}
        normal = torch.randn((self._base.grid.num_steps, *batch, self._noise_width), **like)
        seed = int(torch.randint(2**62, ()))  # drawn by both kinds of law, so that what follows is the same
        if self._twin is not None:
            normal = self._noise_in_gaps(seed, normal)
        if self._apart is None or execution.forward != "loop":
            return self._integrate(initial, GivenNoise(normal), execution)
        check_kind("initial", initial, self.grid)
        with self.effects:
            path = simulate_apart(*self._inside, self.windows, self._apart, initial, normal, execution)
        self._check_finite(path)
        return path

    @property
    def _noise_width(self) -> int:
        return self._twin or self._brownian_dim

    def _noise_in_gaps(self, seed: int, normal: Tensor) -> Tensor:
        """Noise of this law, which simulates gaps: the given one of the windows, and from a seed that of the gaps.

        Gaps are simulated from the first on, so their rows are the same whatever number of them is.
        """
        motions, batch = self._brownian_dim, normal.shape[1:-1]
        generator = torch.Generator(normal.device).manual_seed(seed)
        size = (self._base.most_rows, *batch, motions)  # a draw of another size would have other values
        whole = torch.randn(size, generator=generator, dtype=normal.dtype, device=normal.device)
        place = time_first(self._base.rows_in(self.windows).unsqueeze(-1), len(batch)).expand(-1, *batch, motions)
        rows = self.windows.grid.num_steps + 1  # one to spare, for steps that are none of this law
        return whole[:rows].scatter(0, place, normal[..., :motions])[:-1]

    def check_same_grid(self, other: PathDistribution) -> None:
        """Windows must agree, and the re-entry laws, whose terms must cancel."""
        super().check_same_grid(other)
        if not isinstance(other, MultiScalePath):
            return
        ours, theirs = self.reentry, other.reentry
        same = type(ours) is type(theirs)
        if same and isinstance(ours, BurnIn) and isinstance(theirs, BurnIn):
            same = ours.entry is theirs.entry and ours.history == theirs.history
        if not same:
            msg = (
                f"guide and model have different re-entry laws: guide {ours!r}, model {theirs!r}. Build one re-entry "
                "object and pass it to both, so that its terms cancel."
            )
            raise ValueError(msg)

    def entry_loss(self) -> Tensor:
        r""":math:`-E \log q(b(s) \mid a)` for the entry law of an `AmortisedReEntry`, from one full simulation.

        Minimise it by an optimiser of its own, now and then during training; paths get no gradient.

        Raises:
            ValueError: if the re-entry law is not learned, or there is no gap.
        """
        reentry, base = self.reentry, self._base
        valid = base.real_gaps
        if not isinstance(reentry, AmortisedReEntry) or not bool(valid.any()):
            msg = f"`entry_loss` needs windows with gaps and an AmortisedReEntry, received {base!r} and {reentry!r}."
            raise ValueError(msg)
        whole = self if self._twin is not None else self.full()
        path = whole.sample()
        windows = base.over(base.num_fills)
        behind = time_first(gather_rows(path, windows.places(windows.gap_ends)), path.dim() - 2)
        states = reentry.coarse_states(self._coarse, windows)
        states = states.reshape(len(states), *[1] * (behind.dim() - states.dim()), *states.shape[1:])
        valid = valid.movedim(-1, 0)
        valid = valid.reshape(len(valid), *[1] * (behind.dim() - 1 - valid.dim()), *valid.shape[1:])
        return reentry.loss(states, behind, valid)

    def report(self) -> SkipReport:
        """What the windows save and how biased the re-entry is, from one pair of coupled simulations."""
        fine, initial, reentry, _, coarse = self._given
        with torch.no_grad():
            law = MultiScalePath(_prior_of(fine), initial, coarse, self._base, reentry=reentry)
            rate = contraction_rate(law, law.windows)
        return SkipReport.of(self._base, rate, unbiased=reentry.unbiased)


def _behind_first_gap(initial: Distribution, law: GapLaws, windows: Windows, dim: int) -> Distribution:
    """Law of the first state on the rows, from that at the start of the grid."""
    late = windows.real_gaps[..., 0]
    if not bool(late.any()):
        return initial
    mean, covariance, diagonal = gaussian_moments("initial", initial, dim)
    start = GapLaws(torch.zeros_like(covariance), mean, covariance, diagonal)
    if not (diagonal and law.diagonal):
        start, law = start.dense(), law.dense()
    behind = start.then(law)
    late = late.unsqueeze(-1)
    mean = torch.where(late, behind.offset, start.offset)
    covariance = torch.where(late if law.diagonal else late.unsqueeze(-1), behind.covariance, start.covariance)
    if law.diagonal:
        return Independent(Normal(mean, covariance.sqrt()), 1)
    return MultivariateNormal(mean, covariance)


def _control_rows(rows: Tensor, windows: Windows, inputs: Tensor | None) -> Tensor:
    """Rows ``[a, active, inputs]`` of a control."""
    parts = [rows[..., :-1], windows.active.unsqueeze(-1).to(rows)]
    if inputs is not None:
        parts.append(gather_rows(inputs, windows.slowest_index))
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)


def _prior_of(fine: SDE) -> FineSDE:
    """The fine SDE without its control.

    Raises:
        TypeError: if there is none.
    """
    prior = fine.base if isinstance(fine, ControlledSDE) else fine
    if not isinstance(prior, FineSDE):
        msg = (
            f"`fine` must be a FineSDE or its controlled form, received {type(prior).__name__}. Write FineSDE(drift, "
            "diffusion) with drift(t, b, a); of a TwoScaleSDE take `.fine`."
        )
        raise TypeError(msg)
    return prior
