"""`robustkit leaderboard`: records become a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.core.text import clean, shown_json

_FORMATS = ("table", "csv", "markdown", "latex", "json")


@click.command("leaderboard", short_help="Rank records.")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(_FORMATS), default="table", show_default=True)
@click.option("--output", type=options.OUTPUT, metavar="FILE", help="Write there instead.")
@click.option(
    "--published",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=options.no_option,
    metavar="BOARD|FILE|DIR",
    help="Results that others published: a board that is shipped, such as cifar10-linf, in a table "
    "of its own; or model_info of RobustBench, beside the own.",
)
@debug
def command(
    paths: tuple[Path, ...], layout: str, output: Path | None, published: tuple[Path, ...]
) -> None:
    """Rank the records in PATHS: record files, or folders that are searched for them."""
    from robustkit.leaderboard import formats, rows

    if boards := _boards(published, paths):
        _show_boards(boards, layout, output)
        return
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
    _put(text, output)


def _put(text: str, output: Path | None) -> None:
    from robustkit.core import files

    if output is None:
        result(text)
    else:
        files.write(text.encode(), output)


def _boards(places: tuple[Path, ...], records: tuple[Path, ...]) -> list[str]:
    """Return the shipped boards that are asked for; they stand alone.

    Raises:
        click.UsageError: for what is neither a board nor there, and for a board beside others.
    """
    from robustkit.errors import hint_at
    from robustkit.leaderboard.boards import names

    if not places:
        return []
    known, named = names(), [str(place) for place in places if not place.exists()]
    for name in named:
        if name not in known:
            raise click.UsageError(
                f"--published {name}: expected a board ({', '.join(known)}), or a file or folder "
                f"of RobustBench's model_info, got no such board or path.{hint_at(name, known)}"
            )
    if named and (records or len(named) < len(places)):
        raise click.UsageError(
            f"--published {named[0]} is a board of what others published, and is not mixed with "
            "records or other files: ask for it alone."
        )
    return named


def _show_boards(names: Sequence[str], layout: str, output: Path | None) -> None:
    """Write boards of what others published, a table each."""
    from robustkit.leaderboard import boards

    found = [boards.read(name) for name in names]
    if layout == "table" and output is None:
        stdout().print(boards.to_rich(found))
    elif layout == "table":
        _put(_plain(boards.to_rich(found)), output)
    elif layout == "json":
        _put(shown_json(boards.to_json(found)), output)
    else:
        _put(getattr(boards, f"to_{layout}")(found), output)


def _with_published(
    paths: tuple[Path, ...], layout: str, output: Path | None, places: tuple[Path, ...]
) -> None:
    """Write measured rows, where there are any, and published ones: a table per threat model."""
    from robustkit.leaderboard import beside, formats, published, rows

    found, left_out = published.load(places)
    own = list(chain.from_iterable(rows.ranked(rows.load_records(paths)))) if paths else []
    if left_out:
        say_left_out(left_out)
    groups = beside.tables((line for line, _ in own), found)
    if layout == "json":
        frame = rows.frame([line for line, _ in own])
        whole = json.loads(formats.to_json(frame)) if own else {}
        whole |= {"published_schema": published.SCHEMA, "published": published.to_json(found)}
        text = shown_json(whole | {"beside": beside.to_json(groups)})
    elif layout == "table":
        text = _plain(beside.to_rich(groups))
    elif layout == "csv" and not own:
        text = published.to_csv(found)
    else:
        text = getattr(beside, f"to_{layout}")(groups)
    _put(text, output)


def say_left_out(names: Sequence[str]) -> None:
    """Name the published results that have no place in a table."""
    listed = clean(", ".join(names))
    told = f"left out, as they tell no robust accuracy ({len(names)}): {listed}"
    say(stderr(), "note", told, "yellow")


def _table(frame: Any) -> str:
    from robustkit.leaderboard.formats import to_rich

    return _plain(to_rich(frame))


def _plain(built: Any) -> str:
    console = stdout()
    with console.capture() as capture:
        console.print(built)
    return click.unstyle(capture.get())
