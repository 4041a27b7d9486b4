"""Whose error it was: one that a model raises in the middle of a run is the model's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustkit.errors import RobustkitError
from robustkit.importing import failure

_HOME = Path(__file__).resolve().parent
_ASKING = {
    "passes.py",
    "verify.py",
    "counting.py",
    "tuning.py",
    "asking.py",
    "remedies.py",
    "noise.py",
    "student.py",
}  # they call models


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turn what the model `name` raises inside into a clear error; leave any other as it is.

    Raises:
        RobustkitError: naming the model, its file and line.
    """
    try:
        yield
    except RobustkitError:
        raise
    except Exception as error:
        place = raised_by_model(error)
        if place is None:
            raise
        told = failure(error).rstrip(".")
        raise RobustkitError(
            f"{name} raised an error in the middle of the run ({place}): {told}. The "
            "same command goes on from here if the model is as it was; one that is mended starts "
            "over (--fresh, where --out was given). --debug shows the way there."
        ) from error


def raised_by_model(error: Exception) -> str | None:
    """Return file and line if the last thing robustkit did was to call a model."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, f in enumerate(frames) if _HOME in Path(f.filename).resolve().parents]
    if not own or own[-1] == len(frames) - 1:
        return None
    if Path(frames[own[-1]].filename).name not in _ASKING:
        return None
    last = [f for f in frames[own[-1] + 1 :] if "site-packages" not in f.filename]
    frame = last[-1] if last else frames[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
