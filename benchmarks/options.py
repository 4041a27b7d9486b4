"""Options of the benchmarks that list names, separated by commas."""

from __future__ import annotations

from collections.abc import Sequence

from robustkit.errors import UsageError


def listed(text: str) -> list[str]:
    """Return the names in `text`, without blanks and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def some_of(known: Sequence[str], text: str) -> list[str]:
    """Return the names in `text` in the order of the known ones; all where it has none.

    Raises:
        UsageError: for a name that is not known.
    """
    asked = listed(text)
    if strangers := [name for name in asked if name not in known]:
        raise UsageError(f"expected some of {', '.join(known)}, got {strangers[0]!r}.")
    return [name for name in known if name in asked or not asked]
