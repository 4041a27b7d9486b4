"""How the time of what reads many records, or many points, grows: n, 2n and 4n, and the ratios.

    python -m benchmarks.growth              # up to 1,000 records and 50,000 points
    python -m benchmarks.growth --records 25 --points 500 --check

Each time is that of a whole process, start-up included. The records are copies of one record of
1,000 points, in each of which other points are misclassified, so that every pair of rows is tested.
The points are those of a linear model on random images, attacked once; `robustkit check` then
compares the finished run with itself, which costs no pass. Ratios are of the times without that of
`robustkit --help`, which reads nothing: linear growth doubles them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
_TARGETS = {"leaderboard": 5.0, "report": 15.0, "check": 2.0}  # seconds at 1,000, 500, 50,000
_RATIO = 2.2  # of n log n at these sizes, with some room for noise


class Row(NamedTuple):
    """One command at n, 2n and 4n: its seconds, those of start-up taken off, and bytes written."""

    command: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    size: int = 0

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.seconds, self.seconds[1:], strict=False)]


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
        took = tuple(_reading(folder, files[:size], command, more) for size in sizes)
        rows.append(Row(command, tuple(sizes), took))
    return [rows[0], rows[1]._replace(size=page.stat().st_size)]


def _reading(folder: Path, files: list[Path], command: str, more: Sequence[object]) -> float:
    """Time a command on records of a folder of their own: so many names are too long to type."""
    with tempfile.TemporaryDirectory(dir=folder) as room:
        for file in files:
            place = Path(room) / file.parent.name
            place.mkdir()
            (place / file.name).write_bytes(file.read_bytes())
        return seconds(command, room, *more)


def points(folder: Path, number: int) -> Row:
    """Time `check` of a run over `number` points that is over, twice and four times as many."""
    (folder / "net.py").write_text(_NET)
    sizes, took = [k * number // 4 for k in _STEPS], []
    for size in sizes:
        x = np.random.default_rng(0).random((size, 1, 4, 4), dtype=np.float32)
        data, run = folder / f"{size}.npz", folder / f"run-{size}"
        np.savez(data, x=x, y=np.arange(size) % 3, layout="nchw")
        seconds("evaluate", f"{folder / 'net.py'}:make", "--data", f"npz:{data}", "--threat",
                "linf:0.01", "--attack", "fgsm", "--out", run, "--quiet")  # fmt: skip
        (record,) = run.rglob("record.json")
        took.append(seconds("check", record, "--baseline", record, "--data", f"npz:{data}"))
    return Row("check", tuple(sizes), tuple(took))


@click.command()
@click.option("--records", "number", default=250, show_default=True, help="n of the records.")
@click.option("--points", "most", default=50_000, show_default=True, help="4n of the points.")
@click.option("--check", is_flag=True, help="Fail where a target is missed.")
def main(number: int, most: int, check: bool) -> None:
    """Print the times, the ratios and the targets."""
    with tempfile.TemporaryDirectory() as room:
        start = min(seconds("--help") for _ in range(3))
        folder = Path(room)
        rows = [*records(folder / "records", number), points(folder, most)]
    table = Table("command", "n, 2n, 4n", "seconds", "ratios without start-up", "target at 4n")
    missed = []
    for row in rows:
        bare = row._replace(seconds=tuple(max(s - start, 1e-3) for s in row.seconds))
        table.add_row(
            row.command, ", ".join(f"{size:,}" for size in row.sizes),
            ", ".join(f"{s:.2f}" for s in row.seconds),
            ", ".join(f"{ratio:.2f}" for ratio in bare.ratios),
            f"{_TARGETS[row.command]:g} s" + (f", {row.size / 1e6:.1f} MB" if row.size else ""),
        )  # fmt: skip
        late = row.seconds[-1] > _TARGETS[row.command]
        missed += [row.command] if late or max(bare.ratios) > _RATIO else []
    Console().print(f"start-up (robustkit --help): {start:.2f} s", table)
    if missed:
        Console().print(f"missed: {', '.join(missed)}")
    sys.exit(1 if check and missed else 0)


if __name__ == "__main__":
    main()
