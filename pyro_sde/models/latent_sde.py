r"""The latent SDE: prior, posterior, decoder and likelihood in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ..data.series import TimeSeries
from ..guides.posterior_sde import PosteriorSDE
from ..infer.fit import FitOptions, FitResult
from ..infer.streams import seeded
from ..nn.base import check_observations, check_positive
from ..ops._grid_times import check_max_step
from ..ops.grid import TimeGrid
from ..sde.base import SDE
from .alignment import Data, as_series, query_times
from .evaluation import Evaluation, evaluate, evidence_bound, log_likelihood
from .initial import InitialNormal
from .likelihoods import LaplaceLikelihood, Likelihood, NormalLikelihood, make_likelihood
from .parts import Architecture, Parts, check_parts
from .prediction import PathSamples, observe, posterior_states, prior_states
from .predictor import PathPredictor
from .training import fit_series, split_off, warn_unless_standardised

__all__ = ["LatentSDE"]


class LatentSDE(PathPredictor, PyroModule):
    r"""Latent SDE: a series is a noisy view of a path that follows a learned SDE.

    .. math::
        z_0 \sim N(m, s^2), \qquad dz = f(z)\,dt + \sigma\,dW, \qquad y_i \sim p(y \mid \mathrm{decoder}(z_{t_i}))

    The guide is a `PosteriorSDE`. `model` and `guide` are plain Pyro functions with one path site "z" and one
    observed site "y" in the plate "series", so `pyro.infer.SVI`, `RenyiELBO`, `Predictive` and handlers apply; `fit`,
    `posterior`, `forecast`, `impute` and the other methods are sugar. Times may be irregular, differ between series,
    and have gaps; entries that are not observed have no influence. Every part is an ordinary module, kept as the
    attribute `prior`, `initial`, `posterior_sde`, `decoder` or `likelihood`, and may be replaced.

    Prepare the data: values of each channel with mean 0 and deviation 1 (`TimeSeries.standardise`; counts and classes
    stay as they are), and time in a unit in which the series changes noticeably over one unit. Networks start with
    small last layers, so that paths start tame. Cost of a step: one run of the encoder over the observations, then K
    sequential solver steps for all series at once.

    Args:
        state_dim: number D of state dimensions.
        value_dim: number O of observed channels.
        likelihood: "normal", "laplace", "bernoulli", "poisson", or a `Likelihood` such as `CategoricalLikelihood`.
        prior: SDE of the path; a `NeuralSDE` if None.
        posterior_sde: guide; a `GRUEncoder` and a `ControlNet` if None.
        decoder: maps states ``(..., D)`` to ``(..., likelihood.output_dim)``; an `MLP` if None.
        max_step: largest solver step, in the unit of the times; one step per gap between times if None.
        architecture: sizes of the default parts.

    Shape:
        grid: N observation times, batch ``()`` or ``(B,)`` · values, mask: ``(B, N, O)`` · z: ``(B, K + 1, D)``.

    Raises:
        ValueError: if a size is not positive or the parts do not fit together.
        TypeError: if a part is of a wrong kind.

    References:
        Li, Wong, Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328,
        section 5.

    Example:
        >>> from pyro_sde.data import synthetic
        >>> series = synthetic.ornstein_uhlenbeck(seed=0, num_series=8, num_times=10)
        >>> latent = LatentSDE(state_dim=2, value_dim=1, max_step=0.5)
        >>> result = latent.fit(series, steps=3, options=FitOptions(progress=False))
        >>> latent.forecast(series, torch.linspace(10.0, 12.0, 5), num_samples=7).y.shape
        torch.Size([7, 8, 5, 1])
    """

    def __init__(
        self,
        state_dim: int,
        value_dim: int,
        *,
        likelihood: str | Likelihood = "normal",
        prior: SDE | None = None,
        posterior_sde: PosteriorSDE | None = None,
        decoder: Callable[[Tensor], Tensor] | None = None,
        max_step: float | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        check_positive("state_dim", state_dim)  # before a part draws its weights
        check_parts(prior, decoder, architecture)
        check_max_step(max_step)
        super().__init__("latent_sde")
        architecture = architecture or Architecture()
        self.max_step = max_step
        self.likelihood = make_likelihood(likelihood, value_dim)
        self.initial = InitialNormal(state_dim)
        self.prior = architecture.make_prior(state_dim) if prior is None else prior
        if posterior_sde is None:
            posterior_sde = architecture.make_posterior_sde(self.prior, self.initial, self.likelihood)
        self.posterior_sde = posterior_sde
        self.decoder = architecture.make_decoder(state_dim, self.likelihood) if decoder is None else decoder

    # ------------------------------------------------------------------------------------------------- model and guide
    @pyro_method
    def model(self, grid: TimeGrid, values: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Pyro model of a batch of series.

        Args:
            grid: solver grid whose observation times are those of `values`.
            values: observations ``(B, N, O)``; anything, also NaN, where they are not observed. Sampled if None.
            mask: True = observed, ``(B, N, O)`` or ``(B, N)``; everything at valid times if None.

        Returns:
            Observations ``(B, N, O)``, with 0 where not observed.

        Raises:
            ValueError: if shapes or dtypes do not fit, or an observed value is not finite; if the parameter store holds
                the parameters of another `LatentSDE`.
        """
        self._check_store()
        observed = grid.mask.unsqueeze(-1)
        if values is not None:
            values, observed = self._observations(grid, values, mask)
        size = grid.batch_shape.numel() if values is None else len(values)
        with pyro.plate("series", size, dim=-1):
            z = pyro.sample("z", self.parts.prior_law(grid))
            law = self.likelihood(self.decoder(grid.observed(z)))
            return pyro.sample("y", law.mask(observed).to_event(2), obs=values)

    @pyro_method
    def guide(self, grid: TimeGrid, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pyro guide of a batch of series, with the arguments of `model`; returns the path ``(B, K + 1, D)``."""
        self._check_store()
        values, observed = self._observations(grid, values, mask)
        with pyro.plate("series", len(values), dim=-1):
            return pyro.sample("z", self.parts.posterior_law(grid, values, observed))

    # -------------------------------------------------------------------------------------------------------- training
    def fit(
        self,
        data: Data,
        *,
        steps: int = 1000,
        batch_size: int = 64,
        learning_rate: float = 1e-2,
        validation: float | Data = 0.0,
        seed: int = 0,
        options: FitOptions | None = None,
    ) -> FitResult:
        """Train all parts on a set of series, by `pyro_sde.infer.fit`.

        Losses are negative evidence bounds in nats per observed value. Pyro's parameter store is not touched.

        Args:
            data: a `TimeSeries`, or tensors (times, values) with NaN for what is missing, or (times, values, mask).
            steps: number of training steps.
            batch_size: series per step.
            learning_rate: of Adam: the largest, at the first step or at the end of a warm-up.
            validation: share of the series to keep back, ``0 <= validation < 1``, or other data. If there is any, the
                parameters of the lowest validation loss are kept.
            seed: same seed, same result; also chooses the series kept back.
            options: the finer settings: KL warm-up, gradient clipping, early stopping, checkpoints, progress bar.

        Returns:
            Losses, validation losses and what the run did.

        Raises:
            TypeError: if `data` is of another kind.
            ValueError: if an argument is out of range, or training fails (the message names the step).
        """
        series, held_back = as_series(data, self._like), None
        if not isinstance(validation, float | int):
            held_back = as_series(validation, self._like)
        elif validation:
            series, held_back = split_off(series, validation, seed)
        if isinstance(self.likelihood, LaplaceLikelihood | NormalLikelihood):
            warn_unless_standardised(series)
        return fit_series(
            (self.model, self.guide),
            series,
            held_back,
            self.max_step,
            batch_size=batch_size,
            seed=seed,
            options=options,
            steps=steps,
            learning_rate=learning_rate,
        )

    # ------------------------------------------------------------------------------------------------------ prediction
    def posterior(
        self, data: Data, times: Tensor | None = None, *, num_samples: int = 100, seed: int | None = None
    ) -> PathSamples:
        """Paths given series, at any times from the start of each series on.

        The paths live on a solver grid that contains these times, so nothing is interpolated. Up to the last
        observation this is `smooth`, beyond it `forecast`.

        Args:
            data: B series, as in `fit`.
            times: ``(Q,)`` or ``(B, Q)``, any order, repeats allowed; the times of the data if None.
            num_samples: number of draws.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            Times ``(B, Q)``, states ``(S, B, Q, D)``, their decoded means and new observations ``(S, B, Q, O)``.

        Raises:
            ValueError: if a time lies before the first one of its series, where the model says nothing.
        """
        series = self.record(data)
        queries = series.times if times is None else query_times(times, self._like, len(series))
        return self._query(series, queries, num_samples, seed)

    def record(self, data: Data) -> TimeSeries:
        """The data as a record in the dtype and on the device of the model."""
        return as_series(data, self._like)

    def draw(self, series: TimeSeries, queries: Tensor, num_samples: int) -> PathSamples:
        """Paths at queries ``(B, Q)``: the posterior SDE up to the last observation, then the prior dynamics.

        A `GRUEncoder` marks the steps after the last observation by a context of zeros, but what a control network
        makes of such a context is left to chance; with no observation ahead the exact posterior is the prior dynamics.
        """
        with pyro.get_param_store().scope():
            return observe(self.parts, queries, posterior_states(self.parts, series, queries, num_samples))

    def sample_prior(
        self, times: Tensor, *, num_samples: int = 100, start: float | None = None, seed: int | None = None
    ) -> PathSamples:
        """Paths of the model without data.

        Args:
            times: ``(Q,)`` or ``(B, Q)``, any order, repeats allowed.
            num_samples: number of draws.
            start: time at which the law of the first state holds, not after any of `times`; the earliest of them if
                None.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            As `posterior`, with batch ``()`` for times ``(Q,)``.

        Raises:
            ValueError: if a time is not finite or lies before `start`.
        """
        queries = query_times(times, self._like)
        with _sampling(seed):
            return observe(self.parts, queries, prior_states(self.parts, queries, start, num_samples))

    # ------------------------------------------------------------------------------------------------------ evaluation
    def log_likelihood(
        self, data: Data, targets: Data | None = None, *, num_samples: int = 100, seed: int | None = None
    ) -> Tensor:
        """Log-density of every observation of `targets` under each of S posterior paths given `data`.

        The log of the mean of its exponential over S is the predictive log-density of an observation.

        Args:
            data: B series that are conditioned on.
            targets: observations to predict, of the same B series, at any times from their start on; `data` if None,
                which rewards overfitting.
            num_samples: number S of draws.
            seed: same seed, same draws; torch's global state if None.

        Returns:
            ``(S, B, N, O)`` in nats, NaN where `targets` has no observation.

        Raises:
            ValueError: if `targets` has another number of series, or a time before the first one of its series.
        """
        series = as_series(data, self._like)
        with _sampling(seed):
            return log_likelihood(self.parts, series, self._targets(series, targets), num_samples)

    def evaluate(
        self, data: Data, targets: Data | None = None, *, num_samples: int = 100, seed: int | None = None
    ) -> Evaluation:
        """Scores of predictions of `targets` given `data`, and the evidence bound of `data`.

        Arguments and errors are those of `log_likelihood`.
        """
        series = as_series(data, self._like)
        with _sampling(seed):
            return evaluate(self.parts, series, self._targets(series, targets), num_samples)

    def evidence_bound(self, data: Data, *, num_samples: int = 100, seed: int | None = None) -> Tensor:
        r"""Lower bound on the log evidence of every series, :math:`E \log \frac1S \sum_s p(y, z_s) / q(z_s)`.

        The bound tightens with S; S = 1 is the evidence lower bound that training maximises. Arguments as in
        `posterior`.

        Returns:
            ``(B,)`` in nats.

        References:
            Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, arXiv 1509.00519, eq. (8).
        """
        series = as_series(data, self._like)
        with _sampling(seed):
            return evidence_bound(self.parts, series, num_samples)

    # ---------------------------------------------------------------------------------------------------------- inside
    @property
    def parts(self) -> Parts:
        """The parts as they are now."""
        return Parts(self.prior, self.initial, self.posterior_sde, self.decoder, self.likelihood, self.max_step)

    @property
    def _like(self) -> Tensor:
        """Some parameter, for dtype and device."""
        return next(self.parameters())

    def _observations(self, grid: TimeGrid, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values with 0 where not observed, and the mask, both ``(B, N, O)``."""
        values, observed, _ = check_observations(grid, values, mask, self._like, self.likelihood.value_dim)
        if values.dim() != 3:
            msg = (
                f"`values` must have shape (B, N, O), one row of the plate per series; received {tuple(values.shape)}."
            )
            raise ValueError(msg)
        return values, observed

    def _targets(self, series: TimeSeries, targets: Data | None) -> TimeSeries:
        return series if targets is None else as_series(targets, self._like)

    def _check_store(self) -> None:
        """Pyro would use the parameters of another module of the same name for training, and not say so."""
        store = {name.replace("$$$", "."): value for name, value in pyro.get_param_store().named_parameters()}
        for name, parameter in self.named_parameters():
            stored = store.get(f"{self._pyro_name}.{name}", parameter)
            if stored is not parameter:
                msg = (
                    f"the parameter store holds '{self._pyro_name}.{name}' of another LatentSDE, so this one would not "
                    "be trained. Call pyro.clear_param_store() before, or keep each in a store of its own: "
                    "with pyro.get_param_store().scope(): ..."
                )
                raise ValueError(msg)


@contextmanager
def _sampling(seed: int | None) -> Iterator[None]:
    """No gradients, a random stream of its own, and no trace in the parameter store."""
    with torch.no_grad(), seeded(seed, "sampling"), pyro.get_param_store().scope():
        yield
