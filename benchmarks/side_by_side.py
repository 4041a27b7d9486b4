"""`robustkit evaluate` with several workers beside one: several models, or the points of one.

Both ways run in turn, each time as a command of its own with a fresh folder. The printed ratio is
the median of the ratios of neighbours. Verdicts, passes and distances must be those of one after
the other with as many threads as each of several has: the number of threads may change how sums are
rounded.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from robustkit.record.record import Record, load

MODELS = ("pgd_at", "trades", "doubly_robust", "undefended", "ibp", "mixednuts(beta=90.0)")


def timed(asked: list[str], workers: int, threads: int, out: Path) -> float:
    """Run the command; return its seconds, start-up included."""
    command = [sys.executable, "-m", "robustkit", "evaluate", *asked, "--quiet"]
    limits = ["--workers", str(workers), "--threads", str(threads)]
    started = time.monotonic()
    subprocess.run([*command, "--device", "cpu", *limits, "--out", str(out)], check=True)
    return time.monotonic() - started


def facts(record: Record) -> list[Any]:
    """Return all that must not depend on what runs beside a model."""
    points = record.points
    stages = [(s.attack, s.entered, s.broken, s.forwards, s.backwards) for s in record.stages]
    verdicts = [points.index, points.predicted, points.status, points.attack, points.distance]
    return [record.weights, record.clean, record.robust, record.forwards, stages, verdicts]


@click.command()
@click.argument("models", nargs=-1)
@click.option("--n", default=100, show_default=True, help="Points of each model.")
@click.option("--workers", default=min(4, os.cpu_count() or 1), show_default=True)
@click.option("--suite", default="quick", show_default=True)
@click.option("--runs", default=5, show_default=True, help="Of each way, in turn.")
def main(models: tuple[str, ...], n: int, workers: int, suite: str, runs: int) -> None:
    """Print the times, their ratios, and the models whose results differ (exit code 1)."""
    models = models or MODELS
    asked = [*models, "--n", str(n), "--suite", suite]
    times: list[tuple[float, float]] = []
    different, cores = set[str](), os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as place:
        room = Path(place)
        timed(asked, 1, max(1, cores // workers), room / "same")
        for run in range(runs):
            alone = timed(asked, 1, cores, room / f"alone{run}")
            both = room / f"both{run}"
            times.append((alone, timed(asked, workers, cores, both)))
            for path in (room / "same").glob("*/record.json"):
                one, two = load(path), load(both / path.parent.name / "record.json")
                different |= {one.defense} if facts(one) != facts(two) else set()
    table = Table("one worker", f"{workers} workers", "ratio")
    ratios = [alone / both for alone, both in times]
    for (before, after), ratio in zip(times, ratios, strict=True):
        table.add_row(f"{before:.1f} s", f"{after:.1f} s", f"{ratio:.2f}")
    table.add_row("", "median", f"{statistics.median(ratios):.2f}")
    console = Console()
    console.print(f"{len(models)} models, n = {n}, {suite}, {os.cpu_count()} cores", table)
    console.print(f"results differ: {', '.join(sorted(different)) or 'of no model'}")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
