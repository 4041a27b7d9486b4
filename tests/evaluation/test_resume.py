"""`kill -9` at any moment, then the same run again: nothing is lost, nothing is different."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustkit.data.dataset import Dataset
from robustkit.record.record import Record, load

# One process for all lives: a fork costs nothing, an import of torch costs seconds.
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import torch, torch._dynamo  # which an optimizer imports
from safetensors.torch import load_file
from torch import nn
from robustkit.data import open_dataset
from robustkit import evaluate
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.record.ledger import Ledger
from robustkit.registry import defenses
from robustkit.evaluation.watcher import Watcher
from robustkit.core.threat import Threat
from robustkit.models.training import Recipe, fit

base = Path(sys.argv[1])
KINDS = ("look", "pass", "report", "write")
data = open_dataset(f"npz:{base / 'blobs.npz'}")

class Fuse:
    def __init__(self, length):
        self.length = length

    def burn(self):
        self.length -= 1
        if self.length == 0:
            os.kill(os.getpid(), signal.SIGKILL)

class Model(nn.Module):
    def __init__(self, fuses, log):
        super().__init__()
        self.linear, self.fuses, self.log = nn.Linear(36, 4), fuses, log

    def forward(self, x):
        self.fuses["pass" if Herald.looked else "look"].burn()
        with open(self.log, "a") as file:
            file.write(f"{len(x)}\\n")
        return self.linear(x.flatten(1))

class Herald(Watcher):
    looked = False

    def __init__(self, fuse):
        self.fuse = fuse

    def model(self, name, points):
        Herald.looked = True

    def advance(self, done, robust, points):
        self.fuse.burn()

def prepared(folder, moment, length):
    fuses = {name: Fuse(length if name == moment else 0) for name in KINDS}
    spend = Ledger._spend

    def _spend(self, *arguments):  # inside a transaction
        spend(self, *arguments)
        fuses["write"].burn()

    Ledger._spend = _spend
    model = Model(fuses, base / f"{folder}.log").eval()
    model.load_state_dict(load_file(base / "weights.safetensors"))
    return dict(
        model=model, name="toy", data=data, folder=base / folder, n=40,
        sample="balanced", device="cpu", watcher=Herald(fuses["report"]),
    )

def evaluation(folder, moment, length, batch_size):
    evaluate(
        threat=Threat("linf", 0.06), batch_size=batch_size,
        attacks=["apgd(steps=10)", "apgd(loss=dlr, steps=8, restarts=2)", "square(queries=20)"],
        **prepared(folder, moment, length),
    )

def nearest(folder, moment, length, batch_size):
    evaluate(
        threat=Threat("l2", 0.3), batch_size=batch_size, minimum_norm=True,
        attacks=["ddn(steps=20)", "fmn(steps=10, targets=2)"], **prepared(folder, moment, length),
    )

def grid(folder, moment, length, batch_size):
    evaluate_grid(
        threat=Threat("linf", 1.0), grid=[i / 100 for i in range(1, 9)], batch_size=batch_size,
        attacks=["apgd(steps=10)", "square(queries=20)"], **prepared(folder, moment, length),
    )

def training(folder, moment, length, batch_size):
    fuse = Fuse(length)
    recipe, device = Recipe(epochs=3, batch_size=16), torch.device("cpu")
    defense = defenses.build("pgd_at(steps=2, width=4)")
    for _ in fit(defense, data, base / folder, recipe=recipe, seed=0, device=device, identity={}):
        fuse.burn()

evaluation("warm", "", 0, 40)  # what a first run imports is there in every life
Herald.looked = False
for action, folder, moment, length, batch_size in json.loads(sys.argv[2]):
    child = os.fork()
    if not child:
        actions = {"evaluate": evaluation, "nearest": nearest, "grid": grid, "train": training}
        actions[action](folder, moment, length, batch_size)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


MOMENTS = [
    ("look", 4),  # at the model, before anything else
    ("write", 2),  # in the transaction of the clean pass
    ("pass", 12),
    ("report", 9),
    ("write", 12),
    ("pass", 30),
    ("report", 3),
    ("write", 4),
    ("look", 30),
]
CUTS = [("look", 12), ("write", 9), ("report", 5), ("write", 4), ("pass", 30), ("report", 9)]
SLOTS = 6
PLAN = [
    *(("evaluate", "cut", moment, length, SLOTS) for moment, length in MOMENTS),
    ("evaluate", "cut", "", 0, 11),
    ("evaluate", "whole", "", 0, SLOTS),
    *(("nearest", "cut-nearest", moment, length, SLOTS) for moment, length in CUTS),
    ("nearest", "cut-nearest", "", 0, 11),
    ("nearest", "whole-nearest", "", 0, SLOTS),
    *(("grid", "cut-grid", moment, length, SLOTS) for moment, length in CUTS),
    ("grid", "cut-grid", "", 0, 11),
    ("grid", "whole-grid", "", 0, SLOTS),
    *(("train", "cut-net", "", length, 0) for length in (2, 7, 5)),
    ("train", "cut-net", "", 0, 0),
    ("train", "whole-net", "", 0, 0),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked"),
]


@pytest.fixture(scope="module")
def base(
    blobs: Dataset, prototypes: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Live through the plan; return the folder that holds what is left."""
    base = tmp_path_factory.mktemp("lives")
    x, y = blobs.fetch(range(80))
    np.savez(base / "blobs.npz", x=x.numpy(), y=y.numpy())
    flat = prototypes.flatten(1)
    weights = {"linear.weight": 2 * flat, "linear.bias": -flat.square().sum(1)}
    save_file(weights, base / "weights.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(base), json.dumps(PLAN)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ends = [int(line) for line in done.stdout.split()]
    cuts = [-9] * len(CUTS) + [0, 0]
    assert ends == [-9] * len(MOMENTS) + [0, 0] + 2 * cuts + [-9] * 3 + [0, 0], done.stderr
    return base


def rows(base: Path, folder: str) -> int:
    return sum(map(int, (base / f"{folder}.log").read_text().split()))


def verdicts(record: Record) -> list[Any]:
    points = record.points
    return [points.index, points.label, points.predicted, points.status, points.attack]


def test_a_killed_evaluation_goes_on_to_the_same_verdicts(base: Path) -> None:
    cut, whole = (load(base / folder / "record.json") for folder in ("cut", "whole"))
    assert verdicts(cut) == verdicts(whole)
    assert {"robust", "broken", "misclassified"} == set(whole.points.status)
    assert [stage.entered for stage in cut.stages] == [stage.entered for stage in whole.stages]
    assert [stage.broken for stage in cut.stages] == [stage.broken for stage in whole.stages]


def test_a_kill_costs_what_was_in_flight(base: Path) -> None:
    """In flight are at most 21 passes a slot; a new life looks at the model again."""
    life = SLOTS * 21 + 30 * 16 + SLOTS
    assert rows(base, "cut") <= 1.15 * rows(base, "whole") + len(MOMENTS) * life
    cut, whole = (load(base / folder / "record.json") for folder in ("cut", "whole"))
    assert 0.85 * whole.forwards <= cut.forwards <= rows(base, "cut")


def test_a_killed_minimum_norm_run_goes_on_to_the_same_distances(base: Path) -> None:
    cut, whole = (load(base / f"{life}-nearest" / "record.json") for life in ("cut", "whole"))
    assert verdicts(cut) == verdicts(whole)
    pairs = zip(cut.points.nearest or (), whole.points.nearest or (), strict=True)
    for one, other in pairs:  # the batches differ, and with them the last bits of the model
        assert (one or 0) == pytest.approx(other or 0, rel=1e-4)
    assert [stage.entered for stage in cut.stages] == [stage.entered for stage in whole.stages]


def test_a_killed_grid_goes_on_to_the_same_verdicts_at_every_eps(base: Path) -> None:
    places = sorted(path.parent.name for path in (base / "whole-grid").glob("*/record.json"))
    assert len(places) == 8
    for place in places:
        cut, whole = (load(base / f"{life}-grid" / place / "record.json")
                      for life in ("cut", "whole"))  # fmt: skip
        assert verdicts(cut) == verdicts(whole)
        assert cut.points.carried == whole.points.carried
        for seen in (cut, whole):
            assert [stage.entered for stage in seen.stages] == [s.entered for s in whole.stages]


def test_a_killed_training_ends_in_the_same_weights(base: Path) -> None:
    cut, whole = (load_file(base / f / "model.safetensors") for f in ("cut-net", "whole-net"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[key], whole[key]) for key in cut)
