"""Files whose format runs code when they are loaded: only those that the user has named."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path

from robustkit.errors import UsageError

_TRUSTED: ContextVar[frozenset[Path]] = ContextVar("trusted", default=frozenset())


@contextlib.contextmanager
def trusting(files: Collection[Path | str]) -> Iterator[None]:
    """Let the code in `files` run inside, besides what was trusted before; in this thread only."""
    more = frozenset(Path(file).expanduser().resolve() for file in files)
    token = _TRUSTED.set(_TRUSTED.get() | more)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def trusted() -> tuple[Path, ...]:
    """Return the files that are trusted here, from the root on."""
    return tuple(sorted(_TRUSTED.get()))


def refuse_untrusted(text: str, path: Path) -> None:
    """Refuse to load `path`, which the model `text` names, unless the user trusts it.

    Raises:
        UsageError: when its code was not allowed to run.
    """
    if path.resolve() not in _TRUSTED.get():
        raise UsageError(
            f"{text}: a file of this format can run code when it is loaded. If you trust whoever "
            f"made it, say so: --trust-code {shlex.quote(str(path))}, or in Python "
            f"trust_code=[{str(path)!r}]."
        )
