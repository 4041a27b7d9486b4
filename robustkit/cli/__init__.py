"""The command line: the only part of robustkit that speaks.

Results go to standard output; progress, warnings and errors to standard error. What a command
needs beyond its options is imported when it runs, so that help and version answer at once.
"""

from __future__ import annotations

from robustkit.cli import (
    baseline,
    catalog,
    check,
    doctor,
    evaluate,
    history,
    init,
    leaderboard,
    planning,
    report,
    train,
    validate,
)
from robustkit.cli.program import program as main

__all__ = ["main"]

for _module in (
    evaluate,
    check,
    planning,
    init,
    baseline,
    history,
    catalog,
    leaderboard,
    report,
    train,
    doctor,
    validate,
):
    main.add_command(_module.command)
