"""Attributing an error raised in the middle of a run to the user's model, by the traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustkit.core import process_state
from robustkit.core.imports import ended_by_code, failure
from robustkit.errors import RobustkitError

_PACKAGE = Path(str(sys.modules["robustkit"].__file__)).resolve().parent


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what the model `name` raises inside into a clear error; leave any other as it is.

    Code that would end the program (SystemExit) never does.

    Raises:
        RobustkitError: naming the model, its file and line.
    """
    try:
        yield
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:
        place = raised_by_model(error)
        if place is None and isinstance(error, SystemExit):
            raise ended_by_code(error, name) from error
        if place is None:
            raise
        message = failure(error).rstrip(".")
        raise RobustkitError(
            f"{name} raised an error in the middle of the run ({place}): {message}. The same "
            "command resumes from here if the model is unchanged; a model that was fixed starts "
            "over (--fresh, where --out was given). --debug shows the traceback."
        ) from error


@contextmanager
def outliving_exits() -> Iterator[None]:
    """Turn what would end the program, such as `sys.exit(0)` in a user's code, into an error.

    What the code has changed for the whole process is put back: its own guard was not asked.

    Raises:
        RobustkitError: for a SystemExit that is raised inside.
    """
    before = process_state.read()
    try:
        yield
    except SystemExit as error:
        process_state.put_back(before)
        raise ended_by_code(error) from error
    except RobustkitError as error:
        if isinstance(error.__cause__, SystemExit):
            process_state.put_back(before)
        raise


def raised_by_model(error: BaseException) -> str | None:
    """Return file and line if robustkit's innermost frame is a call of a model.

    Modules that call models are marked by `CALLS_MODELS = True`.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, f in enumerate(frames) if _PACKAGE in Path(f.filename).resolve().parents]
    if not own or own[-1] == len(frames) - 1:
        return None
    caller = list(traceback.walk_tb(error.__traceback__))[own[-1]][0]
    if not caller.f_globals.get("CALLS_MODELS"):
        return None
    last = [f for f in frames[own[-1] + 1 :] if "site-packages" not in f.filename]
    frame = last[-1] if last else frames[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
