"""robustkit tells how robust a classifier really is.

    record = robustkit.evaluate(model, data="npz:points.npz", threat="linf:8/255", suite="parity")

Importing the package is cheap: PyTorch and the rest are imported when a name is first used.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustkit import errors

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
    __version__ = version("robustkit")
except PackageNotFoundError:
    raise ImportError(
        "robustkit is not installed: this is a checkout. Run `pip install -e .` in it first."
    ) from None

_HOMES = {
    "Record": "robustkit.record.record",
    "RobustnessMonitor": "robustkit.integrations.monitor",
    "Threat": "robustkit.core.threat",
    "Watcher": "robustkit.evaluation.watcher",
    "adversarial_inputs": "robustkit.record.adversarial",
    "attack": "robustkit.search.functional",
    "evaluate": "robustkit.evaluation.evaluate",
    "evaluate_grid": "robustkit.evaluation.eps_grid",
    "load_model": "robustkit.models.load",
    "log_record": "robustkit.integrations.loggers",
    "open_dataset": "robustkit.data.open",
}


class _Package(ModuleType):
    """Keeps `robustkit.evaluate` the function: importing the module of that name would hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
