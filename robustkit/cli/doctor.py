"""`robustkit doctor`: the environment, what is broken in it, and the cure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.core.text import shown_json

if TYPE_CHECKING:
    from robustkit.cli.doctor_finding import Finding

SCHEMA = "robustkit/doctor/1"
_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}


@click.command("doctor", short_help="Show the environment and what is broken in it.")
@options.data_root
@click.option("--fix", is_flag=True, help="Cure with pip what can be cured without a choice.")
@options.as_json
@debug
def command(data_root: Path | None, fix: bool, as_json: bool) -> int:
    """Show versions, devices and data, and what is broken, each with its cure.

    --fix runs those cures that are one pip command, says each before it runs, and looks again.
    Exit code 1 when something that is installed is broken.
    """
    from rich.table import Table
    from rich.text import Text

    from robustkit.cli.environment import examine

    findings = examine(data_root)
    if fix and _repaired(findings):
        findings = examine(data_root)
    healthy = all(finding.state != "broken" for finding in findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        result(shown_json({"schema": SCHEMA, "healthy": healthy, "findings": rows}))
        return 0 if healthy else 1
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, state, detail, cure, _ in findings:
        told = Text(detail) if not cure else Text.assemble(detail, "\ncure: ", (cure, "bold"))
        table.add_row(Text(state, _STYLES[state]), Text(name), told)
    stdout().print(table)
    return 0 if healthy else 1


def _repaired(findings: list[Finding]) -> bool:
    """Run the cures that pip can do, one after the other; tell whether there was one."""
    from robustkit.cli.environment import repair

    curable = [finding for finding in findings if finding.fix]
    for finding in curable:
        say(stderr(), "fix", f"{finding.name}: {finding.detail}; running {finding.cure}", "yellow")
        if trouble := repair(finding):
            say(stderr(), "error", f"{finding.cure} failed: {trouble}", "bold red")
    if not curable:
        say(stderr(), "fix", "nothing here is cured by a pip command", "yellow")
    return bool(curable)
