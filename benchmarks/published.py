"""Write the boards of published results again, from a checkout of RobustBench.

    git clone https://github.com/RobustBench/robustbench
    python -m benchmarks.published robustbench

Takes facts alone (names, numbers, titles, links), no prose. `leaderboards/published/later.csv` is
written by hand and stays as it is.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import click

from robustkit.core import files
from robustkit.leaderboard import published
from robustkit.leaderboard.boards import FIELDS
from robustkit.leaderboard.grouping import shown_eps
from robustkit.leaderboard.published import Published

OUT = Path(__file__).parents[1] / "leaderboards" / "published"
SOURCE, LINK = "RobustBench", "https://github.com/RobustBench/robustbench"
LICENSE = "MIT, see ROBUSTBENCH_LICENSE"


def board_of(row: Published) -> tuple[str, str, str]:
    """Return data set, folder of the threat model and norm; `model` ends in DATA/FOLDER/NAME."""
    _, folder, _ = row.model.rsplit("/", 2)
    return row.data, folder, row.norm


def text(rows: Iterable[Published], facts: dict[str, str]) -> str:
    """Write one board: its facts as comment lines, then a line per model, sorted by name."""
    file = io.StringIO()
    file.writelines(f"# {key}: {value}\n" for key, value in facts.items())
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in sorted(rows, key=lambda row: row.model):
        shares = (row.clean, row.reported, row.autoattack, row.best_known)
        eps = "" if row.norm == published.CORRUPTIONS else shown_eps(row.eps)
        writer.writerow([
            row.model.rpartition("/")[2], eps or "5",
            *("" if share is None else f"{share:.6g}" for share in shares),
            *(str(mark).lower() for mark in (row.unreliable, row.extra_data)),
            row.architecture, row.venue, row.title, row.source,
        ])  # fmt: skip
    return file.getvalue()


def git(checkout: Path, *words: str) -> str:
    """Ask git about a checkout."""
    command = ["git", "-C", str(checkout), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@click.command(help=__doc__)
@click.argument("checkout", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT)
def main(checkout: Path, out: Path) -> None:
    """Read `model_info`, write a file per data set and threat model."""
    commit, date = git(checkout, "log", "-1", "--format=%H %cs").split()
    rows, left_out = published.load([checkout / "model_info"])
    for (data, folder, norm), members in groupby(sorted(rows, key=board_of), key=board_of):
        facts = {
            "data": data, "norm": norm, "source": SOURCE, "link": LINK,
            "folder": f"model_info/{data}/{folder}", "commit": commit, "date": date,
            "license": LICENSE,
        }  # fmt: skip
        name, lines = f"{data}-{folder.lower()}", list(members)
        files.write(text(lines, facts).encode(), out / f"{name}.csv")
        click.echo(f"{name}: {len(lines)} models")
    click.echo(f"left out, as they tell no robust accuracy: {', '.join(left_out) or 'none'}")


if __name__ == "__main__":
    main()
