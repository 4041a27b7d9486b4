"""Which corruptions a text such as `fog@3+noise` names, at which severities."""

from __future__ import annotations

from robustkit.core.finite import Variant
from robustkit.errors import UsageError, unknown

from ._corruptions import SEVERITIES


def selected(text: str, groups: dict[str, list[str]]) -> tuple[Variant, ...]:
    """Return the variants that a selection such as `fog@3+noise` names, each once.

    Args:
        groups: the corruptions of each group, of which all but the extra ones are in `all`.

    Raises:
        UsageError: for a name or a severity that there is not.
    """
    names = dict.fromkeys(name for group in groups.values() for name in group)
    found: dict[Variant, None] = {}
    for part in text.lower().split("+"):
        name, at, severity = (piece.strip() for piece in part.partition("@"))
        if name not in names and name not in groups:
            raise unknown("corruption", name, [*groups, *names])
        for kind in groups.get(name, [name]):
            found.update(dict.fromkeys(Variant(kind, k) for k in _severities(severity, part, at)))
    return tuple(found)


def _severities(text: str, part: str, at: str) -> range:
    first, dash, last = text.partition("-")
    if not at:
        return SEVERITIES
    ends = (first, last if dash else first)
    if all(end.isdecimal() and int(end) in SEVERITIES for end in ends):
        chosen = range(int(ends[0]), int(ends[1]) + 1)
        if chosen:
            return chosen
    raise UsageError(f"expected a severity from 1 to 5 in {part!r}, such as @3 or @2-4.")
