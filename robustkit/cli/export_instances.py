"""`robustkit export-instances`: what a record leaves undecided, for any verifier."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised


@click.command(
    "export-instances", cls=Supervised, short_help="Undecided points as ONNX and VNN-LIB."
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--out", type=options.OUTPUT_FOLDER, required=True, metavar="DIR", help="Where to.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds for an instance, as instances.csv says them.",
)
@options.recorded
@options.threads
@options.quiet
@debug
def command(
    record: Path, out: Path, timeout: float, threads: int | None, quiet: bool, **given: Any
) -> None:
    """Write the points of RECORD that are neither broken nor proved, to audit its row.

    DIR then holds the network (onnx/), a property for each point (vnnlib/) and instances.csv, as
    the verification competition has them; `robustkit verify DIR` answers them too.
    """
    from robustkit.cli.verify_record import opened
    from robustkit.gate.export_instances import export_instances

    options.use_threads(threads)
    with contextlib.redirect_stdout(sys.stderr):  # a user's code may print
        baseline, model, data = opened(record, "export-instances", **given)
        found = export_instances(baseline, model, data, out, timeout)
    if not quiet:
        n = baseline.record.n
        result(f"{len(found.points)} of {n} points are undecided: {found.path}")
