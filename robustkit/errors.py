"""Every error that a user can meet, each with the exit code the command line answers with.

RobustkitError      3  the run could not finish
├── UsageError      2  bad arguments, data, models or configuration: nothing was run
└── GateFailed      1  the run finished and the answer is no
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LISTED = 100  # names; a library of models has a thousand
NEAR = 0.6  # of difflib's ratio; below, a guess is none: 'l2' for 'l7' shares one letter of two


class RobustkitError(Exception):
    """The run could not finish. The message says what was expected, what was got, and the cure."""

    exit_code = 3


class UsageError(RobustkitError):
    """The request cannot be carried out as it stands; nothing was run and nothing was written."""

    exit_code = 2


class GateFailed(RobustkitError):
    """The run finished, and what it was asked to guarantee does not hold."""

    exit_code = 1


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Say that a name does not exist: what was asked, the likely intent, the list."""
    names = sorted(known)
    hint = hint_at(name, names)
    listing = ", ".join(names) if names else "none"
    if len(names) > _LISTED:
        nearest = difflib.get_close_matches(name, names, n=8, cutoff=0.0)
        listing = f"{len(names):,} names, such as {', '.join(nearest)}"
    return UsageError(f"Unknown {kind} {name!r}.{hint} Known: {listing}.")


def hint_at(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" where one of the known names is near, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)
    return f" Did you mean {close[0]!r}?" if close else ""


def some(points: Sequence[int], limit: int = 8) -> str:
    """List points in an error message without flooding it."""
    listed = ", ".join(map(str, points[:limit]))
    return f"{listed}, ... ({len(points)} in all)" if len(points) > limit else listed
