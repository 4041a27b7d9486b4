"""The first minute: plain `robustkit evaluate`, beside another build, and the README's account.

    python -m benchmarks.first_minute --against ../other-checkout --runs 3
    python -m benchmarks.first_minute --write     # the table and the time in README.md

The builds take turns, each run in a process and a folder of its own, start-up included. `--against`
takes a checkout, run by `--python`, or the python of an environment that has a build installed.
Printed are the wall times with the median of the ratios, and by model the seconds and both robust
accuracies. Run it on idle cores: a build that runs models beside each other needs them.
"""

from __future__ import annotations

import csv
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).parents[1]
_WIDTH = "132"  # columns of the README's table
_BLOCK = re.compile(r"(?<=```console\n\$ robustkit evaluate\n).*?(?=```)", re.DOTALL)
_TIME = re.compile(r"It takes about .*? on two CPU cores")


class Build(NamedTuple):
    """What runs robustkit: an interpreter, and the checkout it imports from, if it is told one."""

    name: str
    python: str
    checkout: Path | None


class Look(NamedTuple):
    """One first look: wall time, what was printed, and (seconds, robust) by model."""

    wall: float
    printed: str
    rows: dict[str, tuple[float, float]]


def look(build: Build, words: Sequence[str]) -> Look:
    """Run `robustkit evaluate` in an empty folder."""
    path = {} if build.checkout is None else {"PYTHONPATH": str(build.checkout)}
    with tempfile.TemporaryDirectory() as room:
        started = time.perf_counter()
        done = subprocess.run(
            [build.python, "-m", "robustkit", "evaluate", *words],
            cwd=room, env={**os.environ, **path, "COLUMNS": _WIDTH}, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        wall = time.perf_counter() - started
        (table,) = Path(room).glob("robustkit-runs/*/leaderboard.csv")
        with table.open(encoding="utf-8", newline="") as file:
            rows = {
                row["defense"]: (float(row["seconds"]), float(row["robust"]))
                for row in csv.DictReader(file)
            }
    return Look(wall, done.stdout, rows)


def show(console: Console, builds: Sequence[Build], looks: Sequence[Sequence[Look]]) -> None:
    """Print wall times, and by model the medians of seconds and robust accuracy."""
    for build, made in zip(builds, looks, strict=True):
        walls = ", ".join(f"{one.wall:.1f}" for one in made)
        middle = statistics.median(one.wall for one in made)
        console.print(f"{build.name}: {walls} s, median {middle:.1f} s")
    if len(builds) > 1:
        pairs = zip(*looks, strict=True)
        ratio = statistics.median(one.wall / other.wall for one, other in pairs)
        console.print(f"ratio {builds[0].name} / {builds[1].name}, median: {ratio:.2f}")
    columns = [f"{build.name}: {what}" for build in builds for what in ("seconds", "robust")]
    table = Table("model", *columns)
    for model in looks[0][0].rows:
        cells = []
        for made in looks:
            seconds, robust = (
                statistics.median(one.rows[model][place] for one in made) for place in (0, 1)
            )
            cells += [f"{seconds:.1f}", f"{robust:.3f}"]
        table.add_row(model, *cells)
    console.print(table)


def rewritten(text: str, looks: Sequence[Look]) -> str:
    """Return the README with the table of the last look and the median of the times.

    Raises:
        click.ClickException: where the README has no such block or sentence.
    """
    middle = statistics.median(one.wall for one in looks)
    printed = "".join(f"{line.rstrip()}\n" for line in looks[-1].printed.splitlines())
    for pattern, new in (
        (_BLOCK, printed),
        (_TIME, f"It takes about {middle:.0f} seconds on two CPU cores"),
    ):
        text, found = pattern.subn(new.replace("\\", r"\\"), text)
        if found != 1:
            raise click.ClickException(
                f"README.md: expected one match of {pattern.pattern!r}, got {found}. Restore the "
                "block of `robustkit evaluate` and the sentence with its time."
            )
    return text


@click.command()
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="The other build.")
@click.option("--python", default=sys.executable, help="Runs a checkout given by --against.")
@click.option("--runs", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--option", "words", multiple=True, help="Passed on, such as --option=--n=20.")
@click.option("--write", is_flag=True, help="Rewrite the table and the time in README.md.")
def main(against: Path | None, python: str, runs: int, words: tuple[str, ...], write: bool) -> None:
    """Print the times of the first minute."""
    if write and words:
        raise click.UsageError("--write takes the plain command: leave --option out.")
    builds = [Build("this", sys.executable, _ROOT)]
    if against is not None:
        path = against.absolute()  # an environment's python is a link, and must stay one
        other = (python, path) if path.is_dir() else (str(path), None)
        builds.append(Build("other", *other))
    looks: list[list[Look]] = [[] for _ in builds]
    for _ in range(runs):
        for build, made in zip(builds, looks, strict=True):
            made.append(look(build, words))
    show(Console(), builds, looks)
    if write:
        readme = _ROOT / "README.md"
        text = rewritten(readme.read_text(encoding="utf-8"), looks[0])
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
