"""The latent SDE of `latent_sde.py` in jax: a jitted `jax.lax.scan`, and diffrax, where they are installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

# Read when jax starts. NPROC is the size of its thread pools: one thread, as for torch. With more, the CPU time of a
# small program doubles, because the others spin.
_ENVIRONMENT = {"NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}


def installed(package: str) -> bool:
    return find_spec(package) is not None


def _jax() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import jax

    return jax


def weights(parts: nn.Module) -> dict[str, Any]:
    """The parameters of the torch networks as jax arrays, by name."""
    jax = _jax()
    return {name: jax.numpy.asarray(value.detach().numpy()) for name, value in parts.named_parameters()}


class Networks:
    """The networks of `latent_sde.Parts` on a dictionary of their parameters."""

    def __init__(self, w: dict[str, Any], floor: float, span: float) -> None:
        self.w, self.floor, self.span = w, floor, span

    def drift(self, name: str, z: Any, context: Any = None) -> Any:
        silu, w = _jax().nn.silu, self.w
        hidden = z @ w[f"{name}.state_part.weight"].T + w[f"{name}.state_part.bias"]
        if context is not None:
            hidden = hidden + context @ w[f"{name}.input_part.weight"].T
        for layer in (0, 2):
            hidden = silu(hidden) @ w[f"{name}.tail.layers.{layer}.weight"].T + w[f"{name}.tail.layers.{layer}.bias"]
        return hidden

    def diffusion(self, z: Any) -> Any:
        jax, w = _jax(), self.w
        raw = w["diffusion.raw"]
        if "diffusion.slope" not in w:
            return self.floor + jax.nn.softplus(raw)
        hidden = jax.nn.silu(z[..., None] * w["diffusion.slope"] + w["diffusion.shift"])
        return self.floor + 2 * self.span * jax.nn.sigmoid((hidden * w["diffusion.weight"]).sum(-1) + raw)

    def fit(self, path: Any, values: Any, noise: float) -> Any:
        """Log-likelihood of the values, all times at once."""
        mean = path @ self.w["projector.weight"].T + self.w["projector.bias"]
        return _jax().scipy.stats.norm.logpdf(values, mean, noise).sum()


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(_jax().numpy.asarray(tensor.numpy()) for tensor in tensors)


def scan_gradient(parts: Any, step: float, noise: float) -> Callable[..., Any]:
    """Jitted (weights, start, draws, context, values) -> bound and gradient; a plain loop over steps."""
    jax = _jax()
    floor, span = parts.diffusion.floor, parts.diffusion.span

    def bound(w: Any, start: Any, draws: Any, context: Any, values: Any) -> Any:
        networks = Networks(w, floor, span)

        def advance(carry: Any, row: Any) -> Any:
            z, energy = carry
            f, h, g = networks.drift("posterior", z, row[0]), networks.drift("prior", z), networks.diffusion(z)
            energy = energy + 0.5 * step * (((f - h) / g) ** 2).sum()
            z = z + f * step + g * step**0.5 * row[1]
            return (z, energy), z

        (_, energy), states = jax.lax.scan(advance, (start, jax.numpy.zeros(())), (context, draws))
        return energy - networks.fit(jax.numpy.concatenate([start[None], states]), values, noise)

    return jax.jit(jax.value_and_grad(bound))


def scan_step(parts: Any, context: Tensor, values: Tensor, step: float, noise: float) -> Callable[[], object]:
    """One gradient of the bound by `jax.lax.scan`: no optimiser step, and noise that is drawn beforehand."""
    jax = _jax()
    gradient, w = scan_gradient(parts, step, noise), weights(parts)
    batch, width = context.shape[1], parts.projector.in_features
    given = arrays(torch.randn(batch, width), torch.randn(len(context) - 1, batch, width), context[:-1], values)

    def run() -> float:
        loss, _ = jax.block_until_ready(gradient(w, *given))
        return float(loss)

    return run


def diffrax_step(parts: Any, context: Tensor, values: Tensor, step: float, noise: float) -> Callable[[], object]:
    """One gradient by diffrax: Euler, VirtualBrownianTree, its default adjoint; no optimiser step."""
    jax = _jax()
    import diffrax
    import lineax

    numpy, w = jax.numpy, weights(parts)
    floor, span, count = parts.diffusion.floor, parts.diffusion.span, len(context) - 1
    batch, width = context.shape[1], parts.projector.in_features
    start, rows, observed = arrays(torch.randn(batch, width), context[:-1], values)
    shape = jax.ShapeDtypeStruct((batch, width), start.dtype)
    times = step * numpy.arange(count + 1)

    def drift(t: Any, y: Any, networks: Networks) -> Any:
        row = rows[numpy.minimum((t / step + 0.5).astype(int), count - 1)]
        f, h, g = networks.drift("posterior", y[0], row), networks.drift("prior", y[0]), networks.diffusion(y[0])
        return f, 0.5 * (((f - h) / g) ** 2).sum()

    def diffusion(t: Any, y: Any, networks: Networks) -> Any:
        g = networks.diffusion(y[0])
        return lineax.FunctionLinearOperator(lambda dw: (g * dw, numpy.zeros(())), shape)

    def bound(w: Any, key: Any) -> Any:
        networks = Networks(w, floor, span)
        tree = diffrax.VirtualBrownianTree(0.0, count * step, tol=step / 2, shape=shape, key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, _: drift(t, y, networks)),
            diffrax.ControlTerm(lambda t, y, _: diffusion(t, y, networks), tree),
        )
        states, energy = diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, count * step, step, (start, numpy.zeros(())),
            saveat=diffrax.SaveAt(ts=times), max_steps=count + 1,
        ).ys  # fmt: skip
        return energy[-1] - networks.fit(states, observed, noise)

    gradient = jax.jit(jax.value_and_grad(bound))
    keys = iter(jax.random.split(jax.random.key(0), 10_000))

    def run() -> float:
        loss, _ = jax.block_until_ready(gradient(w, next(keys)))
        return float(loss)

    return run
