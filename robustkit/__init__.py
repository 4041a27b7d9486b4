"""robustkit tells how robust a classifier really is.

    record = robustkit.evaluate(model, data="npz:points.npz", threat="linf:8/255", suite="parity")

Importing the package is cheap: PyTorch and the rest are imported when a name is first used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

from robustkit import errors
from robustkit.core.lazy import exports
from robustkit.core.packages import not_installed, own_version

if TYPE_CHECKING:
    from robustkit.core.threat import Threat
    from robustkit.data.open import open_dataset
    from robustkit.evaluation.eps_grid import evaluate_grid
    from robustkit.evaluation.evaluate import evaluate
    from robustkit.evaluation.watcher import Watcher
    from robustkit.integrations.loggers import log_record
    from robustkit.integrations.monitor import RobustnessMonitor
    from robustkit.models.load import load_model
    from robustkit.record.adversarial import adversarial_inputs
    from robustkit.record.record import Record
    from robustkit.search.functional import attack

__all__ = [
    "Record",
    "RobustnessMonitor",
    "Threat",
    "Watcher",
    "__version__",
    "adversarial_inputs",
    "attack",
    "errors",
    "evaluate",
    "evaluate_grid",
    "load_model",
    "log_record",
    "open_dataset",
]
try:
    __version__ = own_version()
except PackageNotFoundError:
    raise ImportError(not_installed()) from None

__getattr__, __dir__ = exports(
    __name__,
    {
        "Record": "record.record",
        "RobustnessMonitor": "integrations.monitor",
        "Threat": "core.threat",
        "Watcher": "evaluation.watcher",
        "adversarial_inputs": "record.adversarial",
        "attack": "search.functional",
        "evaluate": "evaluation.evaluate",
        "evaluate_grid": "evaluation.eps_grid",
        "load_model": "models.load",
        "log_record": "integrations.loggers",
        "open_dataset": "data.open",
    },
)
