"""The command line: the only part of robustkit that speaks.

Results go to standard output; progress, warnings and errors to standard error. What a command
needs beyond its options is imported when it runs, so that help and version answer at once.
"""

from __future__ import annotations

from robustkit.cli.catalog import catalog
from robustkit.cli.doctor import doctor
from robustkit.cli.evaluate import evaluate
from robustkit.cli.leaderboard import leaderboard
from robustkit.cli.program import program
from robustkit.cli.train import train

__all__ = ["main"]

main = program
for _command in (evaluate, catalog, leaderboard, train, doctor):
    main.add_command(_command)
