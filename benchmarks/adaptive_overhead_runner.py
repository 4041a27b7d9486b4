"""One evaluation by the suite `adaptive`, as a program that an older build can run as well.

    python adaptive_overhead_runner.py NAME FOLDER OPTIONS

It imports nothing but the package's public face and the gauntlet, both of the build that runs it.
NAME is a bundled model, or a wrapper of the gauntlet around `pgd_at`; OPTIONS a JSON object with
data, root, threat, n, seed and threads. What the folder holds goes on; its record is the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import robustkit
from benchmarks.gauntlet.families import ENTRIES

BARE = "pgd_at"


def build(name: str, data: Any) -> nn.Module:
    """Return a model by name: a wrapper of the gauntlet, or a bundled one."""
    entry = ENTRIES.get(name)
    model: nn.Module = robustkit.load_model(BARE if entry else name, data=data).model
    return entry.build(model.requires_grad_(False)).eval() if entry else model


def run(name: str, folder: Path, asked: dict[str, Any]) -> None:
    """Evaluate one model, or finish its evaluation, in `folder`."""
    torch.set_num_threads(asked["threads"])
    root = asked["root"]
    data = robustkit.open_dataset(asked["data"], root=None if root is None else Path(root))
    robustkit.evaluate(
        build(name, data), name=name, data=data, threat=asked["threat"], n=asked["n"],
        seed=asked["seed"], suite="adaptive", device="cpu", folder=folder,
    )  # fmt: skip


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
