"""torchsde's latent SDE example in its authors' form: softplus networks, one small network per diffusion dimension.

The structure is that of the latent Lorenz example that torchsde publishes (Li et al. 2020, arXiv 2001.01328), written
anew: the context is concatenated to the state, and the diffusion calls a list of networks one after another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def perceptron(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width, following in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(width, following), nn.Softplus()]
    return layers[:-1]


class PublishedSDE(nn.Module):
    """Posterior and prior drift and diffusion as torchsde's example has them.

    `context` is looked up by time, ``(steps + 1, batch, C)``.
    """

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, dim: int, hidden: int, context: Tensor, times: Tensor) -> None:
        super().__init__()
        self.context, self.times = context, times
        self.posterior = nn.Sequential(*perceptron(dim + context.shape[-1], hidden, hidden, dim))
        self.prior = nn.Sequential(*perceptron(dim, hidden, hidden, dim))
        self.diffusions = nn.ModuleList(nn.Sequential(*perceptron(1, hidden, 1), nn.Sigmoid()) for _ in range(dim))
        self.projector = nn.Linear(dim, 3)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        index = min(int(torch.searchsorted(self.times, t, right=True)), len(self.context) - 1)
        return self.posterior(torch.cat([y, self.context[index]], 1))

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        columns = y.split(1, 1)
        return torch.cat([net(column) for net, column in zip(self.diffusions, columns, strict=True)], 1)
