r"""Stationary laws of linear SDEs :math:`dz = (A z + b)\,dt + L\,dW`."""

from __future__ import annotations

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ._matrices import balance, check_system, kron, matrix_norm, one_batch
from ._psd import check_finite

__all__ = ["stationary_moments"]


def stationary_moments(
    matrix: Tensor, diffusion: Tensor, offset: Tensor | None = None, name: str = "the process"
) -> tuple[Tensor, Tensor]:
    r"""Stationary mean and covariance of :math:`dz = (A z + b)\,dt + L\,dW`, in float64.

    .. math:: A m + b = 0, \qquad A P + P A^\top + L L^\top = 0

    Both are linear systems, the second of size :math:`D^2`: cost O(D^6) for each A, meant for D up to about 30.

    Args:
        matrix: A, ``(*batch, D, D)``.
        diffusion: L, ``(*batch, D, M)``.
        offset: b, ``(*batch, D)``, zero if None.
        name: of the process, for the message.

    Returns:
        mean ``(*batch, D)`` and covariance ``(*batch, D, D)``.

    Raises:
        TypeError: if an argument is no tensor of real numbers.
        ValueError: if shapes do not fit, an eigenvalue of A has a real part that is not negative, or an entry is not
            finite and Pyro's validation is on.

    References:
        Särkkä and Solin (2019), Applied Stochastic Differential Equations, section 6.5.
    """
    check_system(matrix, diffusion, offset)
    if is_validation_enabled():  # as in `discretise`
        for argument, tensor in (("matrix", matrix), ("diffusion", diffusion), ("offset", offset)):
            if tensor is not None:
                check_finite(tensor, argument, False, 1 if argument == "offset" else 2)
    a, noise = matrix.double(), diffusion.double()
    units = balance(a.detach())
    a = a * units.unsqueeze(-2) / units.unsqueeze(-1)
    noise = noise / units.unsqueeze(-1)
    eigenvalues = torch.linalg.eigvals(a.detach())
    growth = eigenvalues.real >= -1e-12 * matrix_norm(a.detach()).unsqueeze(-1)
    if bool(growth.any()):
        value = eigenvalues[growth][0].item()
        msg = (
            f"{name} has no stationary law: the eigenvalue {_complex_text(value)} of its drift matrix has no negative "
            "real part. Give its path an initial law."
        )
        raise ValueError(msg)
    size = a.shape[-1]
    identity = torch.eye(size, dtype=a.dtype, device=a.device)
    lyapunov = kron(a, identity) + kron(identity, a)
    gram = noise @ noise.mT
    lyapunov, gram = one_batch([lyapunov, gram], 2)
    covariance = torch.linalg.solve(lyapunov, -gram.flatten(-2).unsqueeze(-1)).reshape(gram.shape)
    covariance = units.unsqueeze(-1) * (0.5 * (covariance + covariance.mT)) * units.unsqueeze(-2)
    if offset is None:
        return covariance.new_zeros(covariance.shape[:-1]), covariance
    drive = (offset.double() / units).unsqueeze(-1)
    return units * torch.linalg.solve(*one_batch([a, -drive], 2)).squeeze(-1), covariance


def _complex_text(value: complex) -> str:
    return f"{value.real:.3g}" if value.imag == 0 else f"{value.real:.3g}{value.imag:+.3g}i"
