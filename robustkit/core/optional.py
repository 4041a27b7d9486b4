"""Packages that are needed only for some requests: imported late and quietly, with a cure."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from types import ModuleType

from robustkit.core.imports import failure
from robustkit.core.packages import install_command
from robustkit.errors import UsageError


def library(name: str, extra: str) -> ModuleType:
    """Import a library that a source needs.

    Raises:
        UsageError: when it is not installed, or fails; with the cure.
    """
    with quiet():
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
                raise UsageError(
                    f"{name} needs {error.name}, which is not installed. "
                    f"Run `{install_command(extra)}`."
                ) from error
            raise UsageError(f"{name} is not installed. Run `{install_command(extra)}`.") from None
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{name} is installed but fails when it is imported: {failure(error)}. "
                "`robustkit doctor` says what is broken."
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's warnings and prints out of the answer."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
