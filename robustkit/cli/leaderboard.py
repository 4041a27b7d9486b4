"""`robustkit leaderboard`: records become a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.program import debug
from robustkit.cli.terminal import result, stdout

_FORMATS = ("table", "csv", "markdown", "latex", "json")


@click.command("leaderboard", short_help="Rank records.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(_FORMATS), default="table", show_default=True)
@click.option("--output", type=options.FILE, metavar="FILE", help="Write there instead.")
@debug
def command(paths: tuple[Path, ...], layout: str, output: Path | None) -> None:
    """Rank the records in PATHS: record files, or folders that are searched for them."""
    from robustkit import leaderboard

    frame = leaderboard.table(leaderboard.load_records(paths))
    if layout == "table" and output is None:
        stdout().print(leaderboard.to_rich(frame))
        return
    text = _table(frame) if layout == "table" else getattr(leaderboard, f"to_{layout}")(frame)
    if output is None:
        result(text)
    else:
        output.write_text(text, encoding="utf-8", newline="\n")


def _table(frame: Any) -> str:
    from robustkit.leaderboard import to_rich

    console = stdout()
    with console.capture() as capture:
        console.print(to_rich(frame))
    return click.unstyle(capture.get())
