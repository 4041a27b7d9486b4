"""Text from users and for them.

A name must not act on the line, the eye or a spreadsheet; numbers and times are read and written
in one way.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from robustkit.errors import UsageError

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
# What moves the cursor, the line or the direction of writing, what has no width, and halves of
# characters. Not the line feed, which a text of many lines keeps.
_ACTS = (
    r"\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_ACTING, _ACTING_OR_FEED = re.compile(f"[{_ACTS}]+"), re.compile(f"[{_ACTS}\\n]+")
# What a CI system takes for an order, wherever a terminal may break the line: workflow commands of
# GitHub (::error::, ##[error]), Azure's ##vso[, TeamCity's ##teamcity[, sections of GitLab.
_ORDER = re.compile(
    r"::(?=(?:error|warning|notice|debug|group|endgroup|echo|add-mask|add-path|add-matcher|"
    r"remove-matcher|set-env|set-output|save-state|stop-commands|internal-[a-z-]+)[\s:])"
    r"|##(?=\[|vso\[|teamcity\[)|section_(?=(?:start|end):)",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    r"""Return one line in which nothing acts on a terminal, on the eye or on a CI system.

    >>> clean("a\x1b[2Jb\nc"), clean("::error::d")
    ('a [2Jb c', ': :error::d')
    """
    return _ORDER.sub(_parted, _ACTING_OR_FEED.sub(" ", text))


def clean_lines(text: str) -> str:
    """Do to each line what `clean` does to one: for all that is printed or exported at once."""
    return _ORDER.sub(_parted, _ACTING.sub(" ", text))


def cleaned(value: Any) -> Any:
    """Do to every string in a JSON value what `clean_lines` does to one."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    return clean_lines(value) if isinstance(value, str) else value


def escape_orders(document: str) -> str:
    r"""Write what a CI system takes for an order, in a JSON document, as JSON's escapes: no change.

    >>> print(escape_orders('{"name": "::error::"}'))
    {"name": ":\u003aerror::"}
    """
    return _ORDER.sub(lambda found: f"{found[0][:-1]}\\u{ord(found[0][-1]):04x}", document)


def shown_json(value: Any) -> str:
    """Lay out a JSON value for a reader or a log: in ASCII, with no string that acts on it.

    Raises ValueError for NaN and infinities.
    """
    return escape_orders(json.dumps(value, indent=2, allow_nan=False)) + "\n"


def _parted(found: re.Match[str]) -> str:
    return f"{found[0][:-1]} {found[0][-1].replace('_', '')}"


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
