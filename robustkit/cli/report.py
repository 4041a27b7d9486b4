"""`robustkit report`: records become a page, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, stdout
from robustkit.cli.leaderboard import say_left_out
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised
from robustkit.core.files import is_stream
from robustkit.core.text import shown_json

if TYPE_CHECKING:
    from robustkit.leaderboard.report.html import Shown

SCHEMA = "robustkit/report/1"


@dataclass(frozen=True)
class ReportRequest:
    """What was typed; None: not at all."""

    paths: tuple[Path, ...]
    out: Path
    title: str
    figures: Path | None
    formats: tuple[str, ...]
    pictures: int
    data: str | None
    data_root: Path | None
    published: tuple[Path, ...]
    as_json: bool
    quiet: bool


@click.command(
    "report", cls=Supervised, short_help="Write records as a page to read, and as figures."
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=options.OUTPUT,
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="The page: one HTML file that opens offline.",
)
@click.option("--title", default="Robustness report", show_default=True, help="Its heading.")
@click.option(
    "--figures", type=options.OUTPUT_FOLDER, metavar="DIR", help="Write static figures there."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["png", "svg", "pdf"]),
    help="Of the figures; repeatable.  [default: pdf]",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    metavar="N",
    help="Broken points to show for each record.",
)
@click.option(
    "--data",
    metavar="NAME|npz:PATH|folder:PATH|hf-data:FOLDER|module:function",
    help="Clean images, instead of the data set that the records name.",
)
@options.data_root
@options.published
@options.as_json
@options.quiet
@debug
def command(**given: Any) -> None:
    """Write the records in PATHS (files, or folders that are searched for them) as one HTML page.

    It holds the leaderboard, plots, pictures and provenance, and needs no network. Pictures need
    the ledger.sqlite that `robustkit evaluate` leaves beside each record, and the clean images.
    """
    from robustkit.cli.progress import counting
    from robustkit.leaderboard import published
    from robustkit.leaderboard.report.figures import write_figures
    from robustkit.leaderboard.report.html import write_page
    from robustkit.leaderboard.rows import load_records

    asked = ReportRequest(**given)
    if asked.formats and asked.figures is None:
        raise click.UsageError("--format goes with --figures: name the folder that they go to.")
    if options.takes_stdout([asked.out], as_json=asked.as_json):
        asked = replace(asked, quiet=True)
    records, silent = load_records(asked.paths), asked.quiet or asked.as_json
    images: dict[str, Any] = {
        "data_root": asked.data_root, "data": asked.data, "pictures": asked.pictures
    }  # fmt: skip
    beside = published.load(asked.published) if asked.published else ([], [])
    if beside[1] and not silent:
        say_left_out(beside[1])
    with counting("page", len(records), quiet=silent) as advance:
        shown = write_page(
            records, asked.out, title=asked.title, advance=advance, published=beside, **images
        )
    drawn: list[Path] = []
    if asked.figures is not None:
        with counting("figures", None, quiet=silent) as advance:
            kinds = asked.formats or ("pdf",)
            drawn = write_figures(records, asked.figures, formats=kinds, advance=advance, **images)
    if asked.as_json:
        told = {
            "schema": SCHEMA,
            "page": asked.out.as_posix(),
            "bytes": _size(asked.out),
            "figures": [path.as_posix() for path in drawn],
            "rows": [row._asdict() for row in shown],
        }
        result(shown_json(told))
    elif not asked.quiet:
        _tell(asked, shown, len(drawn))


def _size(path: Path) -> int | None:
    """Return the bytes of a page that was written; None: to a device or a pipe."""
    return None if is_stream(path) else path.stat().st_size


def _tell(asked: ReportRequest, shown: Sequence[Shown], figures: int) -> None:
    console = stdout()
    size = _size(asked.out)
    told = "" if size is None else f" ({size / 2**20:.1f} MiB)"
    console.out(f"page: {asked.out}{told}", highlight=False)
    for reason in dict.fromkeys(row.reason for row in shown if row.reason):
        names = [row.defense for row in shown if row.reason == reason]
        many = f" ({len(names)} records)" if len(names) > 1 else ""
        listed = ", ".join(dict.fromkeys(names))
        console.out(f"no pictures of {listed}{many}: {reason}", highlight=False)
    if asked.figures is not None:
        console.out(f"figures: {asked.figures} ({figures} files)", highlight=False)
