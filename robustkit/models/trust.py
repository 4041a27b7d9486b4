"""Files whose format runs code when they are loaded, and types that do: only those named."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path

from robustkit.errors import UsageError

_TRUSTED: ContextVar[frozenset[Path]] = ContextVar("trusted", default=frozenset())
_TYPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_NAMED: ContextVar[frozenset[str]] = ContextVar("named", default=frozenset())


@contextlib.contextmanager
def trusting(files: Collection[Path | str]) -> Iterator[None]:
    """Let the code in `files` run inside, besides what was trusted before; in this thread only.

    A type is named as it is called, such as `package.module.Class`.
    """
    more = frozenset(Path(file).expanduser().resolve() for file in files)
    token = _TRUSTED.set(_TRUSTED.get() | more)
    named = _NAMED.set(_NAMED.get() | frozenset(map(str, files)))
    try:
        yield
    finally:
        _TRUSTED.reset(token)
        _NAMED.reset(named)


def trusted() -> tuple[Path, ...]:
    """Return the files that are trusted here, from the root on, and the types as they are named."""
    types = (Path(name) for name in _NAMED.get() if _TYPE.fullmatch(name))
    return (*sorted(_TRUSTED.get()), *sorted(types))


def untrusted_types(types: Collection[str]) -> list[str]:
    """Return those of some types, in order, that the user has not named as trusted."""
    return sorted(set(types) - _NAMED.get())


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
