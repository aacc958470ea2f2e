"""The exam of the house, for our own laws and for yours.

Lives here: statistical tests with one failure rate and a stated smallest error (`statistics.py`), goodness of fit of
paths (`fit.py`), the contract of a path law (`contracts.py`) and of a pair of laws (`divergence.py`).
Does not live here: tests themselves (`tests/`), scores of a trained model (`diagnostics`), checks of a model/guide pair
(`infer`).

To add one: (1) a function ``_check_...(exam)`` in `contracts.py` that raises `ContractError` with the two values that
differ, (2) its name in ``CLAUSES``, (3) a broken law that it must catch in `tests/testing`, (4) its line in the
docstring of `check_distribution`.

Papers: Massart (1990), the tight constant of the Dvoretzky–Kiefer–Wolfowitz inequality; Gorham and Mackey (2015), arXiv
1506.03039, Stein identities.
"""

from .contracts import CLAUSES as CLAUSES
from .contracts import check_distribution as check_distribution
from .divergence import KLReport as KLReport
from .divergence import check_kl as check_kl
from .fit import gof as gof
from .fit import loop_log_prob as loop_log_prob
from .fit import stein_test as stein_test
from .statistics import TEST_FAILURE_RATE as TEST_FAILURE_RATE
from .statistics import ContractError as ContractError
from .statistics import Outcome as Outcome
from .statistics import assert_mean as assert_mean
from .statistics import chi2_test as chi2_test
from .statistics import ks_test as ks_test
from .statistics import z_test as z_test

__all__ = [
    "CLAUSES",
    "ContractError",
    "KLReport",
    "Outcome",
    "TEST_FAILURE_RATE",
    "assert_mean",
    "check_distribution",
    "check_kl",
    "chi2_test",
    "gof",
    "ks_test",
    "loop_log_prob",
    "stein_test",
    "z_test",
]
