"""How the time of what reads many records, or many points, grows: n, 2n and 4n, and the ratios.

    python -m benchmarks.growth              # up to 1,000 records and 50,000 points
    python -m benchmarks.growth --records 25 --points 500 --check

Each time is that of a whole process, start-up included. The records are copies of one record of
1,000 points, in each of which other points are misclassified, so that every pair of rows is tested.
The points are those of a linear model on random images, attacked once: in one go, in parts (as
under a budget or by the gate), and then `robustkit check` compares the finished run with itself,
which costs no pass. Ratios are of the times without that of the same command on next to nothing,
where two seconds are the least that tells from noise: linear growth doubles them. The target of
`check` is without it as well: what it takes after an evaluation.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from robustkit.record.record import Record, load, save

_SOURCE = Path(__file__).parents[1] / "leaderboards" / "records"
_NET = """
import torch
from torch import nn

def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
"""
_STEPS = (1, 2, 4)
_LEAST = 3  # records, or points of a class, whose time is that of start-up
_TARGETS = {"leaderboard": 5.0, "report": 15.0, "check": 2.0}  # seconds at 1,000, 500, 50,000
_MOST_BYTES = 5e6  # of the report
_NOISE = 2.0  # seconds by which the start of a process varies
_RATIO = 2.2  # of n log n at these sizes, with some room for noise


class Row(NamedTuple):
    """One command at n, 2n and 4n: its seconds, those of start-up, and bytes written."""

    command: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    start: float
    size: int = 0

    @property
    def bare(self) -> list[float]:
        """The seconds without those of start-up."""
        return [each - self.start for each in self.seconds]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in pairwise(max(each, _NOISE) for each in self.bare)]

    @property
    def missed(self) -> list[str]:
        """What is not reached, in words."""
        last = self.bare[-1] if self.command == "check" else self.seconds[-1]
        late = last > _TARGETS.get(self.command, math.inf)
        found = ["time"] * late + ["size"] * (self.size > _MOST_BYTES)
        return found + ["growth"] * (max(self.ratios) > _RATIO)


def seconds(*words: object) -> float:
    """Run the command line, and return how long it took."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "robustkit", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr.strip()}")
    return time.perf_counter() - started


def others(record: Record, number: int) -> Iterator[Record]:
    """Make records like `record`, each with other points misclassified."""
    rng = np.random.default_rng(0)
    classes = record.data.classes
    for place in range(number):
        told = record.points.model_dump()
        for i in np.flatnonzero(rng.random(record.n) < 0.3 * place / number):
            told["status"][i], told["attack"][i], told["distance"][i] = "misclassified", None, None
            told["predicted"][i] = (told["label"][i] + 1) % classes
        raw = record.model_dump(by_alias=True, exclude={"digest", "ledger"})
        yield Record(**(raw | {"points": told, "defense": f"model {place}"}))


def records(folder: Path, number: int) -> list[Row]:
    """Time what reads `number` records, twice and four times as many."""
    source = next(r for r in map(load, sorted(_SOURCE.glob("*.json"))) if r.n == 1000)
    for place, record in enumerate(others(source, 4 * number)):
        save(record, folder / f"{place:05d}" / "record.json")
    files = sorted(folder.glob("*/record.json"))
    page = folder / "report.html"
    rows = []
    for command, sizes, more in (
        ("leaderboard", [k * number for k in _STEPS], ["--format", "csv"]),
        ("report", [k * number // 2 for k in _STEPS], ["--quiet", "--out", page]),
    ):
        start, *took = (_reading(folder, files[:size], command, more) for size in (_LEAST, *sizes))
        rows.append(Row(command, tuple(sizes), tuple(took), start))
    return [rows[0], rows[1]._replace(size=page.stat().st_size)]


def _reading(folder: Path, files: list[Path], command: str, more: Sequence[object]) -> float:
    """Time a command on records of a folder of their own: so many names are too long to type."""
    with tempfile.TemporaryDirectory(dir=folder) as room:
        for file in files:
            place = Path(room) / file.parent.name
            place.mkdir()
            (place / file.name).write_bytes(file.read_bytes())
        return seconds(command, room, *more)


def points(folder: Path, number: int) -> list[Row]:
    """Time runs over `number` points, in one go and in parts, and `check` of one that is over."""
    (folder / "net.py").write_text(_NET)
    sizes = [k * number // 4 for k in _STEPS]
    took: dict[str, list[float]] = {"evaluate": [], "evaluate in parts": [], "check": []}
    for size in (_LEAST, *sizes):
        x = np.random.default_rng(0).random((size, 1, 4, 4), dtype=np.float32)
        data, run = folder / f"{size}.npz", folder / f"run-{size}"
        np.savez(data, x=x, y=np.arange(size) % 3, layout="nchw")
        command = ["evaluate", f"{folder / 'net.py'}:make", "--data", f"npz:{data}", "--threat",
                   "linf:0.01", "--attack", "fgsm", "--quiet"]  # fmt: skip
        took["evaluate"].append(seconds(*command, "--out", run))
        paced = ["--max-forwards", 10**9, "--out", folder / f"paced-{size}"]
        took["evaluate in parts"].append(seconds(*command, *paced))
        (record,) = run.rglob("record.json")
        took["check"].append(seconds("check", record, "--baseline", record))
    return [Row(name, tuple(sizes), tuple(each), start) for name, (start, *each) in took.items()]


@click.command()
@click.option("--records", "number", default=250, show_default=True, help="n of the records.")
@click.option("--points", "most", default=50_000, show_default=True, help="4n of the points.")
@click.option("--check", is_flag=True, help="Fail where a target is missed.")
def main(number: int, most: int, check: bool) -> None:
    """Print the times, the ratios and the targets."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        rows = [*records(folder / "records", number), *points(folder, most)]
    table = Table("command", "n, 2n, 4n", "start-up", "seconds", "ratios without start-up",
                  "target at 4n", "verdict")  # fmt: skip
    for row in rows:
        target, size = _TARGETS.get(row.command), f", {row.size / 1e6:.1f} MB" if row.size else ""
        after = " after start-up" if row.command == "check" else ""
        table.add_row(
            row.command, ", ".join(f"{size:,}" for size in row.sizes), f"{row.start:.2f}",
            ", ".join(f"{s:.2f}" for s in row.seconds) + size,
            ", ".join(f"{ratio:.2f}" for ratio in row.ratios),
            "" if target is None else f"{target:g} s{after}" + (", 5 MB" if row.size else ""),
            f"missed: {', '.join(row.missed)}" if row.missed else "reached",
        )  # fmt: skip
    Console().print(table)
    sys.exit(1 if check and any(row.missed for row in rows) else 0)


if __name__ == "__main__":
    main()
