"""Text from users and for them.

A name must not act on the line, the eye or a spreadsheet; numbers and times are read and written
in one way.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from robustkit.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_MOVES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")


def clean(text: str) -> str:
    r"""Replace what moves the cursor, the line or the direction of writing by a space.

    >>> clean("a\x1b[2Jb\nc")
    'a [2Jb c'
    """
    return _MOVES.sub(" ", text)


def spreadsheet(text: str) -> str:
    """Return `text` as a cell of a CSV file that no spreadsheet takes for a formula.

    It looks behind blanks, and at full-width signs, which some spreadsheets read as the plain ones.

    >>> spreadsheet("=1+1"), spreadsheet("\uff1dcmd()"), spreadsheet("a-b")
    ("'=1+1", "'\uff1dcmd()", 'a-b')
    """
    text = clean(text)
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if start and start in "=+-@" else text


def short(text: str, limit: int = 48) -> str:
    """Cut `text` where a picture has no room for more.

    >>> short("a very long name", 8)
    'a very …'
    """
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def number(text: str) -> float:
    """Read a number or a fraction such as 8/255.

    Raises:
        ValueError: for anything else, and where the divisor is zero.
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(top)
    except ZeroDivisionError:
        raise ValueError(f"{text!r} divides by zero") from None


def seconds(text: str) -> float:
    """Read a time such as "90", "30s", "5m" or "1.5h" as seconds.

    Raises:
        UsageError: for anything else, and for zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in _UNITS or float(found[1]) == 0:
        raise UsageError(f"expected a time such as 90, 30s, 5m or 1h, got {text!r}.")
    return float(found[1]) * _UNITS[found[2]]


def with_interval(value: float, low: float, high: float, *, digits: int = 3) -> str:
    """Write a fraction with its interval.

    >>> with_interval(0.5, 0.25, 0.75)
    '0.500 [0.250, 0.750]'
    """
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def posix(path: Path | str) -> str:
    """Return a path as it is written in tables and records, the same on any system."""
    return path.as_posix() if isinstance(path, Path) else path


def slug(name: str) -> str:
    """Return `name` as the name of a folder on any system."""
    slug = re.sub(r"[^A-Za-z0-9._=+]+", "-", name).strip("-.") or "model"
    if len(slug) <= 80:
        return slug
    return f"{slug[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
