"""Names come from users: what keeps one from acting on the line, the eye or a spreadsheet."""

from __future__ import annotations

import hashlib
import re
import unicodedata

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


def slug(name: str) -> str:
    """Return `name` as the name of a folder on any system."""
    slug = re.sub(r"[^A-Za-z0-9._=+]+", "-", name).strip("-.") or "model"
    if len(slug) <= 80:
        return slug
    return f"{slug[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
