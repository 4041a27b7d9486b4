"""What `robustkit doctor` reports: one line of the diagnosis, with its cure."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from robustkit.core.packages import pip_command

State: TypeAlias = Literal["ok", "absent", "warning", "broken"]


class Finding(NamedTuple):
    """One line of the diagnosis. `cure` is empty where nothing needs one.

    `fix`: what pip is to be told to do, where that cures it without a choice to make.
    """

    name: str
    state: State
    detail: str
    cure: str = ""
    fix: tuple[str, ...] = ()


def curable(name: str, state: State, detail: str, fix: tuple[str, ...]) -> Finding:
    """Return a finding that one pip command cures."""
    return Finding(name, state, detail, pip_command(*fix), fix)
