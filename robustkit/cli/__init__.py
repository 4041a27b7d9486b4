"""The command line: the only part of robustkit that speaks.

Enters: what the user typed.
Leaves: results on standard output; progress, warnings and errors on standard error; an exit code.
Read first: program.py, then evaluate/command.py.

What a command needs beyond its options is imported when it runs, so that help and version answer
at once.
"""

from __future__ import annotations

from robustkit.cli import doctor, history, init, leaderboard, power, report, validate
from robustkit.cli import list as catalog
from robustkit.cli.baseline import command as baseline
from robustkit.cli.check import command as check
from robustkit.cli.evaluate import command as evaluate
from robustkit.cli.program import program as main
from robustkit.cli.train import command as train

__all__ = ["main"]

for _module in (
    evaluate,
    check,
    power,
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
