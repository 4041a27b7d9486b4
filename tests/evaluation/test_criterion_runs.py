"""Runs under a criterion: what is asked, what the record says, and what is never compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustkit.cli.program import program
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.evaluation.evaluate import evaluate
from robustkit.gate.baseline import choose, load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.leaderboard.grouping import group_of
from robustkit.leaderboard.rows import row
from robustkit.record.record import Record, load
from robustkit.registry import read_criterion

ATTACKS = ["apgd(steps=10)", "apgd(loss=targeted_dlr, steps=10, targets=3)"]
EPS = 0.1


class Corners(nn.Module):
    """Logits are the pixels themselves: class j where pixel j is the largest of four."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 2, 2] -> [b, 4]."""
        return 5 * x.flatten(1)


class Abstaining(Corners):
    """Says "abstain", the fifth output, where the lead is below 0.06."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 2, 2] -> [b, 5]."""
        z = super().forward(x)
        return torch.cat([z, z.topk(2, dim=1).values[:, 1:] + 0.3], 1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Sixty points, the label mostly that of the largest pixel."""
    draw = np.random.default_rng(2)
    x = draw.uniform(0.15, 0.85, (60, 1, 2, 2)).astype(np.float32)
    y = x.reshape(60, 4).argmax(1)
    y[::7] = (y[::7] + 1) % 4
    return from_arrays("corners", x, y)


def run(data: Dataset, folder: Path, criterion: str | None, model: nn.Module | None = None,
        certify: str | None = "quick") -> Record:  # fmt: skip
    return evaluate(
        model or Corners(), data, f"linf:{EPS}", criterion=criterion, attacks=ATTACKS,
        folder=folder, certify=certify, attack_certified=certify is not None,
    )  # fmt: skip


# Every pixel moves by EPS at most: class j wins over i exactly where x_j + EPS > x_i − EPS.
EXACT: dict[str | None, Callable[[list[float], int], bool]] = {
    None: lambda p, y: p[y] - 2 * EPS >= max(v for j, v in enumerate(p) if j != y),
    "targeted:3": lambda p, _: p[3] + 2 * EPS <= max(p[:3]),
    "groups:0,1|2,3": lambda p, y: (
        max(p[:2]) - max(p[2:]) >= 2 * EPS if y < 2 else max(p[2:]) - max(p[:2]) >= 2 * EPS
    ),
    "top2": lambda p, y: p[y] - 2 * EPS >= sorted(v for j, v in enumerate(p) if j != y)[-2],
}


@pytest.mark.parametrize("criterion", EXACT)
def test_verdicts_are_exact_on_a_linear_model(
    criterion: str | None, data: Dataset, tmp_path: Path
) -> None:
    record = run(data, tmp_path, criterion)
    x, points = data.fetch(np.arange(60))[0].flatten(1).tolist(), record.points
    asked = [k for k in range(60) if criterion != "targeted:3" or data.labels[k] != 3]
    assert points.index == asked
    assert record.threat.criterion == criterion
    expected = [EXACT[criterion](x[k], int(data.labels[k])) for k in asked]
    assert expected == [state in ("robust", "certified") for state in points.status]
    assert 0 < sum(expected) < len(asked)
    if criterion is None:
        assert "criterion" not in json.loads((tmp_path / "record.json").read_text())["threat"]
    if criterion != "targeted:3":  # where one class has to stay the largest, bounds are exact
        assert record.certified == record.robust
    (baseline,) = load_baselines(tmp_path)
    assert baseline.threat.criterion == read_criterion(criterion or "untargeted")
    assert verify_record(baseline, Corners(), data, sample=3).holds


def test_abstaining_saves_an_attacked_point_and_costs_a_clean_one(
    data: Dataset, tmp_path: Path
) -> None:
    plain = run(data, tmp_path / "plain", None, Abstaining(), None)
    record = run(data, tmp_path / "reject", "reject:4", Abstaining(), None)
    assert record.clean == plain.clean < 1
    assert record.robust > plain.robust
    predicted = np.array(record.points.predicted)
    assert record.abstained == (predicted == 4).mean() > 0
    assert plain.abstained is None
    assert all(record.points.status[k] == "misclassified" for k in np.flatnonzero(predicted == 4))
    count = int((predicted == 4).sum())
    assert any(f"abstains on {count} of 60 clean points" in note for note in record.notes)
    # With a lead of 0.06 in pixels at 2 · EPS = 0.2, a wrong class is out of reach of no point:
    x = data.fetch(np.arange(60))[0].flatten(1)
    lead = x.topk(2, dim=1).values
    reach = lead[:, 0] - lead[:, 1] + 0.06 > 2 * EPS
    right = (x.argmax(1).numpy() == data.labels) & (predicted != 4)
    assert [s == "robust" for s in record.points.status] == (reach.numpy() & right).tolist()


def test_another_criterion_is_another_evaluation(data: Dataset, tmp_path: Path) -> None:
    one = run(data, tmp_path / "one", "top2")
    with pytest.raises(UsageError, match="threat"):
        run(data, tmp_path / "one", "targeted:3")
    plain = run(data, tmp_path / "two", None)
    rows = [row(record, "x") for record in (one, plain)]
    assert len({group_of(each) for each in rows}) == 2
    assert rows[0].norm == "linf top2"
    known = load_baselines(tmp_path)
    chosen = choose(known, "Corners", criterion=read_criterion("top2"))
    assert chosen.record.threat.criterion == "top2"
    with pytest.raises(UsageError, match="several baselines fit"):
        choose(known, "Corners")


def test_points_that_are_not_asked_about_are_refused_by_name(data: Dataset, tmp_path: Path) -> None:
    threes = np.flatnonzero(data.labels == 3)[:2].tolist()
    with pytest.raises(UsageError, match=f"does not ask about points {threes[0]}, {threes[1]}"):
        evaluate(Corners(), data, "linf:0.1", criterion="targeted:3", points=threes,
                 attacks=ATTACKS, folder=tmp_path)  # fmt: skip
    record = evaluate(Corners(), data, "linf:0.1 targeted:3", n=20, attacks=ATTACKS,
                      folder=tmp_path)  # fmt: skip
    assert record.n == 20
    assert 3 not in record.points.label
    with pytest.raises(UsageError, match="names a criterion already"):
        evaluate(Corners(), data, "linf:0.1 targeted:3", criterion="top2", folder=tmp_path)


def test_a_grid_and_the_nearest_success_keep_the_criterion(data: Dataset, tmp_path: Path) -> None:
    grid = evaluate_grid(Corners(), data, "linf", [0.05, 0.1], criterion="top2",
                         attacks=ATTACKS[:1], folder=tmp_path / "grid")  # fmt: skip
    assert [record.threat.text for record in grid] == ["linf:0.05 top2", "linf:0.1 top2"]
    nearest = evaluate(Corners(), data, "linf:0.1", criterion="top2", minimum_norm=True, n=20,
                       attacks=["fmn(steps=60)"], folder=tmp_path / "near")  # fmt: skip
    x = data.fetch(np.arange(60))[0].flatten(1)
    for index, label, status, found in zip(
        nearest.points.index, nearest.points.label, nearest.points.status,
        nearest.points.nearest or (), strict=True,
    ):  # fmt: skip
        others = x[index][torch.arange(4) != label].sort().values
        exact = float(x[index][label] - others[-2]) / 2
        assert status == "misclassified" or (found or 0) >= exact - 1e-6
        assert status == "misclassified" or (found or 9) <= 1.3 * exact + 0.02


def test_the_command_line_asks_and_refuses(tmp_path: Path) -> None:
    words = ["evaluate", "pgd_at", "--n", "12", "--attack", "fgsm", "--device", "cpu", "--quiet"]
    runner = CliRunner()
    out = str(tmp_path / "run")
    done = runner.invoke(program, [*words, "--criterion", "groups:0,2,4,6|1|3|5,7,9|8",
                                   "--out", out])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (
        load(tmp_path / "run/pgd_at/record.json").threat.criterion == "groups:0,2,4,6|1|3|5,7,9|8"
    )
    hole = runner.invoke(program, [*words, "--criterion", "groups:0,2|1", "--out", f"{out}2"])
    assert hole.exit_code != 0
    assert "class 3 is in no group" in hole.output
