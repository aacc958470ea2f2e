"""A linear-Gaussian model and guide with dense oracles: exact evidence, ELBO and marginals of the discretised model."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_sde import SDEPath, TimeGrid
from pyro_sde.sde import OrnsteinUhlenbeck

RATE, SCALE, NOISE = 0.8, 0.9, 0.3
TIMES = (0.5, 1.0, 1.2, 1.7)
VALUES = (0.6, -0.4, -0.1, 0.9)


class Affine(nn.Module):
    """Control u = a + b z with one row (a, b) per step, given as inputs."""

    def forward(self, t, z, rows):
        return rows[..., :1] + rows[..., 1:] * z


class LinearProblem:
    """OU prior from its stationary law, four observations, an affine control guide; everything Gaussian."""

    def __init__(self, max_step=0.1, noise=NOISE):
        self.grid = TimeGrid(torch.tensor(TIMES), max_step=max_step, start=0.0)
        self.values = torch.tensor(VALUES)
        self.noise = noise
        self.initial = dist.Normal(torch.zeros(1), SCALE / math.sqrt(2 * RATE)).to_event(1)
        steps = self.grid.num_steps
        generator = torch.Generator().manual_seed(0)
        self.rows = 0.3 * torch.randn(steps, 2, generator=generator)
        self.loc, self.scale = torch.tensor([0.1]), torch.tensor([0.5])

    def prior(self):
        return SDEPath(OrnsteinUhlenbeck(RATE, SCALE), self.initial, self.grid)

    def posterior(self, rows, loc, scale):
        initial = dist.Normal(loc, scale).to_event(1)
        return SDEPath(OrnsteinUhlenbeck(RATE, SCALE).controlled(Affine()), initial, self.grid, inputs=rows)

    def model(self):
        z = pyro.sample("z", self.prior())
        pyro.sample("y", dist.Normal(self.grid.observed(z)[..., 0], self.noise).to_event(1), obs=self.values)

    def guide(self):
        rows = pyro.param("rows", self.rows)
        loc = pyro.param("loc", self.loc)
        scale = pyro.param("scale", self.scale, constraint=dist.constraints.positive)
        pyro.sample("z", self.posterior(rows, loc, scale))

    # ------------------------------------------------------------ dense oracles
    def dense(self, rows=None, loc=None, scale=None):
        """Mean and covariance of the path: of the prior without arguments, of the guide with them."""
        h = self.grid.steps
        slope, shift = -RATE * torch.ones_like(h), torch.zeros_like(h)
        mean0, var0 = torch.zeros(()), torch.tensor(SCALE**2 / (2 * RATE))
        if rows is not None:
            slope, shift = slope + SCALE * rows[:, 1], shift + SCALE * rows[:, 0]
            mean0, var0 = loc[0], scale[0] ** 2
        size = len(h) + 1
        transfer = torch.eye(size)  # z = transfer @ (mean0 + noise0, shift h + noise)
        for k in range(size - 1):
            transfer[k + 1] = transfer[k + 1] + (1 + slope[k] * h[k]) * transfer[k]
        mean = transfer @ torch.cat([mean0[None], shift * h])
        covariance = transfer @ torch.diag(torch.cat([var0[None], SCALE**2 * h])) @ transfer.T
        return mean, covariance

    def exact_elbo(self, rows=None, loc=None, scale=None):
        rows, loc, scale = (d if v is None else v for d, v in ((self.rows, rows), (self.loc, loc), (self.scale, scale)))
        q = torch.distributions.MultivariateNormal(*self.dense(rows, loc, scale))
        p = torch.distributions.MultivariateNormal(*self.dense())
        index = self.grid.observed_index
        square = (self.values - q.mean[index]) ** 2 + q.variance[index]
        likelihood = -0.5 * (square / self.noise**2 + math.log(2 * math.pi * self.noise**2)).sum()
        return (likelihood - torch.distributions.kl_divergence(q, p)).item()

    def exact_evidence(self):
        mean, covariance = self.dense()
        index = self.grid.observed_index
        covariance = covariance[index][:, index] + self.noise**2 * torch.eye(len(index))
        return torch.distributions.MultivariateNormal(mean[index], covariance).log_prob(self.values).item()

    def best_control(self):
        """Optimal affine control, initial law and ELBO, by dynamic programming (LQG).

        With value function -L z^2 / 2 + e z + c at k + 1, maximising E[V(z + (f + s u) h + s sqrt(h) eps)] - u^2 h / 2
        gives L' = A^2 L / (1 + x), e' = A e / (1 + x), x = s^2 h L, as for the exact posterior; the constant differs
        from the evidence's by (x - log(1 + x)) / 2 per step, because the posterior's smaller variance is out of reach.
        """
        index = {int(i): v for i, v in zip(self.grid.observed_index, VALUES, strict=True)}
        steps = self.grid.steps.tolist()
        info, shift, gap = 0.0, 0.0, 0.0
        rows = torch.zeros(len(steps), 2)
        for k in range(len(steps), -1, -1):
            if k < len(steps):
                h, a = steps[k], 1 - RATE * steps[k]
                x = SCALE**2 * h * info
                gap += 0.5 * (x - math.log1p(x))
                rows[k] = torch.tensor([SCALE * shift / (1 + x), -SCALE * info * a / (1 + x)])
                info, shift = a * a * info / (1 + x), a * shift / (1 + x)
            if k in index:
                info, shift = info + 1 / self.noise**2, shift + index[k] / self.noise**2
        precision = 2 * RATE / SCALE**2 + info
        loc, scale = torch.tensor([shift / precision]), torch.tensor([precision**-0.5])
        return rows, loc, scale, self.exact_evidence() - gap
