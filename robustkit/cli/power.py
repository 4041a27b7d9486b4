"""`robustkit plan`: how many points a claim or a gate needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, stdout
from robustkit.cli.program import debug
from robustkit.core.text import shown_json

SCHEMA = "robustkit/plan/1"
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@dataclass(frozen=True)
class PlanRequest:
    """What was typed; None: not at all."""

    effect: float
    power: float
    confidence: float
    tolerance: float
    discordance: float | None
    like: tuple[Path, Path] | None
    accuracy: float | None
    total: int
    as_json: bool


@click.command("plan", short_help="Say how many points a claim or a gate needs.")
@click.option(
    "--effect", type=_SHARE, required=True, metavar="X",
    help="True difference between two robust accuracies, such as 0.02.",
)  # fmt: skip
@click.option("--power", type=_SHARE, default=0.9, show_default=True, metavar="X",
              help="Probability to find it, and to pass an unchanged model.")  # fmt: skip
@click.option("--confidence", type=_SHARE, default=0.95, show_default=True, metavar="X")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1, max_open=True), default=0.01, show_default=True,
    metavar="X", help="Of the gate.",
)  # fmt: skip
@click.option(
    "--discordance", type=_SHARE, metavar="X",
    help="Share of the points on which the models differ; effect + 0.03 by default.",
)  # fmt: skip
@click.option(
    "--like", nargs=2, type=click.Path(path_type=Path), metavar="RECORD RECORD",
    help="Take the discordance and the accuracy from two records on the same points.",
)  # fmt: skip
@click.option("--accuracy", type=_SHARE, metavar="X",
              help="Of the better model, for unpaired tests; 0.5 by default.")  # fmt: skip
@click.option("--n", "total", type=click.IntRange(2, 1_000_000), default=10_000, show_default=True,
              metavar="N", help="Points of the baseline, for the sequential gate.")  # fmt: skip
@options.as_json
@debug
def command(**given: Any) -> None:
    """Say how many points it takes to find a difference, or to gate on it.

    Paired tests see the same points twice and need far fewer. The rows of the sequential gate are
    simulated: half of the runs stop within the first number of points, nine in ten within the
    second.
    """
    from robustkit.core.stats.power import needs

    asked = PlanRequest(**given)
    effect, discordance, accuracy = asked.effect, asked.discordance, asked.accuracy
    if asked.like:
        seen = _look(*asked.like)
        discordance = discordance or max(seen[0], effect)
        accuracy = accuracy or max(seen[1], effect)
    found = needs(
        effect,
        power=asked.power,
        confidence=asked.confidence,
        tolerance=asked.tolerance,
        discordance=discordance,
        accuracy=accuracy or max(0.5, effect),
        total=asked.total,
    )
    if asked.as_json:
        rows = [need._asdict() for need in found]
        result(shown_json({"schema": SCHEMA, "effect": effect, "needs": rows}))
        return
    from robustkit.core.terminal_table import TerminalTable

    table = TerminalTable("purpose", "test", "points", whole=("points",), right=("points",))
    for need in found:
        points = "out of reach" if need.points is None else f"{need.points:,}"
        if need.usual:
            points = f"{need.usual[0]:,} – {need.usual[1]:,} of {asked.total:,}"
        table.add_row(need.purpose, need.test, points)
    stdout().print(table)


def _look(a: Path, b: Path) -> tuple[float, float]:
    """Return the discordance of two records, and the accuracy of the better one."""
    from robustkit.errors import UsageError
    from robustkit.record.record import load

    first, second = load(a), load(b)
    one, other = first.outcomes, second.outcomes
    if first.data.digest != second.data.digest or one.keys() != other.keys():
        raise UsageError(f"{a} and {b} are about different points: they cannot be paired.")
    differ = sum(one[point] != other[point] for point in one)
    return differ / len(one), max(first.robust, second.robust)
