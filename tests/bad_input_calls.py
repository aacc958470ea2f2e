"""Calls of the public functions up to the laws that work; `test_bad_input.py` spoils them, argument by argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch

from pyro_sde import distributions as laws
from pyro_sde import nn, ops, sde, solvers

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


def regime_step(z, t, inputs):
    return dist.Normal(torch.stack([z, 0.5 * z], -2), 1.0).to_event(1)


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
RECORD = ops.brownian_increments(torch.ones(4, 1), torch.zeros(4, 2))
ENCODER = nn.GRUEncoder(1, 2, 3, hidden=4)

CALLS = [
    # --- ops
    row(
        ops.TimeGrid,
        "start:negative times:whole times:list end:negative",
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
    row(
        ops.sample_posterior,
        "standard_normal:nan standard_normal:axes standard_normal:complex",
        chain=chain(),
        observations=observations(),
        standard_normal=torch.zeros(4, 2),
    ),
    row(
        ops.LinearObservations,
        "matrix:long offset:number",
        values=torch.zeros(4, 1),
        matrix=torch.ones(1, 2),
        variance=torch.ones(4, 1),
        offset=torch.zeros(4, 1),
        mask=torch.ones(4).bool(),
    ),
    row(
        ops.HiddenMarkov,
        log_initial=torch.tensor([0.5, 0.5]).log(),
        log_transition=torch.full((2, 2), 0.5).log(),
        log_likelihood=torch.zeros(3, 2),
        mask=torch.ones(3).bool(),
        lengths=torch.tensor(3),
        form="loop",
    ),
    row(ops.normal_width, brownian_dim=3, levy="area"),
    # what is not finite goes through: no step of a loop waits for the device
    row(
        ops.brownian_increments,
        "dt:nan standard_normal:nan standard_normal:long",
        dt=torch.ones(3, 1),
        standard_normal=torch.zeros(3, 2),
        levy="none",
    ),
    row(ops.combine, first=RECORD, second=RECORD),
    row(ops.coarsen, "dim:negative", increments=RECORD, n=2, dim=0),
    row(
        ops.brownian_bridge,
        "queries:axes",
        times=TIMES,
        values=torch.zeros(3, 2),
        queries=torch.tensor([0.2, 0.7]),
        standard_normal=torch.zeros(2, 2),
    ),
    row(
        ops.VirtualBrownianTree,
        "start:negative seed:negative",
        start=0.0,
        end=1.0,
        brownian_dim=2,
        seed=0,
        depth=9,
        levy="none",
    ),
    row(
        ops.discretise,
        "diffusion:empty diffusion:long dt:empty dt:long dt:axes",
        matrix=-EYE,
        diffusion=EYE,
        dt=torch.tensor([0.1, 0.2]),
        offset=torch.zeros(2),
    ),
    row(ops.stationary_moments, "diffusion:empty diffusion:long", matrix=-EYE, diffusion=EYE, offset=torch.zeros(2)),
    row(
        ops.linear_recurrence,
        "matrices:nan matrices:complex offsets:nan offsets:complex initial:nan initial:complex",
        matrices=EYE.expand(3, 2, 2),
        offsets=torch.zeros(3, 2),
        initial=torch.zeros(2),
        form="loop",
    ),
    row(
        ops.diagonal_recurrence,
        "factors:nan factors:complex offsets:nan offsets:complex initial:nan initial:complex",
        factors=torch.ones(3, 2),
        offsets=torch.zeros(3, 2),
        initial=torch.zeros(2),
        form="loop",
    ),
    row(ops.resample, "log_weights:long log_weights:axes", log_weights=torch.zeros(4), method="systematic", num=3),
    row(ops.effective_sample_size, "log_weights:long log_weights:axes", log_weights=torch.zeros(4)),
    row(ops.psd_factor, "matrix:nan matrix:axes", matrix=EYE),
    row(ops.time_first, "tensor:*", tensor=torch.zeros(3, 2), rank=0),
    row(ops.Windows, "starts:list ends:list", grid=grid(), starts=torch.zeros(1), ends=torch.ones(1), fine_steps=2),
    method("Windows.around", lambda: ops.Windows, "around", grid=grid(), before=0.5, after=0.5, fine_steps=2),
    row(
        ops.Pilot,
        "seed:negative",
        rtol=1e-3,
        atol=1e-2,
        max_step=0.5,
        min_step=0.01,
        paths=4,
        seed=0,
        max_steps=100,
    ),
    # --- nn
    row(nn.MLP, in_dim=2, out_dim=2, hidden=(4,), activation="silu"),
    row(nn.ControlNet, state_dim=2, context_dim=3, hidden=(4,), activation="silu"),
    row(
        nn.DriftNet,
        state_dim=2,
        hidden=(4,),
        input_dim=1,
        time_features=1,
        period=2.0,
        activation="silu",
        last_scale=0.1,
        reversion=0.5,
    ),
    row(
        nn.DiagonalDiffusion,
        "constant:*",
        state_dim=2,
        hidden=3,
        floor=1e-3,
        initial=0.5,
        activation="silu",
        constant=False,
    ),
    row(nn.GatedTransition, state_dim=2, hidden=3, input_dim=1),
    row(nn.PackedRNN, in_dim=2, hidden=3, activation="relu"),
    row(
        nn.FreeMarginals,
        "knots:complex",
        knots=TIMES,
        state_dim=2,
        value_dim=1,
        batch_shape=(2,),
        covariance="full",
        initial_scale=0.5,
        sigmoids=2,
    ),
    *(
        row(call, value_dim=1, state_dim=2, hidden=4, covariance="full", head=(4,), time_scale=1.0, sigmoids=2)
        for call in (nn.GRUMarginals, nn.LocalMarginals)
    ),
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
    row(
        laws.SwitchingPath,
        transition=regime_step,
        initial=initial(),
        regimes=laws.RegimeChain(torch.tensor([0.5, 0.5]).log(), torch.full((2, 2), 0.5).log()),
        length=4,
        lengths=torch.tensor(4),
    ),
    row(
        laws.OrnsteinUhlenbeckPath,
        "loc:number times:axes",
        theta=torch.ones(2),
        sigma=torch.ones(2),
        loc=torch.zeros(2),
        times=TIMES,
    ),
    row(
        laws.RecurrentPath,
        "start:nan inputs:nan",  # what they do to the laws is seen there
        memory=torch.nn.GRU(5, 4, batch_first=True),
        head=lambda memory, context: dist.Normal(memory[..., :2], 1.0).to_event(1),
        start=torch.zeros(4),
        inputs=torch.zeros(2, 5, 3),
        lengths=torch.tensor([5, 4]),
    ),
    row(
        sde.SecondOrderSDE,
        acceleration=torch.nn.Linear(2, 1),
        dim=1,
        stiffness=0.5,
        noise_scale=0.1,
        batch_shape=(2,),
    ),
    row(
        solvers.reflect,
        "z:nan z:empty z:number z:axes z:long lower:negative lower:nan lower:infinite upper:*",
        z=torch.zeros(3),
        lower=-1.0,
        upper=1.0,
    ),
    row(solvers.ReversibleHeunAdjoint, block=8),
]
