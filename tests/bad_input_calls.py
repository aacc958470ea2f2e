"""Calls of the public functions that work: the table that `test_bad_input.py` spoils, argument by argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch

from pyro_sde import distributions as laws
from pyro_sde import infer, models, nn, ops, sde, solvers
from pyro_sde.diagnostics import crps_samples, energy_score, rmse

TIMES = torch.tensor([0.0, 0.5, 1.0])
EYE = torch.eye(2)


class Row(NamedTuple):
    """A call that works, and the odd values, as ``argument:kind``, that it is right to take or that are not tried."""

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Any]
    takes: frozenset[str]


def grid():
    return ops.TimeGrid(TIMES, max_step=0.25)


def initial():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def process():
    return sde.OrnsteinUhlenbeck(torch.tensor([1.0, 2.0]), 0.5)


def path(cls=laws.SDEPath):
    return cls(process(), initial(), grid())


def transition(z, t, inputs):
    return dist.Normal(0.9 * z, 0.5).to_event(1)


def chain():
    return ops.GaussianChain(torch.zeros(2), EYE, 0.9 * EYE.expand(3, 2, 2), 0.1 * EYE.expand(3, 2, 2))


def observations():
    return ops.LinearObservations(torch.zeros(4, 1), torch.ones(1, 2), variance=torch.ones(1))


def ssm():
    return laws.LinearGaussianSSM(process(), torch.ones(1, 2), torch.ones(1), grid(), initial=initial())


def row(call, takes="", *, name=None, **arguments):
    return Row(name or call.__name__, call, arguments, frozenset(takes.split()))


def method(name, make, attribute, takes="", **arguments):
    return row(lambda **given: getattr(make(), attribute)(**given), takes, name=name, **arguments)


# a coefficient may have either sign; a length-scale may not
SIGNED = [
    (sde.BrownianMotion, {"scale": 1.0, "velocity": 0.0}),
    (sde.OrnsteinUhlenbeck, {"rate": 1.0, "scale": 1.0, "loc": 0.0}),
    (sde.GeometricBrownianMotion, {"growth": 1.0, "volatility": 0.5}),
    (sde.DoubleWell, {"strength": 4.0, "scale": 1.0, "well": 1.0}),
    (sde.CoxIngersollRoss, {"rate": 1.0, "mean": 1.0, "scale": 0.5}),
    (sde.LogisticGrowth, {"rate": 1.0, "capacity": 1.0, "scale": 0.5}),
    (sde.WrightFisher, {"gain": 1.0, "loss": 1.0, "selection": 0.1, "scale": 0.5}),
]
POSITIVE = [
    (sde.Matern12, {"lengthscale": 1.0, "variance": 1.0}),
    (sde.Matern32, {"lengthscale": 1.0, "variance": 1.0}),
    (sde.Matern52, {"lengthscale": 1.0, "variance": 1.0}),
    (sde.Cosine, {"period": 1.0, "variance": 1.0}),
    (sde.DampedOscillator, {"frequency": 1.0, "damping": 0.1, "variance": 1.0}),
    (sde.QuasiPeriodic, {"period": 1.0, "lengthscale": 1.0, "variance": 1.0}),
]
ENCODER = nn.GRUEncoder(1, 2, 3, hidden=4)
SAMPLES, TARGET, SEEN = torch.zeros(4, 3, 2), torch.zeros(3, 2), torch.ones(3, 2).bool()

ROWS = [
    # --- ops
    row(
        ops.TimeGrid,
        "start:negative times:whole end:negative",
        times=TIMES,
        max_step=0.25,
        mask=torch.ones(3).bool(),
        start=0.0,
        end=1.0,
    ),
    method("TimeGrid.observed", grid, "observed", "path:*", path=torch.zeros(5, 2)),
    method("TimeGrid.refine", grid, "refine", n=2),
    row(
        ops.GaussianChain,
        initial_mean=torch.zeros(2),
        initial_covariance=EYE,
        transition=0.9 * EYE.expand(3, 2, 2),
        noise=0.1 * EYE.expand(3, 2, 2),
        offset=torch.zeros(3, 2),
    ),
    *(
        row(call, "chain:* observations:*", chain=chain(), observations=observations(), method="auto")
        for call in (ops.kalman_filter, ops.log_evidence, ops.smooth, ops.posterior_chain)
    ),
    # --- nn
    row(nn.MLP, "out_dim:* activation:*", in_dim=2, out_dim=2, hidden=(4,), activation="silu"),
    row(nn.ControlNet, "activation:*", state_dim=2, context_dim=3, hidden=(4,), activation="silu"),
    row(nn.DriftNet, "activation:*", state_dim=2, hidden=(4,), activation="silu"),
    row(nn.GRUEncoder, value_dim=1, state_dim=2, context_dim=3, hidden=4, layers=1),
    row(
        ENCODER.forward,
        name="GRUEncoder.forward",
        grid=grid(),
        values=torch.zeros(3, 1),
        mask=torch.ones(3, 1).bool(),
    ),
    # --- sde
    *(row(cls, " ".join(f"{name}:negative" for name in values), **values) for cls, values in SIGNED),
    *(row(cls, **values) for cls, values in POSITIVE),
    row(sde.IntegratedWiener, order=1, scale=1.0),
    row(sde.Periodic, period=1.0, lengthscale=1.0, variance=1.0, harmonics=3),
    row(sde.Arcsine, "low:negative", low=0.0, high=1.0),
    row(sde.Interval, "low:negative", low=0.0, high=1.0),
    row(sde.NeuralSDE, state_dim=2, hidden=(4,)),
    row(sde.SDE, drift=lambda t, z: -z, diffusion=lambda t, z: 1.0, noise_type="diagonal", sde_type="ito"),
    row(sde.UnderdampedLangevin, "friction:negative scale:negative", force=torch.neg, friction=1.0, scale=1.0),
    row(sde.Sum, terms=[sde.Matern12(), sde.Matern32()]),
    row(sde.Product, factors=[sde.Matern12(), sde.Matern32()]),
    row(sde.ConstrainedSDE, source=process(), domain=sde.Interval()),
    row(sde.ControlledSDE, base=process(), control=lambda t, z: z),
    # --- solvers
    row(solvers.DriftImplicitEuler, theta=1.0),
    row(solvers.Execution, backward="auto", forward="loop", memory="low", block=8),
    row(solvers.Milstein, interpretation="ito"),
    row(solvers.ReflectedEuler, "lower:negative upper:infinite", lower=0.0, upper=1.0),
    row(solvers.TorchsdeAdjoint, method="euler", adjoint_method="midpoint", rtol=1e-4, atol=1e-4),
    row(
        solvers.sample_adaptive,
        "times:nan",
        sde=process(),
        initial=torch.zeros(4, 2),
        times=TIMES,
        method="srk",
        rtol=1e-2,
        atol=1e-2,
        max_step=0.5,
    ),
    # --- distributions
    row(laws.SDEPath, sde=process(), initial=initial(), grid=grid(), inputs=None, solver=None, execution=None),
    row(laws.CarriedPath, sde=process(), initial=initial(), grid=grid(), inputs=None),
    row(laws.GaussianPath, sde=process(), initial=initial(), grid=grid(), discretisation="exact"),
    row(laws.ConstrainedPath, base=path(), domain=sde.Positive()),
    row(laws.GaussianState, mean=torch.zeros(2), covariance=EYE),
    row(
        laws.LinearGaussianSSM,
        "noise:nan noise:number",  # the noise is checked where it is used
        process=process(),
        observation_matrix=torch.ones(1, 2),
        noise=torch.ones(1),
        grid=grid(),
        initial=initial(),
        mask=torch.ones(3, 1).bool(),
    ),
    row(
        laws.MarkovPath,
        "inputs:nan inputs:long inputs:empty",
        transition=transition,
        initial=initial(),
        length=5,
        inputs=torch.zeros(4, 1),
        lengths=torch.tensor(5),
    ),
    row(laws.RegimeChain, log_initial=torch.tensor([0.5, 0.5]).log(), log_transition=torch.full((2, 2), 0.5).log()),
    row(laws.path_kl, q=path(), p=path(), path=torch.zeros(5, 2)),
    method("SDEPath.log_prob", path, "log_prob", value=torch.zeros(5, 2)),
    method("GaussianPath.log_prob", lambda: path(laws.GaussianPath), "log_prob", value=torch.zeros(5, 2)),
    method(
        "MarkovPath.log_prob",
        lambda: laws.MarkovPath(transition, initial(), 5),
        "log_prob",
        value=torch.zeros(5, 2),
    ),
    method("LinearGaussianSSM.smooth", ssm, "smooth", y=torch.zeros(3, 1)),
    # --- infer
    row(infer.PathELBO, kl="stl", kl_weight=1.0, num_particles=2),
    row(infer.JitPathELBO, kl="stl", kl_weight=1.0),
    row(infer.FilteringELBO, num_particles=4, resampling="systematic", threshold=0.5, gradient="pathwise"),
    row(infer.RandomisedCorrection, elbo=infer.PathELBO(), probability=0.5),
    row(
        infer.particle_filter,
        "path:* log_likelihood:*",
        path=path(),
        log_likelihood=lambda z, *rest: -z.square().sum(-1),
        num_particles=4,
        resampling="systematic",
        threshold=0.5,
        gradient="pathwise",
        keep="last",
    ),
    # --- diagnostics
    row(crps_samples, "samples:complex target:complex", samples=SAMPLES, target=TARGET, mask=SEEN),
    row(energy_score, "samples:complex target:complex", samples=SAMPLES, target=TARGET, mask=SEEN),
    row(rmse, "prediction:complex target:complex", prediction=TARGET, target=TARGET, mask=SEEN),
    # --- models
    row(models.InitialNormal, state_dim=2, scale=1.0),
    row(models.NormalLikelihood, value_dim=2, initial_scale=0.3, floor=0.01),
    row(models.CategoricalLikelihood, value_dim=1, num_classes=3),
    row(models.LatentSDE, state_dim=2, value_dim=1, likelihood="normal"),
    row(models.RollingOrigin, train_window=3, test_window=2, stride=1, min_train_window=1, min_test_window=1),
]
