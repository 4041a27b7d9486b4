"""Counterexamples that we planted: which searches find them, and is one ever proved away?

    python -m benchmarks.planted --out planted               # half an hour on a core
    python -m benchmarks.planted --out planted --report      # what is there, as a table
    python -m benchmarks.planted --out planted --networks maze-4 --columns "fast;complete"

Ten small networks on bundled images hold 50 points with an adversarial input that we put there.
Networks are stored as they are made, and every evaluation is a folder under --out: what is there is
not made again. README.md in this folder says how the plants are hidden.

Exits with 1 when anything proves a point robust; with 2 when there is nothing to report.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.options import names_of, nothing_run
from benchmarks.planted.run import ALL, NETWORKS, findings, run, shares
from benchmarks.planted.table import account, markdown, rows
from robustkit.errors import RobustkitError


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Networks and runs.")
@click.option("--networks", default="", callback=names_of(NETWORKS),
              help=f"Of {', '.join(NETWORKS)}, by commas; by default all.")  # fmt: skip
@click.option("--columns", default="", callback=names_of(ALL, ";"),
              help=f"Of {'; '.join(ALL)}, by semicolons; by default all.")  # fmt: skip
@click.option("--report", is_flag=True, help="Make and run nothing; show what is there.")
@click.option("--threads", type=int, default=1, show_default=True)
def main(out: Path, networks: list[str], columns: list[str], report: bool, threads: int) -> None:
    """Make networks with planted counterexamples, search for them, and try to prove them away."""
    torch.set_num_threads(threads)
    console = Console(stderr=True)
    try:
        if not report:
            run(out, networks, columns, lambda text: console.print(text, highlight=False))
        found, starts = findings(out), shares(out)
    except RobustkitError as error:
        raise click.ClickException(str(error)) from None
    if report and not found:
        raise nothing_run("finished evaluations", out)
    click.echo(markdown(rows(found)))
    click.echo("\n" + "\n".join(f"- {line}" for line in account(found, starts)))
    sys.exit(any(finding.proved for finding in found.values()))


if __name__ == "__main__":
    main()
