"""`package.module:attr` and `path/to/file.py:attr`: how a user's own code is named and loaded."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import zlib
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from robustkit.core.import_folders import activate, mixed, running
from robustkit.core.process_state import kept
from robustkit.errors import RobustkitError, UsageError, hint_at

USER = "robustkit_user_"  # prefix of the names of modules that were loaded from a file


def load_attribute(text: str) -> Any:
    """Import what `text` names. The code runs: it is trusted as any Python file that is run.

    The working directory (for a module) or the file's folder (for a file) becomes importable, at
    the end of the search path, so that it never shadows an installed package. A file that has not
    changed since it was last loaded is not executed again. What the code changes for the whole
    process (working directory, random generators, dtype, threads) is put back.

    Args:
        text: `package.module:attr` or `path/to/file.py:attr`; `attr` may be dotted.

    Raises:
        UsageError: for any other form, a module or file that does not exist, an attribute that it
            lacks (with the closest one), or code that raises while it is imported.
    """
    source, colon, attribute = text.rpartition(":")
    if not (source and colon and attribute):
        raise UsageError(f"expected 'package.module:attr' or 'path/to/file.py:attr', got {text!r}.")
    found: Any = (load_file if source.endswith(".py") else load_module)(source)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise _lacks(source, found, part)
        found = getattr(found, part)
    return found


def failure(error: BaseException, file: str | None = None) -> str:
    """Name an exception raised by a user's code, with the last line of `file` that it passed."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if file is None or frame.filename == file]
    if isinstance(error, SyntaxError) or not file or not lines:
        return message
    return f"{message} (line {lines[-1]})"


def ended_by_code(error: BaseException, name: str = "") -> RobustkitError:
    """Return the error that stands for code which tried to end the program, such as `sys.exit(0)`.

    Args:
        name: of the model that was evaluated, if it is known.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return RobustkitError(
        f"{name or 'some code'} tried to end the program in the middle of the run{place}: "
        f"{failure(error)}. Nothing has passed. Code of a model, of data or of a plugin must raise "
        "an error instead."
    )


def _lacks(source: str, found: Any, part: str) -> UsageError:
    public = [name for name in dir(found) if not name.startswith("_")]
    hint = hint_at(part, public)
    module = getattr(found, "__name__", None)
    own = [n for n in public if getattr(getattr(found, n, None), "__module__", 0) == module]
    listing = f" It defines: {', '.join(own[:20])}{', ...' * (len(own) > 20)}." if own else ""
    return UsageError(f"{source} has no attribute {part!r}.{hint}{listing}")


def load_file(text: str) -> ModuleType:
    """Execute a Python file as a module, once for each version of it.

    Raises:
        UsageError: when it does not exist, or fails.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError(f"{path} does not exist (looked from {Path.cwd()}).")
    path = path.resolve()
    version = f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}"
    name = f"{USER}{path.stem}_{zlib.crc32(version.encode()):08x}"
    if name in sys.modules:
        activate(path.parent)
        return sys.modules[name]
    try:
        module = _execute(path, name)
    except UsageError:
        if not mixed(path.parent):
            raise
        return _execute(path, name)
    return _execute(path, name) if mixed(path.parent) else module


class _Uncached(SourceFileLoader):
    # Bytecode is matched by whole seconds and length: an edit from eps=0.1 to eps=0.3 within a
    # second would run the old code.
    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError("no bytecode for a file of models")


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, loader=_Uncached(name, str(path)))
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported: it is no Python source file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with running(path.parent), kept():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} fails when it is run: {failure(error, str(path))}.") from error
    return module


def load_module(name: str) -> ModuleType:
    """Import a module; the working directory is searched last.

    Raises:
        UsageError: when there is none of that name, or it fails.
    """
    importlib.invalidate_caches()
    try:
        with running(Path.cwd()), kept():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"importing {name} fails: {failure(error)}.") from error
        raise UsageError(
            f"there is no module {error.name!r} (wanted {name!r}, looked in {Path.cwd()} and in "
            "the installed packages). For a file, write path/to/file.py:attr."
        ) from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"importing {name} fails: {failure(error)}.") from error
