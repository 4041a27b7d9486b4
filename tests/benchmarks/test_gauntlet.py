"""The gauntlet: its truths hold, wrapper by wrapper, and its table adds up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.gauntlet.__main__ import main
from benchmarks.gauntlet.families import ENTRIES
from benchmarks.gauntlet.rows import Cell, Row, cell, summarize
from benchmarks.gauntlet.setting import Setting, prepare
from benchmarks.gauntlet.table import account, markdown
from benchmarks.gauntlet.truth import Truth, broken
from benchmarks.gauntlet.wrapper import FAMILIES, Entry, split
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.evaluation.watcher import Watcher
from robustkit.models.adversarial_training import perturb
from robustkit.models.load import load_model
from robustkit.verify.candidates import predict

BALL = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_dataset("bundled")


@pytest.fixture(scope="module")
def bare(data: Dataset) -> nn.Module:
    return load_model("pgd_at", data=data).model.requires_grad_(False)


@pytest.fixture(scope="module")
def inputs(bare: nn.Module, data: Dataset) -> Images:
    """Clean, random and adversarial inputs of the same 150 points."""
    x, y = data.fetch(np.arange(0, 450, 3))
    drawn = torch.Generator().manual_seed(0)
    noise = (2 * torch.rand(x.shape, generator=drawn) - 1) * BALL.eps
    z = perturb(bare, x, lambda out: nn.functional.cross_entropy(out, y, reduction="sum"),
                BALL, steps=10, generator=drawn)  # fmt: skip
    return torch.cat([x, (x + noise).clamp(0, 1), z])


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_wrappers_keep_the_decisions(entry: Entry, bare: nn.Module, inputs: Images) -> None:
    torch.manual_seed(0)
    before = predict(bare, inputs).predicted
    after = predict(entry.build(bare).eval(), inputs, 10 if entry.random else 1)
    moved = (after.predicted != before).float().reshape(3, -1).mean(1)
    assert moved.max() <= entry.moved
    assert after.logits.shape == (len(inputs), 10)
    assert after.logits.isfinite().all()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_smooth_forms_have_a_gradient(entry: Entry, bare: nn.Module, inputs: Images) -> None:
    query = inputs[:4].clone().requires_grad_(True)
    out = entry.build(bare).eval().smooth(query)
    (gradient,) = torch.autograd.grad(out.sum(), query)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


def test_there_are_wrappers_of_every_family() -> None:
    assert len(ENTRIES) >= 28
    assert {entry.family for entry in ENTRIES.values()} == {*FAMILIES}
    assert all(entry.what.endswith(".") for entry in ENTRIES.values())
    assert all(entry.truth == "at most" for entry in ENTRIES.values() if entry.moved > 0.005)


def test_split_refuses_a_model_without_the_layer() -> None:
    with pytest.raises(ValueError, match="more than 0 ReLU layers, got Linear with 0"):
        split(nn.Linear(2, 2), 0)


def _setting(bare: nn.Module, data: Dataset, folder: Path, eps: float = 0.1) -> Setting:
    return Setting("pgd_at", bare, data, Threat("linf", eps), 6, 0, "cpu", folder, Watcher())


def test_claims_are_judged(bare: nn.Module, data: Dataset, tmp_path: Path) -> None:
    setting = _setting(bare, data, tmp_path)
    x, y = data.fetch(np.arange(40))
    z = perturb(bare, x, lambda out: nn.functional.cross_entropy(out, y, reduction="sum"),
                BALL, steps=20, generator=torch.Generator().manual_seed(0))  # fmt: skip
    fooled = (predict(bare, z).predicted != y).nonzero().flatten().tolist()
    assert fooled
    assert broken(bare, setting, dict(enumerate(z))) == fooled
    outside = {p: (z[p] + 0.3).clamp(0, 1) for p in range(40)}
    assert broken(bare, setting, outside) == []
    assert broken(bare, setting, {}) == []


def test_a_truth_by_chance_is_the_same_again(data: Dataset, tmp_path: Path) -> None:
    class Coin(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.rand(len(x), 10)

    setting, (x, _) = _setting(Coin(), data, tmp_path), data.fetch(np.arange(40))
    found = [broken(Coin(), setting, dict(enumerate(x)), draws=3) for _ in range(2)]
    assert found[0] and found[0] == found[1]


def _row(name: str, over: float, flags: Sequence[str], adaptive: float = 0.0) -> Row:
    cells = {
        "parity": Cell(80 + over, over, 0.0, list(flags)),
        "adaptive": Cell(80 + adaptive, adaptive, 0.0),
        "standard": Cell(None, None, None, error="RuntimeError: no graph"),
    }
    return Row(name, "outputs", "equal", False, 80.0, cells)


def test_cells_count_both_ways() -> None:
    found = cell({1: True, 2: False, 3: True}, {1: True, 2: True, 3: False}, elsewhere=5, n=10)
    assert (found.robust, found.over, found.under) == (70.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("rows", "reached"),
    [
        ([_row("a", 5.0, ["no_gradient"]), _row("b", 0.5, [])], True),
        ([_row("a", 5.0, []), _row("b", 0.5, [])], False),
        ([_row("a", 5.0, ["no_gradient"], 1.5), _row("b", 0.5, [])], False),
        ([_row("a", 0.0, [], 0.5), _row("b", 0.0, [], 0.5)], False),
    ],
)
def test_targets(rows: list[Row], reached: bool) -> None:
    summary = summarize(rows)
    assert summary.reached is reached
    assert summary.wrappers == {"parity": 2, "adaptive": 2}  # a reference that fails is not counted
    assert summary.largest["parity"] == max(row.cells["parity"].over or 0 for row in rows)
    assert ("targets" in account(summary, ["parity", "adaptive"])[-1]) and (
        account(summary, ["parity", "adaptive"])[-1].endswith("reached" if reached else "missed")
    )


def test_targets_wait_for_the_columns() -> None:
    row = _row("a", 0.0, [])
    del row.cells["adaptive"]
    assert summarize([row]).reached is None
    assert account(summarize([row]), ["parity"])[-1].startswith("targets: not judged")
    assert "| `a` | 80.0 | 80.0 | – | none |" in markdown([row], ["parity", "adaptive"])
    assert "| error |" in markdown([row], ["standard"])


@pytest.mark.slow
def test_a_gauntlet_runs_and_resumes(tmp_path: Path) -> None:
    line = ["--n", "6", "--controls", "1", "--columns", "parity", "--only", "zeroed",
            "--threat", "linf:0.3", "--out", str(tmp_path), "--markdown"]  # fmt: skip
    first = CliRunner().invoke(main, line)
    assert first.exit_code == 0, first.output
    assert "| `zeroed` |" in first.stdout
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    again = CliRunner().invoke(main, [*line, "--check"])
    assert again.stdout == first.stdout
    assert again.exit_code == 1  # adaptive has not run: no target is reached
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("record.json")} == before
    other = CliRunner().invoke(main, [*line, "--controls", "all"])
    assert other.exit_code == 2
    assert "--controls" in other.output


def test_the_truth_of_a_wrapper_that_moves_inputs(
    bare: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    entry = ENTRIES["quantized"]
    setting = _setting(bare, data, tmp_path, 0.3)
    points = prepare(setting, 1)
    truth = Truth(setting, points)
    standing = truth.of(entry, entry.build(bare).eval(), [])
    assert len(points.contested) > 3
    assert not any(standing[p] for p in points.contested)
    assert set(standing) == set(points.chosen)


def test_what_has_no_row_is_missing() -> None:
    summary = summarize([_row("a", 0.0, [])], names=["a", "b"])
    assert (summary.reached, summary.missing) == (None, ["b"])
    assert summarize([_row("a", 0.0, [])], names=["a"]).reached
    assert summarize([]).reached is None


def test_few_points_are_not_judged() -> None:
    row = _row("a", 0.0, [])
    few, enough = (summarize([row], n=n) for n in (49, 50))
    assert (few.reached, enough.reached) == (None, True)
    said = account(few, ["parity", "adaptive"])[-1]
    assert said == "targets: not judged: fewer than 50 points"
    missing = account(summarize([row], names=["a", "b"], n=49), ["parity"])[-1]
    assert missing.endswith("not evaluated: b")


@pytest.mark.parametrize(
    "line", [["--only", "nothing"], ["--columns", "fast"], ["--controls", "1.5"]]
)
def test_unknown_names_are_refused(line: list[str], tmp_path: Path) -> None:
    found = CliRunner().invoke(main, [*line, "--out", str(tmp_path)])
    assert found.exit_code == 2
    assert "expected" in found.output
