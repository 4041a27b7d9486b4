"""`robustkit history`: robust accuracy by commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, stdout
from robustkit.cli.program import debug
from robustkit.core.text import with_interval


@click.command("history", short_help="Show robust accuracy by commit.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(["table", "csv"]), default="table",
              show_default=True)  # fmt: skip
@click.option("--output", type=options.OUTPUT, metavar="FILE", help="Write the CSV there instead.")
@click.option(
    "--plot", "picture", type=options.OUTPUT, metavar="FILE",
    help="Draw it, as .png, .svg or .pdf (extra `report`).",
)  # fmt: skip
@debug
def command(
    paths: tuple[Path, ...], layout: str, output: Path | None, picture: Path | None
) -> None:
    """Show the records in PATHS, oldest first, each with its change against the one before."""
    from robustkit.core import files
    from robustkit.leaderboard.formats import to_csv
    from robustkit.leaderboard.history import history, plot
    from robustkit.leaderboard.rows import load_records

    silent = options.takes_stdout([output, picture])
    frame = history(load_records(paths))
    if picture is not None:
        plot(frame, picture)
    if output is not None:
        files.write(to_csv(frame).encode(), output)
    elif layout == "csv":
        result(to_csv(frame))
    elif not silent:
        stdout().print(_table(frame))


def _table(frame: Any) -> Any:
    from robustkit.core.terminal_table import TerminalTable

    table = TerminalTable(
        *("started", "commit", "defense", "data", "threat", "suite", "n", "robust [95%]"),
        *("change", "p", "reason"),
        least=("p", "threat", "data", "suite", "n", "reason", "commit"),
        whole=("started", "commit", "n", "robust [95%]", "change", "p"),
    )
    for line in frame.itertuples():
        interval = with_interval(line.robust, line.robust_low, line.robust_high)
        change = "" if line.change != line.change or line.change is None else f"{line.change:+.4f}"
        p = "" if line.p != line.p or line.p is None else f"{line.p:.3g}"
        cells = (
            *(line.started[:10], line.commit[:8], line.defense, line.data, line.threat, line.suite),
            *(str(line.n), interval, change, p, line.reason),
        )
        table.add_row(*cells)
    return table
