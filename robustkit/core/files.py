"""Files that are written atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from robustkit.errors import RobustkitError, UsageError

_digests: ContextVar[dict[Path, str] | None] = ContextVar("digests", default=None)


@contextlib.contextmanager
def digesting() -> Iterator[dict[Path, str]]:
    """Keep the SHA-256 of what `write` writes inside, by path; the last one of each."""
    found: dict[Path, str] = {}
    token = _digests.set(found)
    try:
        yield found
    finally:
        _digests.reset(token)


def make_folder(path: Path) -> None:
    """Make a folder of a run, with its parents.

    Raises:
        UsageError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path}: {error.strerror}. Choose another --out."
        ) from None


def write(content: bytes, path: Path) -> None:
    """Write a file: afterwards `path` holds all of it, or what it held before.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
            if (digests := _digests.get()) is not None:
                digests[path.resolve()] = hashlib.sha256(content).hexdigest()
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise RobustkitError(
            f"{path}: could not be written ({error.strerror}); what it held before is untouched. "
            "Free some space or choose another place."
        ) from error
