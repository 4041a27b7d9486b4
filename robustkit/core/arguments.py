"""Arguments from Python: read as what is documented, or refused in one sentence.

Whole numbers may be NumPy's or a tensor's; a bool is no number, a number no bool, bytes no text.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError

_LONGEST = 255  # bytes of a file's name, on every usual file system
SEEDS = 2**63  # so many: they are held in int64 tensors


def whole(name: str, value: Any, least: int, below: float = math.inf) -> int:
    """Return a whole number from `least` up to, but not including, `below`.

    Raises:
        UsageError: for anything else.
    """
    try:
        number = None if _is_bool(value) else operator.index(value)
    except (TypeError, ValueError):  # a tensor of several numbers
        number = None
    if number is None or not least <= number < below:
        reach = f"from {least} to {int(below) - 1}" if below < math.inf else f"of at least {least}"
        raise refused(name, f"a whole number {reach}", value)
    return number


def real(name: str, value: Any) -> float:
    """Return a number; NaN and infinities are numbers.

    Raises:
        UsageError: for anything else.
    """
    if not _is_bool(value) and (isinstance(value, Real) or getattr(value, "ndim", None) == 0):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    raise refused(name, "a number", value)


def reals(name: str, values: Any) -> tuple[float, ...] | None:
    """Return a list of numbers; None where none was given.

    Raises:
        UsageError: for anything else.
    """
    return None if values is None else tuple(real(name, value) for value in several(name, values))


def switch(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        UsageError: for anything else.
    """
    if not _is_bool(value) or getattr(value, "ndim", False):
        raise refused(name, "True or False", value)
    return bool(value)


def text(name: str, value: Any) -> str:
    """Return a text that is not empty and can be written down.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise refused(name, "a text", value)
    return value


def path(name: str, value: Any) -> Path:
    """Return a path.

    Raises:
        UsageError: for anything else, and for an empty text.
    """
    raw = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise refused(name, "a path, as a text or a pathlib.Path", value)
    if any(len(os.fsencode(part)) > _LONGEST for part in Path(raw).parts):
        raise refused(name, f"a path whose names have at most {_LONGEST} bytes", value)
    return Path(raw)


def several(name: str, value: Any) -> tuple[Any, ...]:
    """Return the members of a list; a text is not taken for a list of letters.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise refused(name, "a list", value)
    try:
        return tuple(value)
    except TypeError:  # an array without axes
        raise refused(name, "a list", value) from None


def instance(name: str, value: Any, kind: type, expected: str) -> Any:
    """Return an object of a class, or of what has the parts of a protocol.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(value, kind):
        raise refused(name, expected, value)
    return value


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def refused(name: str, expected: str, value: Any) -> UsageError:
    """Say what an argument should be, and what it is."""
    return UsageError(f"{name}: expected {expected}, got {shown(value)}.")


def shown(value: Any) -> str:
    """Write a value in an error: short, and by its type where its `repr` says nothing.

    >>> shown(1.5), shown(b"x"), shown(object())
    ('1.5', "b'x' (bytes)", 'object')
    """
    if isinstance(value, int) and abs(value) >= 10**40:  # Python writes only so many digits
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, bool | int | float | str | bytes) or value is None:
        told = repr(value)
        told = told if len(told) <= 60 else f"{told[:57]}..."
        return told if not isinstance(value, bytes) else f"{told} (bytes)"
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    size = getattr(value, "shape", None)
    return f"{kind} {list(size)}" if isinstance(size, tuple) and size else kind
