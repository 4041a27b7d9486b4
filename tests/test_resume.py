"""`kill -9` at any moment, then the same run again: the verdicts are those of an uninterrupted one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustkit.data import Dataset
from robustkit.record import Record, load

# One process for all lives: a fork costs nothing, an import of torch costs seconds.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from torch import nn
from robustkit.data import open_dataset
from robustkit.evaluate import evaluate
from robustkit.ledger import Ledger
from robustkit.registry import defenses
from robustkit.run import Watcher
from robustkit.threat import Threat
from robustkit.train import Recipe, fit

torch.set_num_threads(1)
base = Path(sys.argv[1])
data = open_dataset(f"npz:{base / 'blobs.npz'}")

class Fuse:
    def __init__(self, length):
        self.length = length

    def burn(self):
        self.length -= 1
        if self.length == 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Model(nn.Module):
    def __init__(self, fuse, log):
        super().__init__()
        self.linear, self.fuse, self.log = nn.Linear(36, 4), fuse, log

    def forward(self, x):
        self.fuse.burn()
        with open(self.log, "a") as file:
            file.write(f"{len(x)}\\n")
        return self.linear(x.flatten(1))

class Herald(Watcher):
    def __init__(self, fuse):
        self.fuse = fuse

    def advance(self, done, robust, points):
        self.fuse.burn()

def evaluation(folder, moment, length, batch_size):
    fuses = {name: Fuse(length if name == moment else 0) for name in ("pass", "report", "write")}
    spend = Ledger._spend

    def _spend(self, *arguments):  # inside a transaction
        spend(self, *arguments)
        fuses["write"].burn()

    Ledger._spend = _spend
    model = Model(fuses["pass"], base / f"{folder}.log").eval()
    model.load_state_dict(load_file(base / "weights.safetensors"))
    evaluate(
        model, name="toy", data=data, threat=Threat("linf", 0.06), folder=base / folder, n=40,
        attacks=["apgd(steps=10)", "apgd(loss=targeted_dlr, steps=8, targets=2)", "square(queries=20)"],
        device="cpu", batch_size=batch_size, watcher=Herald(fuses["report"]),
    )

def training(folder, moment, length, batch_size):
    fuse = Fuse(length)
    recipe, device = Recipe(epochs=3, batch_size=16), torch.device("cpu")
    defense = defenses.build("pgd_at(steps=2, width=4)")
    for _ in fit(defense, data, base / folder, recipe=recipe, seed=0, device=device, identity={}):
        fuse.burn()

for action, folder, moment, length, batch_size in json.loads(sys.argv[2]):
    child = os.fork()
    if not child:
        {"evaluate": evaluation, "train": training}[action](folder, moment, length, batch_size)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Lives(NamedTuple):
    base: Path
    ends: list[int]


@pytest.fixture(scope="module")
def live(blobs: Dataset, prototypes: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run the program over a list of (action, folder, moment, how many moments, batch size)."""
    base = tmp_path_factory.mktemp("lives")
    x, y = blobs.fetch(range(80))
    np.savez(base / "blobs.npz", x=x.numpy(), y=y.numpy())
    flat = prototypes.flatten(1)
    weights = {"linear.weight": 2 * flat, "linear.bias": -flat.square().sum(1)}
    save_file(weights, base / "weights.safetensors")

    def call(plan: list[tuple[str, str, str, int, int]]) -> Lives:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(base), json.dumps(plan)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return Lives(base, [int(line) for line in done.stdout.split()])

    return call


def rows(base: Path, folder: str) -> int:
    return sum(map(int, (base / f"{folder}.log").read_text().split()))


def verdicts(record: Record) -> list[Any]:
    points = record.points
    return [points.index, points.label, points.predicted, points.status, points.attack]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_verdicts(live: Any) -> None:
    moments = [
        ("pass", 4),  # in the first look at the model
        ("write", 2),  # in the transaction of the clean pass
        ("pass", 12),
        ("report", 9),
        ("write", 12),
        ("pass", 60),
        ("report", 3),
        ("write", 4),
        ("pass", 25),
    ]
    slots = 6
    plan = [("evaluate", "cut", moment, length, slots) for moment, length in moments]
    plan += [("evaluate", "cut", "", 0, 11), ("evaluate", "whole", "", 0, slots)]
    base, ends = live(plan)
    assert ends == [-9] * len(moments) + [0, 0]

    cut, whole = (load(base / folder / "record.json") for folder in ("cut", "whole"))
    assert verdicts(cut) == verdicts(whole)
    assert {"robust", "broken", "misclassified"} == set(whole.points.status)
    assert [stage.entered for stage in cut.stages] == [stage.entered for stage in whole.stages]
    assert [stage.broken for stage in cut.stages] == [stage.broken for stage in whole.stages]
    # A life costs what was in flight (21 passes at most), the first look, and a clean batch.
    life = slots * 21 + 6 * 16 + slots
    assert rows(base, "cut") <= 1.15 * rows(base, "whole") + len(moments) * life
    assert cut.forwards <= rows(base, "cut")


def test_a_killed_training_ends_in_the_same_weights(live: Any) -> None:
    plan = [("train", "cut-net", "", length, 0) for length in (2, 7, 5)]
    plan += [("train", "cut-net", "", 0, 0), ("train", "whole-net", "", 0, 0)]
    base, ends = live(plan)
    assert ends == [-9, -9, -9, 0, 0]
    cut, whole = (load_file(base / f / "model.safetensors") for f in ("cut-net", "whole-net"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[key], whole[key]) for key in cut)


def test_the_program_evaluates_the_model_of_the_fixtures(live: Any, nearest: nn.Module) -> None:
    base, _ = live([])
    weights = load_file(base / "weights.safetensors")
    assert torch.equal(weights["linear.weight"], nearest[1].weight)  # type: ignore[index]
