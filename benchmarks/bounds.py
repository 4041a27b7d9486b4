"""CROWN and alpha-CROWN: ours beside an older build and beside auto_LiRPA, in one run.

Every tool runs as a process of its own, in turn, on the same points with the same number of
threads; the printed ratios are medians over the runs. Bounds are lower bounds of the margins
z_y − z_j: their mean over all points and classes, and the points that they prove. Ours hold for a
float32 evaluation of the network (rounding is subtracted); auto_LiRPA's are plain float32, and the
row "unrounded" is ours without that, in float64. With --results, runs are kept in a file, one line
of JSON each, so that a table can be measured in pieces.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.bounds_runner import NETS

RUNNER = Path(__file__).with_name("bounds_runner.py")


Runs = dict[str, list[dict[str, float]]]
METHODS = ("crown", "alpha-crown")


def measure(tool: str, folder: Path | None, job: list[str]) -> dict[str, float]:
    """Run one tool; return its seconds, bounds and memory."""
    command = [sys.executable, str(RUNNER), tool, str(folder or ""), *job]
    path = str(Path(__file__).parents[1] if folder is None else folder)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise click.ClickException(f"{tool} failed on {' '.join(job)}:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(lines[-1])
    return result


def kept(results: Path | None, job: dict[str, str | int]) -> Runs:
    """Return what a file holds of a job, by tool."""
    found: Runs = {}
    lines = results.read_text().splitlines() if results and results.exists() else []
    for row in map(json.loads, lines):
        if job.items() <= row.items():
            found.setdefault(row["tool"], []).append(row["found"])
    return found


def table_of(found: Runs) -> Table:
    """Lay out medians, and medians of ratios to ours of the same turn."""
    table = Table("tool", "s a point", "times ours", "CPU s", "times ours", "mean bound", "proved",
                  "peak MiB")  # fmt: skip
    own = found.get("ours", [])
    for tool, rows in found.items():
        times = []
        for kind in ("seconds", "cpu"):
            ratios = [row[kind] / mine[kind] for row, mine in zip(rows, own, strict=False)]
            times.append(f"{statistics.median(row[kind] for row in rows):.4f}")
            times.append(f"{statistics.median(ratios):.1f}" if ratios else "")
        table.add_row(
            tool,
            *times,
            f"{rows[0]['bound']:.4f}",
            f"{rows[0]['proved']:.0f} of {rows[0]['points']:.0f}",
            f"{max(row['memory'] for row in rows):.0f}",
        )
    return table


@click.command()
@click.option("--auto-lirpa", type=click.Path(exists=True, path_type=Path), help="Its checkout.")
@click.option("--base", type=click.Path(exists=True, path_type=Path), help="An older checkout.")
@click.option(
    "--nets",
    type=click.Path(exists=True, path_type=Path),
    default=os.environ.get("ROBUSTKIT_DATA"),
    help="Folder with the weights of CNN-A and its points; by default $ROBUSTKIT_DATA.",
)
@click.option("--net", "names", multiple=True, type=click.Choice(list(NETS)), help="Default: all.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS)
@click.option("--results", type=click.Path(path_type=Path), help="File to add runs to.")
@click.option("--n", default=16, show_default=True, help="Points of each net.")
@click.option("--unrounded", is_flag=True, help="A row without what rounding takes off.")
@click.option("--threads", default=2, show_default=True)
@click.option("--runs", default=3, show_default=True)
@click.option("--iterations", default=20, show_default=True, help="Of alpha-CROWN.")
def main(
    auto_lirpa: Path | None,
    base: Path | None,
    nets: Path | None,
    names: tuple[str, ...],
    methods: tuple[str, ...],
    results: Path | None,
    n: int,
    unrounded: bool,
    threads: int,
    runs: int,
    iterations: int,
) -> None:
    """Print seconds a point, ratios to ours, mean bounds, proved points and peak memory."""
    tools: dict[str, Path | None] = {"ours": None}
    tools |= {"base": base} if base else {}
    tools |= {"auto_LiRPA": auto_lirpa} if auto_lirpa else {}
    tools |= {"unrounded": None} if unrounded else {}
    console = Console(width=110)
    for name in names or [name for name in NETS if nets or name == "resnet"]:
        for method in methods:
            steps = iterations if method == "alpha-crown" else 0
            job: dict[str, str | int] = {"net": name, "steps": steps, "n": n, "threads": threads}
            found = kept(results, job)
            for _ in range(runs):
                for tool, folder in tools.items():
                    asked = [name, str(nets or ""), str(n), str(steps), str(threads)]
                    found.setdefault(tool, []).append(measure(tool, folder, asked))
                    if results:
                        line = json.dumps({**job, "tool": tool, "found": found[tool][-1]})
                        with results.open("a") as file:
                            file.write(line + "\n")
            console.print(f"{name}, {method}, {threads} threads", table_of(found))


if __name__ == "__main__":
    main()
