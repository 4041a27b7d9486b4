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
    from robustkit.data import open_dataset
    from robustkit.evaluate import evaluate
    from robustkit.examples import adversarial_inputs
    from robustkit.grid import evaluate_grid
    from robustkit.loggers import log_record
    from robustkit.model import load_model
    from robustkit.monitor import RobustnessMonitor
    from robustkit.plain import attack
    from robustkit.record import Record
    from robustkit.threat import Threat
    from robustkit.watcher import Watcher

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
    "Record": "robustkit.record",
    "RobustnessMonitor": "robustkit.monitor",
    "Threat": "robustkit.threat",
    "Watcher": "robustkit.watcher",
    "adversarial_inputs": "robustkit.examples",
    "attack": "robustkit.plain",
    "evaluate": "robustkit.evaluate",
    "evaluate_grid": "robustkit.grid",
    "load_model": "robustkit.model",
    "log_record": "robustkit.loggers",
    "open_dataset": "robustkit.data",
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
