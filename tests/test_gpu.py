"""Nothing hard-codes a device: the main road runs on a GPU, where there is one."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI

from pyro_sde import GRUEncoder, NeuralSDE, PathELBO, PosteriorSDE, SDEPath, TimeGrid
from pyro_sde.sde import UnderdampedLangevin

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("kl", ["stl", "closed", "full"])
@pytest.mark.parametrize("backward", ["loop", "parallel"])
def test_a_latent_sde_trains_on_the_device_of_its_grid(kl, backward):
    device = torch.device("cuda")
    times = torch.rand(4, 6, device=device).cumsum(-1)
    mask = torch.arange(6, device=device) < torch.tensor([[6], [3], [5], [1]], device=device)
    grid = TimeGrid(times, max_step=0.2, mask=mask)
    values = torch.randn(4, 6, 1, device=device)
    prior = NeuralSDE(1, (8,)).to(device)
    posterior = PosteriorSDE(GRUEncoder(1, 1, 5)).to(device)

    def model():
        pyro.module("prior", prior)
        with pyro.plate("series", 4, device=device):
            initial = dist.Normal(torch.zeros(1, device=device), 1.0).to_event(1)
            z = pyro.sample("z", SDEPath(prior, initial, grid))
            pyro.sample("y", dist.Normal(grid.observed(z), 0.3).mask(mask[..., None]).to_event(2), obs=values)

    def guide():
        pyro.module("posterior", posterior)
        with pyro.plate("series", 4, device=device):
            pyro.sample("z", posterior(prior, grid, values))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), PathELBO(kl))
    with pyro.settings.context(pyro_sde_backward=backward):
        assert all(math.isfinite(svi.step()) for _ in range(3))


def test_degenerate_noise_has_a_density_on_the_device():
    device = torch.device("cuda")
    grid = TimeGrid(torch.tensor([0.0, 1.0], device=device), max_step=0.1)
    initial = dist.Normal(torch.zeros(2, device=device), 1.0).to_event(1)
    law = SDEPath(UnderdampedLangevin(torch.neg, 0.5, 1.0), initial, grid)
    assert law.log_prob(law.sample((3,))).isfinite().all()
