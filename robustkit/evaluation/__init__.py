"""The motor: walks the stations from data to record, resumes, and stops within budgets.

Enters: what `robustkit.evaluate` was asked for.
Leaves: a `Record`, and its evidence in a folder.
Read first: evaluate.py, then execute.py and run.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.evaluation.budget import Budget
    from robustkit.evaluation.eps_grid import evaluate_grid
    from robustkit.evaluation.watcher import Watcher

__all__ = ["Budget", "Watcher", "evaluate_grid"]
__getattr__, __dir__ = exports(
    __name__,
    {"Budget": "budget", "Watcher": "watcher", "evaluate_grid": "eps_grid"},
)
