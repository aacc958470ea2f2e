"""What is said about bad input to what makes laws and guides: calls, the kind of error, and a part of its text."""

from __future__ import annotations

import math

import torch

from pyro_sde import distributions as laws
from pyro_sde import guides, nn, ops, priors, sde, solvers
from pyro_sde.ops import TimeGrid
from tests.bad_input_calls import EYE, RECORD, TIMES, chain, grid, initial, observations, path, process, ssm, transition
from tests.bad_input_tools import TARGET

NAN = math.nan
EMPTY = torch.zeros(0, 3, 2)


def diagonal(value):
    return torch.full((2,), value)


MESSAGES = [
    (
        lambda: sde.OrnsteinUhlenbeck("fast", 1.0),
        TypeError,
        "`rate` must be a number or a tensor of real .* received str",
    ),
    (
        lambda: sde.CoxIngersollRoss(1.0, EYE.to(torch.complex64), 1.0),
        TypeError,
        "`mean` must .*received torch.complex64",
    ),
    (lambda: sde.DoubleWell(well=math.inf), ValueError, "`well` must be finite, received inf"),
    (lambda: sde.OrnsteinUhlenbeck(1.0, 1.0, state_dim=1.5), ValueError, "with `state_dim` 1.5"),
    (lambda: sde.Periodic(1.0, harmonics=True), ValueError, "`harmonics` must be >= 1, received True"),
    (lambda: sde.UnderdampedLangevin(3.0), TypeError, "`force` must be a function of the positions, received float"),
    (lambda: sde.ControlledSDE(3, torch.neg), TypeError, "`base` must be an SDE, received int"),
    (lambda: TimeGrid([True, False]), TypeError, "`times` must be real numbers, received torch.bool"),
    (lambda: TimeGrid("today"), TypeError, "`times` must be a tensor or numbers, received str"),
    (
        lambda: TimeGrid(TIMES, max_step="short"),
        ValueError,
        "`max_step` must be a positive finite number, received 'short'",
    ),
    (lambda: TimeGrid(TIMES, max_step=TIMES + 1), ValueError, "`max_step` must be a positive finite number"),
    (lambda: TimeGrid(TIMES, mask="all"), TypeError, "`mask` must be a tensor or numbers, received str"),
    (lambda: TimeGrid(TIMES, end="late"), TypeError, "`end` must be a tensor or numbers, received str"),
    (
        lambda: grid().expand((-1,)),
        ValueError,
        r"`batch_shape` \(-1,\) is not one that the batch shape \(\) broadcasts",
    ),
    (
        lambda: grid().expand((2,)).expand((3,)),
        ValueError,
        r"`batch_shape` \(3,\) is not one that .* \(2,\) broadcasts",
    ),
    (lambda: grid().expand((2,)).expand(()), ValueError, r"`batch_shape` \(\) is not one"),
    (lambda: grid().observed("path"), ValueError, r"`path` must have shape \(..., 5, D\) on this grid, received str"),
    (lambda: path().check_path("z", "up"), TypeError, "`z` must be a tensor, received str"),
    (lambda: path().log_prob(torch.zeros(4, 2)), ValueError, r"`value` must be a path of shape \(..., 5, 2\)"),
    (lambda: path().log_prob(torch.zeros(5, 2).long()), TypeError, "`value` must be a path of floating-point numbers"),
    (lambda: path().log_prob(torch.zeros(5, 2).bool()), TypeError, "floating-point numbers, received torch.bool"),
    (lambda: path().expand((-1,)), ValueError, r"cannot expand a path law of batch shape \(\) to \(-1,\)"),
    (lambda: ssm().expand((-1,)), ValueError, r"cannot expand a law of batch shape \(\) to \(-1,\)"),
    (lambda: laws.path_kl(path().mask(False), path(), torch.zeros(5, 2)), TypeError, "`q` must be a path law, without"),
    (lambda: laws.path_kl(path(), None, torch.zeros(5, 2)), TypeError, "`p` must be a path law.* received NoneType"),
    (lambda: laws.path_kl(path(), path(), torch.full((5, 2), NAN)), ValueError, "`path` must be finite, received nan"),
    (lambda: laws.SDEPath(process(), initial(), grid(), inputs=[1.0]), TypeError, "`inputs` must be a tensor .*list"),
    (lambda: laws.MarkovPath(transition, initial(), 3, inputs=[1.0]), TypeError, "`inputs` must be a tensor .*list"),
    (lambda: laws.RegimeChain([0.0], EYE), ValueError, r"`log_initial` must have shape \(\*batch, K\), received list"),
    (lambda: laws.RegimeChain(EYE[0].long(), EYE), TypeError, "`log_initial` must be of floating-point numbers"),
    (lambda: laws.GaussianState([0.0], EYE), TypeError, "`mean` must be a floating-point tensor, received list"),
    (lambda: laws.GaussianState(diagonal(0.0), NAN * EYE), ValueError, "`covariance` must be finite, received nan"),
    (
        lambda: laws.LinearGaussianSSM(process(), NAN * EYE, 1.0, grid(), initial=initial()),
        ValueError,
        "`observation_matrix` must be finite",
    ),
    (
        lambda: laws.LinearGaussianSSM(process(), EYE, EYE[0].to(torch.complex64), grid(), initial=initial()),
        TypeError,
        "`noise` must be of real numbers, received torch.complex64",
    ),
    (
        lambda: ssm().log_prob(torch.zeros(3, 1).long()),
        TypeError,
        "`y` must be a floating-point tensor, received torch.int64",
    ),
    (
        lambda: solvers.reflect(torch.ones(2).long(), 0.0),
        TypeError,
        "`z` must be a floating-point tensor, .*torch.int64",
    ),
    (lambda: solvers.reflect("up", 0.0), TypeError, "`z` must be a floating-point tensor, received str"),
    (lambda: solvers.TorchsdeAdjoint(adjoint_method="magic"), ValueError, "`adjoint_method` must be one of .*'magic'"),
    (lambda: solvers.TorchsdeAdjoint(atol=math.inf), ValueError, "`atol` must be a number > 0, received inf"),
    (lambda: solvers.sample_adaptive(3, EYE, TIMES), TypeError, "`sde` must be an SDE, received int"),
    (
        lambda: solvers.sample_adaptive(process(), EYE, [0.0]),
        TypeError,
        "`times` must be a floating-point tensor, .*list",
    ),
    (
        lambda: solvers.sample_adaptive(process(), EYE * NAN, TIMES),
        ValueError,
        "`initial` must be finite states of shape",
    ),
    (
        lambda: solvers.sample_adaptive(process(), torch.ones(4, 3), TIMES),
        ValueError,
        r"`initial` of shape \(4, 3\) does not fit the coefficients of `sde`",
    ),
    # --- ops
    (lambda: ops.combine(RECORD, 3), TypeError, "`second` must be a BrownianIncrements, received int"),
    (lambda: ops.coarsen(RECORD, 2, dim="time"), ValueError, "`dim` must be an axis of W .* received 'time'"),
    (lambda: ops.normal_width(NAN, "none"), ValueError, "`brownian_dim` must be a positive integer, received nan"),
    (
        lambda: ops.brownian_increments(1.0, torch.zeros(3)),
        TypeError,
        "`dt` must be a floating-point tensor, received float",
    ),
    (
        lambda: ops.brownian_bridge(torch.tensor([0, 4]), torch.zeros(2, 1), TIMES, torch.zeros(3, 1)),
        TypeError,
        "`times` must be a floating-point tensor, received torch.int64",
    ),
    (
        lambda: ops.brownian_bridge(TIMES, NAN * torch.zeros(3, 1), TIMES, torch.zeros(3, 1)),
        ValueError,
        "`values` must be finite at time index 0",
    ),
    (
        lambda: ops.brownian_bridge(TIMES, torch.zeros(3, 1), TIMES.to(torch.complex64), torch.zeros(3, 1)),
        TypeError,
        "`queries` must be a tensor of real numbers, received torch.complex64",
    ),
    (lambda: ops.VirtualBrownianTree("now", 1.0, 1, 0), TypeError, "`start` must be a number, received str"),
    (lambda: ops.VirtualBrownianTree(0.0, 1.0, 1, 0).path("now"), TypeError, "`times` must be a tensor or numbers"),
    (lambda: ops.VirtualBrownianTree(0.0, 1.0, 1, 0)(0.0, "now"), TypeError, "`t` must be a tensor or numbers"),
    (
        lambda: ops.VirtualBrownianTree(0.0, 1.0, 1, 0, dtype="double"),
        ValueError,
        "`dtype` must be a real floating point type, received double",
    ),
    (lambda: ops.discretise(EYE, EYE, 0.1), TypeError, "`dt` must be a tensor of real numbers, received float"),
    (lambda: ops.discretise([[0.0]], EYE, TIMES), TypeError, "`matrix` must be a tensor of real numbers, .*list"),
    (lambda: ops.stationary_moments(-EYE, NAN * EYE), ValueError, "`diffusion` must be finite"),
    (lambda: ops.stationary_moments(NAN * EYE, EYE), ValueError, "`matrix` must be finite"),
    (lambda: ops.stationary_moments(-EYE, EYE, "none"), TypeError, "`offset` must be a tensor of real numbers, .*str"),
    (
        lambda: ops.linear_recurrence(EYE.expand(3, 2, 2), 0.0, TIMES),
        TypeError,
        "`offsets` must be a tensor, received float",
    ),
    (lambda: ops.diagonal_recurrence(0.5, EYE, TIMES), TypeError, "`factors` must be a tensor, received float"),
    (lambda: ops.resample(torch.zeros(3).long()), TypeError, "`log_weights` must be a floating-point tensor, .*int64"),
    (
        lambda: ops.effective_sample_size(torch.tensor([0.0, NAN])),
        ValueError,
        "finite sum of weights; the weights are NaN",
    ),
    (lambda: ops.effective_sample_size(torch.full((2,), -math.inf)), ValueError, "the weights are all zero"),
    (lambda: ops.psd_factor([[1.0]]), TypeError, "`matrix` must be a floating-point tensor, received list"),
    (lambda: ops.psd_factor(torch.ones(2, 3)), ValueError, r"`matrix` must have shape \(..., D, D\), .* \(2, 3\)"),
    (lambda: ops.time_first(torch.zeros(3), 0), ValueError, r"`tensor` must have shape \(\*batch, T, C\), .* \(3,\)"),
    (lambda: ops.time_first(TARGET, -1), ValueError, "`rank` must be a whole number >= 0, received -1"),
    (lambda: ops.kalman_filter(3, observations()), TypeError, "`chain` must be a GaussianChain, received int"),
    (lambda: ops.smooth(chain(), EYE), TypeError, "`observations` must be a LinearObservations, received Tensor"),
    (
        lambda: ops.HiddenMarkov(torch.zeros(1), torch.zeros(1, 1), torch.zeros(3, 1), lengths=torch.tensor(2.0)),
        TypeError,
        "`lengths` must be whole numbers, received torch.float32",
    ),
    (
        lambda: ops.HiddenMarkov(torch.zeros(1), torch.zeros(1, 1), torch.zeros(3, 1)).log_joint([0, 0, 0]),
        TypeError,
        "`regimes` must be a tensor, received list",
    ),
    (lambda: ops.Windows(TIMES, TIMES, TIMES), TypeError, "`grid` must be a TimeGrid, received Tensor"),
    (lambda: ops.Windows(grid(), "now", TIMES), TypeError, "`starts` must be a tensor or numbers, received str"),
    (
        lambda: ops.Windows.around(grid(), before="long", after=0.0),
        ValueError,
        "`before` must be a finite time >= 0, received 'long'",
    ),
    (
        lambda: ops.Windows.within(grid(), before=0.1, after=0.0, fine_steps=2),
        TypeError,
        "`outer` must be Windows, received TimeGrid",
    ),
    (lambda: ops.Pilot(seed=NAN), ValueError, r"`seed` must be an integer from -2\*\*63 to .*, received nan"),
    (lambda: ops.Pilot(rtol="small"), ValueError, "`rtol` and `atol` must be finite, .* received rtol='small'"),
    (lambda: ops.Pilot(max_step="long"), ValueError, "`max_step` must be a positive finite number, received 'long'"),
    (lambda: ops.Pilot(paths=True), ValueError, "`paths` must be a positive integer, received True"),
    # --- sde
    (
        lambda: laws.SDEPath(
            sde.SDE(lambda t, z: -z, lambda t, z: z.new_zeros(*z.shape, 0), noise_type="general"), initial(), grid()
        ),
        ValueError,
        "diffusion` returned shape .* there is no Brownian motion: give it a column at least",
    ),
    (lambda: sde.Interval(low="a"), TypeError, "`low` must be a number or a tensor of real numbers, received str"),
    (lambda: sde.Sum(3), TypeError, "`terms` must be a sequence of linear SDEs, received int"),
    # --- nn
    (lambda: nn.MLP(2, 2, 4), TypeError, r"`hidden` must be a sequence of sizes, such as \(64, 64\), received 4"),
    (lambda: nn.MLP(2, 2, (), activation=["silu"]), ValueError, r"`activation` must be one of .* received \['silu'\]"),
    (lambda: nn.DriftNet(2, reversion="fast"), ValueError, "`reversion` must be a finite rate >= 0, received 'fast'"),
    (
        lambda: nn.DriftNet(2, time_features=1, period="day"),
        ValueError,
        "`period` must be a positive finite number .* period='day'",
    ),
    (lambda: nn.FreeMarginals([0.0, 1.0], 2), TypeError, "`knots` must be a floating-point tensor, received list"),
    (
        lambda: nn.FreeMarginals(TIMES, 2, batch_shape=(-1,)),
        ValueError,
        "`batch_shape` must be an integer >= 1, received -1",
    ),
    (
        lambda: nn.GRUEncoder(1, 2, 3, hidden=4)(grid(), [0.0]),
        TypeError,
        "`values` must be a tensor, received list",
    ),
    # --- priors and guides
    (lambda: priors.MarkovRegimes(2, stay="yes"), TypeError, "`stay` must be a number, received str"),
    (
        lambda: priors.SwitchingLinearPrior(2, 2),
        TypeError,
        "`regimes` must be MarkovRegimes or StickBreakingRegimes, received int",
    ),
    (
        lambda: guides.CombinerGuide(1, 2, hidden=4)(priors.DeepMarkovPrior(2, hidden=4)(3), [0.0]),
        TypeError,
        "`values` must be a floating-point tensor, received list",
    ),
    (
        lambda: guides.CombinerGuide(1, 2, hidden=4)(
            priors.DeepMarkovPrior(2, hidden=4)(3), torch.zeros(1, 3, 1), torch.ones(1, 3)
        ),
        ValueError,
        r"`mask` must be a bool tensor \(True = observed\) of shape \(1, 3, 1\) or \(1, 3\), received torch.float32",
    ),
    # --- laws
    (
        lambda: laws.OrnsteinUhlenbeckPath(torch.ones(2), torch.ones(3), torch.zeros(2), TIMES),
        ValueError,
        r"`theta`, `sigma` and `loc` must broadcast to \(\*batch, D\), received \(2,\), \(3,\), \(2,\)",
    ),
    (
        lambda: laws.OrnsteinUhlenbeckPath(*torch.ones(3), TIMES),
        ValueError,
        r"`theta`, `sigma` and `loc` must have shape \(\*batch, D\), received \(\)",
    ),
    (
        lambda: laws.RecurrentPath(3, torch.neg, TIMES, torch.zeros(2, 5, 3)),
        TypeError,
        "`memory` must be a torch.nn.GRU and `head` a function of its states, received int and",
    ),
    (
        lambda: laws.RecurrentPath(torch.nn.GRU(5, 4), torch.neg, TIMES, torch.zeros(2, 5, 3)),
        ValueError,
        r"`start` must have shape \(4,\), a state of the memory; got \(3,\)",
    ),
    (lambda: sde.SecondOrderSDE(torch.neg, 1, batch_shape=2), TypeError, "`batch_shape` must be a sequence of sizes"),
]
