"""`robustkit doctor`: the environment, what is broken in it, and the cure."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustkit.cli import options
from robustkit.cli.program import debug
from robustkit.cli.terminal import result, stdout

SCHEMA = "robustkit/doctor/1"
_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}


@click.command("doctor", short_help="Show the environment and what is broken in it.")
@options.data_root
@options.as_json
@debug
def command(data_root: Path | None, as_json: bool) -> int:
    """Show versions, devices and data, and what is broken, each with its cure.

    Exit code 1 when something that is installed is broken.
    """
    from rich.table import Table
    from rich.text import Text

    from robustkit.doctor import examine

    findings = examine(data_root)
    healthy = all(finding.state != "broken" for finding in findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        result(json.dumps({"schema": SCHEMA, "healthy": healthy, "findings": rows}, indent=2))
        return 0 if healthy else 1
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, state, detail, cure in findings:
        told = Text(detail) if not cure else Text.assemble(detail, "\ncure: ", (cure, "bold"))
        table.add_row(Text(state, _STYLES[state]), Text(name), told)
    stdout().print(table)
    return 0 if healthy else 1
