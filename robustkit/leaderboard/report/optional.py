"""The libraries of the extra `report`: imported when something is drawn, not before."""

from __future__ import annotations

import importlib
from types import ModuleType

from robustkit.core.packages import install_command
from robustkit.errors import UsageError


def need(module: str) -> ModuleType:
    """Import a module of the extra `report`.

    Raises:
        UsageError: when it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"a report needs {module.partition('.')[0]}, which cannot be imported ({error}). "
            f"Run `{install_command('report')}`."
        ) from None
