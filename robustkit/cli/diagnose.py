"""`robustkit diagnose --reliance`: which parts of an input the answers of a model hang on."""

from __future__ import annotations

from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.program import debug
from robustkit.cli.supervisor import Supervised
from robustkit.core.text import shown_json

SCHEMA = "robustkit/reliance/1"


@click.command("diagnose", cls=Supervised, short_help="Show what a model's answers hang on.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--reliance", is_flag=True, help="Swap parts of the inputs between points.")
@click.option("--data", default="bundled", show_default=True, metavar="NAME|npz:PATH|...",
              help="As for evaluate.")  # fmt: skip
@options.data_root
@click.option("--n", type=click.IntRange(min=2), default=200, show_default=True, metavar="N",
              help="Points, drawn by --seed.")  # fmt: skip
@click.option("--block", "blocks", multiple=True, metavar="NAME=0-9,15",
              help="Coordinates, in place of the ready blocks; repeatable.")  # fmt: skip
@click.option("--masks", type=options.FILE, metavar="FILE.npz",
              help="Likewise: masks of bool, one block for each.")  # fmt: skip
@click.option("--member", "parts", multiple=True, metavar="NAME",
              help="A surrogate or part.PATH of MODEL, as a member; repeatable.")  # fmt: skip
@click.option("--permutations", type=click.IntRange(1, 100), default=5, show_default=True,
              metavar="P", help="Of the points, for every block.")  # fmt: skip
@options.seed
@click.option("--out", type=options.OUTPUT_FOLDER, metavar="DIR",
              help="For reliance.json and reliance.csv; the same command resumes.")  # fmt: skip
@options.threads
@options.fresh
@options.as_json
@options.quiet
@debug
def command(**given: Any) -> None:
    """Replace one part of every input by that of another point, and see what accuracy is left.

    One permutation of the points exchanges a whole block at once: a half or a cell of the image, a
    channel, its colour statistics, its low or high frequencies, a feature of a table, or what
    --block and --masks name. Reliance is the share of the accuracy above guessing that is lost.
    Several models, or the members of an ensemble, are compared.
    """
    from robustkit.cli.reliance_run import Request, run

    as_json, quiet = given.pop("as_json"), given.pop("quiet")
    if not given.pop("reliance"):
        raise click.UsageError("say what to diagnose: --reliance.")
    options.use_threads(given.pop("threads"))
    found, told = run(Request(**given), quiet=quiet)
    if as_json:
        result(shown_json({"schema": SCHEMA, **told}))
    elif not quiet:
        _show(found)


def _show(found: Any) -> None:
    from robustkit.core.terminal_table import TerminalTable

    numbers = ("accuracy", "reliance [95%]")
    table = TerminalTable("model", "block", *numbers, whole=numbers, lined=True)
    for name, accuracy in zip(found.names, found.accuracy, strict=True):
        table.add_row(name, "(none)", f"{accuracy:.3f}", "")
        for row in (row for row in found.rows if row.member == name):
            ends = f"{row.reliance:.3f} [{row.low:.3f}, {row.high:.3f}]"
            table.add_row("", row.block, f"{row.accuracy:.3f}", ends)
    stdout().print(table)
    errors = found.common_errors
    for pair, cosine in found.similarity.items():
        stdout().out(
            f"{' and '.join(pair)}: cosine {cosine:.3f}, common errors {errors[pair]:.3f}",
            highlight=False,
        )
    if found.verdict:
        say(stderr(), "verdict", f"{found.verdict}.", "bold")
