"""The command line: the only part of robustkit that speaks.

Enters: what the user typed.
Leaves: results on standard output; progress, warnings and errors on standard error; an exit code.
Read first: program.py, then evaluate/command.py.

What a command needs beyond its options is imported when it runs, so that help and version answer
at once. Commands that import a user's code run in a child process; see supervisor.py.
"""

from __future__ import annotations

from robustkit.cli.baseline.command import command as _baseline
from robustkit.cli.check.command import command as _check
from robustkit.cli.diagnose import command as _diagnose
from robustkit.cli.doctor import command as _doctor
from robustkit.cli.evaluate.command import command as _evaluate
from robustkit.cli.export_card import export as _export_card
from robustkit.cli.export_card import push as _push
from robustkit.cli.export_instances import command as _export_instances
from robustkit.cli.history import command as _history
from robustkit.cli.init import command as _init
from robustkit.cli.leaderboard import command as _leaderboard
from robustkit.cli.list import command as _catalog
from robustkit.cli.power import command as _power
from robustkit.cli.program import program
from robustkit.cli.report import command as _report
from robustkit.cli.supervisor import main
from robustkit.cli.train.command import command as _train
from robustkit.cli.validate import command as _validate
from robustkit.cli.verify.command import command as _verify
from robustkit.cli.verify.command import supports as _supports
from robustkit.cli.verify_proof import command as _verify_proof
from robustkit.cli.verify_record import command as _verify_record

__all__ = ["main"]

for _command in (
    _evaluate,
    _check,
    _power,
    _init,
    _baseline,
    _history,
    _catalog,
    _leaderboard,
    _report,
    _train,
    _diagnose,
    _doctor,
    _validate,
    _verify_record,
    _verify,
    _supports,
    _export_instances,
    _export_card,
    _push,
    _verify_proof,
):
    program.add_command(_command)
