"""How much memory an evaluation takes: the peak of its process, for bytes and for floats.

    python -m benchmarks.memory                     # 50,000 points of 3x32x32
    python -m benchmarks.memory --against PYTHON    # another build beside it, by its interpreter

A linear model is evaluated with FGSM from an npz file, by the command line and in a process of its
own. What the process takes before the first point (PyTorch above all) is the peak of the same
command on 16 points: the growth is the rest.

The data are written by other processes: Linux counts what this one has held as the peak of those
that it starts.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

_NET = """
import torch
from torch import nn

def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
"""
_SHAPE, _FEW = (3, 32, 32), 16
_TARGET = "1.3 times the data and 300 MB"


def peak(python: str, folder: Path, data: Path, n: int) -> int:
    """Return the peak resident bytes of an evaluation of `n` points."""
    command = [python, "-m", "robustkit", "evaluate", f"{folder / 'net.py'}:make", "--data",
               f"npz:{data}", "--n", str(n), "--threat", "linf:0.004", "--attack", "fgsm",
               "--out", str(folder / "run"), "--fresh", "--quiet"]  # fmt: skip
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(command, cwd=folder, stdout=told, stderr=told)
        _, status, used = os.wait4(child.pid, 0)  # with the largest of its own children
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            told.seek(0)
            raise click.ClickException(f"{' '.join(command)}: {told.read().decode()}")
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write(path: Path, kind: str, n: int) -> None:
    """Write `n` random images and labels of one type."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *_SHAPE), dtype=np.uint8)
    y = rng.integers(0, 10, n)
    np.savez(path, x=x if kind == "uint8" else np.divide(x, 255, dtype=np.float32), y=y)


@click.command()
@click.option("--points", "n", default=50_000, show_default=True)
@click.option("--against", metavar="PYTHON", help="Interpreter of another build.")
@click.option("--check", is_flag=True, help="Fail where the target is missed.")
def main(n: int, against: str | None, check: bool) -> None:
    """Print the peaks, what they grew by, and the target."""
    builds = {"this build": sys.executable} | ({"the other": against} if against else {})
    table = Table("data", "MB of data", "build", "16 points, MB", f"{n:,} points, MB", "growth, MB",
                  f"target: {_TARGET}, MB")  # fmt: skip
    missed = False
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "net.py").write_text(_NET)
        for kind in ("uint8", "float32"):
            data, size = folder / f"{kind}.npz", n * int(np.prod(_SHAPE)) * np.dtype(kind).itemsize
            writer = multiprocessing.get_context("spawn").Process(
                target=write, args=(data, kind, n)
            )
            writer.start()
            writer.join()
            target = 1.3 * size + 300e6
            for name, python in builds.items():
                floor, most = (peak(python, folder, data, k) for k in (_FEW, n))
                told = [size, floor, most, most - floor, target]
                cells = [f"{value / 1e6:,.0f}" for value in told]
                table.add_row(kind, cells[0], name, *cells[1:])
                missed = missed or (name == "this build" and most > target)
    Console().print(table)
    sys.exit(1 if check and missed else 0)


if __name__ == "__main__":
    main()
