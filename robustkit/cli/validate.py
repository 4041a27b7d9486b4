"""`robustkit validate`: the conformance checks on a third party's pack."""

from __future__ import annotations

import contextlib
import sys

import click

from robustkit.cli import options
from robustkit.cli.console import result, stdout
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised
from robustkit.core.text import shown_json

SCHEMA = "robustkit/validate/1"


@click.command("validate", cls=Supervised, short_help="Check a pack of attacks and defenses.")
@click.argument("pack", metavar="PACKAGE_OR_FILE")
@options.as_json
@options.quiet
@debug
def command(pack: str, as_json: bool, quiet: bool) -> int:
    """Check what PACKAGE_OR_FILE registers: attacks, defenses, data sets and suites.

    It is a Python file, an installed distribution with an entry point in the group
    robustkit.packs, or a module. Its code runs. Exit codes: 0 every check passed, 1 one did not,
    2 there is nothing to check.
    """
    from rich.text import Text

    from robustkit.cli.progress import counting
    from robustkit.core.terminal_table import TerminalTable
    from robustkit.integrations.conformance import find, validate

    results = []
    with contextlib.redirect_stdout(sys.stderr):  # a user's code may print; results stay alone
        entries = find(pack)
        with counting("checks", None, quiet=quiet or as_json) as advance:
            for found in validate(entries):
                results.append(found)
                advance(f"{found.name}: {found.check}")
    sound = all(found.passed for found in results)
    if as_json:
        rows = [found._asdict() for found in results]
        result(shown_json({"schema": SCHEMA, "sound": sound, "checks": rows}))
        return 0 if sound else 1
    table = TerminalTable("", "subject", "check", shown=False)
    for kind, name, check, passed, detail in results:
        mark = Text("passed", "green") if passed else Text("failed", "bold red")
        told = f"{check}: {detail}" if detail else check
        table.add_row(mark, f"{kind} {name}", told)
    if not quiet or not sound:
        stdout().print(table)
        passed_count = sum(found.passed for found in results)
        stdout().print(f"{passed_count} of {len(results)} checks passed", highlight=False)
    return 0 if sound else 1
