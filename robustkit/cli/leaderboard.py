"""`robustkit leaderboard`: records become a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.core.text import shown_json

_FORMATS = ("table", "csv", "markdown", "latex", "json")


@click.command("leaderboard", short_help="Rank records.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(_FORMATS), default="table", show_default=True)
@click.option("--output", type=options.OUTPUT, metavar="FILE", help="Write there instead.")
@click.option(
    "--published",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Results that others published: model_info of RobustBench. In tables of their own.",
)
@debug
def command(
    paths: tuple[Path, ...], layout: str, output: Path | None, published: tuple[Path, ...]
) -> None:
    """Rank the records in PATHS: record files, or folders that are searched for them."""
    from robustkit.core import files
    from robustkit.leaderboard import formats, rows

    if published:
        _with_published(paths, layout, output, published)
        return
    if not paths:
        raise click.UsageError("expected PATHS of records, or --published.")
    frame = rows.table(rows.load_records(paths))
    if layout == "table" and output is None:
        stdout().print(formats.to_rich(frame))
        return
    text = _table(frame) if layout == "table" else getattr(formats, f"to_{layout}")(frame)
    if output is None:
        result(text)
    else:
        files.write(text.encode(), output)


def _with_published(
    paths: tuple[Path, ...], layout: str, output: Path | None, places: tuple[Path, ...]
) -> None:
    """Write measured rows, where there are any, and published ones, never in one table."""
    from robustkit.core import files
    from robustkit.errors import UsageError
    from robustkit.leaderboard import formats, published, rows

    if paths and layout == "csv":
        raise UsageError(
            "a CSV holds one table: give records or --published, not both, or another --format."
        )
    found, left_out = published.load(places)
    frame = rows.table(rows.load_records(paths)) if paths else None
    if left_out:
        say(stderr(), "note", f"{left_out} files tell no robust accuracy: left out", "yellow")
    if layout == "json":
        whole = json.loads(formats.to_json(frame)) if frame is not None else {}
        whole |= {"published_schema": published.SCHEMA, "published": published.to_json(found)}
        text = shown_json(whole)
    elif layout == "table":
        text = _plain(published.to_rich(found))
        text = text if frame is None else f"{_table(frame)}\n{text}"
    else:
        text = getattr(published, f"to_{layout}")(found)
        text = text if frame is None else getattr(formats, f"to_{layout}")(frame) + "\n" + text
    if output is None:
        result(text)
    else:
        files.write(text.encode(), output)


def _table(frame: Any) -> str:
    from robustkit.leaderboard.formats import to_rich

    return _plain(to_rich(frame))


def _plain(built: Any) -> str:
    console = stdout()
    with console.capture() as capture:
        console.print(built)
    return click.unstyle(capture.get())
