"""Files that are written whole: a file by a rename, anything else that lies there as a stream.

The summary that a step of GitHub Actions hands out (GITHUB_STEP_SUMMARY) is a stream too: others
write to it before and after.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from robustkit.errors import RobustkitError, UsageError

STDOUT = "-"
_OPEN_FILE = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_LINKS = 40  # followed in a row, as Linux does
_EFFECTIVE = os.access in os.supports_effective_ids
_digests: ContextVar[dict[Path, str] | None] = ContextVar("digests", default=None)


@contextmanager
def digesting() -> Iterator[dict[Path, str]]:
    """Keep the SHA-256 of what `write` writes inside, by path; the last one of each."""
    found: dict[Path, str] = {}
    token = _digests.set(found)
    try:
        yield found
    finally:
        _digests.reset(token)


def adopt(digests: Mapping[Path, str]) -> None:
    """Keep the digests of files that another process of ours has written."""
    if (found := _digests.get()) is not None:
        found.update(digests)


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

    A link stays, and what it points to is written. A device, a pipe or a socket is written to, not
    replaced; `-` is standard output. The summary of a step of GitHub Actions is added to.

    Raises:
        RobustkitError: when it cannot be written.
    """
    try:
        if is_stream(path):
            _stream(content, path)
            return
        with _draft(path) as draft, draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if (digests := _digests.get()) is not None:
            digests[path.resolve()] = hashlib.sha256(content).hexdigest()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = getattr(error, "strerror", None) or error
        raise RobustkitError(
            f"{path}: could not be written ({why}); what it held before is untouched. "
            "Free some space or choose another place."
        ) from error


def remove(path: Path) -> None:
    """Remove a file that `write` wrote, if it is there."""
    path.unlink(missing_ok=True)
    if (digests := _digests.get()) is not None:
        digests.pop(path.resolve(), None)


def copy(source: Path, path: Path) -> None:
    """Copy a file: afterwards `path` holds all of it, or what it held before.

    Raises:
        RobustkitError: when it cannot be copied.
    """
    try:
        with _draft(path) as draft:
            shutil.copyfile(source, draft)
    except OSError as error:
        raise RobustkitError(
            f"{path}: {source} could not be copied there ({error.strerror})."
        ) from error


def is_stream(path: Path) -> bool:
    """Tell whether something lies at `path` that is written to and never replaced."""
    if str(path) == STDOUT or _open_file(path) is not None or _is_summary(path):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_summary(path: Path) -> bool:
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    try:
        return bool(place) and path.samefile(str(place))
    except OSError:
        return False


def refuse_unwritable(path: Path) -> None:
    """Refuse a place where nothing can be written, before the work whose result is to go there.

    Raises:
        UsageError: for a folder, a file or a folder that may not be written, and a folder that
            cannot be made.
    """
    if str(path) == STDOUT or _open_file(path) is not None:
        return
    with _refusing(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder: expected the name of a file.")
        if path.exists() and not _may(path, os.W_OK):
            raise PermissionError("you have no permission")
        folder = path.resolve().parent
    if not is_stream(path):
        refuse_unwritable_folder(folder)


def refuse_unwritable_folder(path: Path) -> None:
    """Refuse a folder that can neither be written nor made.

    Raises:
        UsageError: naming the folder that is in the way.
    """
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    with _refusing(path):
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is no folder")
        if not _may(there, os.W_OK | os.X_OK):
            raise PermissionError(f"you have no permission in {there}")
        import tempfile  # help answers sooner without it

        # Only a try tells that a file system such as /proc takes no files, whoever asks.
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise OSError(f"{there} takes no files ({error.strerror})") from None


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UsageError(
            f"{path} cannot be written: {getattr(error, 'strerror', None) or error}. Choose "
            "another place."
        ) from None


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=_EFFECTIVE)


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """Hand out a name beside a file, which takes the file's place once it is written."""
    target = path.resolve()  # through links: they stay
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:80]}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)  # of a process that was killed; never written through a link
    try:
        yield draft
        if target.exists():
            draft.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _open_file(path: Path) -> int | None:
    """Return which of this process's open files a path such as /dev/stdout stands for."""
    for _ in range(_LINKS):
        found = _OPEN_FILE.fullmatch(os.path.abspath(path))
        if found:
            return int(found[1])
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            break
    return None


def _stream(content: bytes, path: Path) -> None:
    sys.stdout.flush()
    if str(path) == STDOUT:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    number = _open_file(path)
    if number is None and stat.S_ISSOCK(path.stat().st_mode):
        import socket  # help answers sooner without it

        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(content)
        return
    # Opened by its name, a file behind /dev/stdout would be written from its beginning again.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND) if number is None else os.dup(number)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
