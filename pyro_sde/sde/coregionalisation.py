r"""Several outputs mixed from independent processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pyro.nn.module import PyroModuleList

from .linear import LinearSDE, Parameter, check_parts, systems_of
from .system import LinearSystem, mix_systems

__all__ = ["Coregionalisation"]


class Coregionalisation(LinearSDE):
    r"""Several outputs :math:`f = W (f_1, \dots, f_R)` mixed from independent processes.

    The linear model of coregionalisation: outputs share the processes and are correlated through W.

    Args:
        processes: linear SDEs; their outputs are stacked.
        mixing: W, ``(*batch, O, R)``, with one column for each output of the processes.

    Raises:
        ValueError: if there is no process, or W has another number of columns.

    References:
        Álvarez, Rosasco, Lawrence (2012), Kernels for vector-valued functions, arXiv 1106.6251, section 4.2.
    """

    def __init__(self, processes: Sequence[LinearSDE], mixing: Parameter) -> None:
        super().__init__(sum(process.state_dim for process in check_parts("processes", processes)))
        self.processes = PyroModuleList(processes)
        self._register("mixing", mixing)

    def _system(self, device: torch.device | None) -> LinearSystem:
        (mixing,), dtype = self._read("mixing", device=device)
        system = mix_systems(systems_of(self.processes, device), mixing, type(self).__name__)
        return replace(system, dtype=torch.promote_types(dtype, system.dtype))
