"""One perturbation for all: a closed form, judged on another split alone, and bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.core.finite import FiniteThreat
from robustkit.data.arrays import as_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.models.load import load_model
from robustkit.registry import read_threat
from robustkit.search.universal import train_universal as train

EPS = {"linf": 0.1, "l2": 0.5}


class Linear(nn.Module):
    """The margin of class 1 is w·(x − 1/2) − 0.8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(3)) - 0.5

    def forward(self, x: Tensor) -> Tensor:
        margin = ((x - 0.5) * self.weight).flatten(1).sum(1) - 0.5
        return torch.stack([margin * 0, margin], 1)


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    """Inside the box by more than any perturbation, all of class 0."""
    x = 0.25 + 0.5 * torch.rand(200, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return x, torch.zeros(200, dtype=torch.long)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_the_best_perturbation_is_found(
    norm: str, points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    (x, y), model, file = points, Linear(), tmp_path / "v.npz"
    best = {"linf": EPS["linf"] * model.weight.sign(),
            "l2": EPS["l2"] * model.weight / model.weight.norm()}[norm]  # fmt: skip
    told = train(model, x[:100], y[:100], f"{norm}:{EPS[norm]}", file)
    right = model(x + best).argmax(1) == 0
    found = torch.from_numpy(np.load(file)["delta"])
    assert found == pytest.approx(best, abs=1e-5)
    assert told == float(right[:100].double().mean()) < 1
    data = as_dataset("arrays", (x, torch.cat([y[:-1], y[:1] + 1])))
    record = robustkit.evaluate(
        model, data, f"universal:{file}", points=range(100, 199), folder=tmp_path / "run"
    )
    assert record.points.variants == ["01"[bit] for bit in right[100:199].tolist()]
    assert 0 < record.robust < record.clean
    assert record.threat.variants == [f"{norm}:{EPS[norm]}@1"]
    checked = verify_record(load_baselines(tmp_path / "run")[0], model, data)
    assert checked.holds


def test_a_real_model_is_judged_on_what_training_has_not_seen(tmp_path: Path) -> None:
    data = robustkit.open_dataset("bundled")
    model = load_model("undefended", data=data).model.eval()
    x, y = data.fetch(range(100))
    told = train(model, x, y, "linf:0.15", tmp_path / "v.npz", epochs=3)
    again = train(model, x, y, "linf:0.15", tmp_path / "w.npz", epochs=3)
    assert told == again < 0.8
    assert (tmp_path / "v.npz").read_bytes() == (tmp_path / "w.npz").read_bytes()
    text = f"universal:{tmp_path / 'v.npz'}"
    record = robustkit.evaluate(model, "bundled", text, points=range(100, 180), folder=tmp_path)
    assert record.robust < record.clean - 0.1
    threat = read_threat(text)
    assert isinstance(threat, FiniteThreat) and record.threat.content == threat.digest()
    with pytest.raises(UsageError, match=r"was trained on points 98, 99: judge it on others"):
        robustkit.evaluate(model, "bundled", text, points=range(98, 105), folder=tmp_path / "same")


def test_what_cannot_be_used_is_refused(points: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    (x, y), file = points, tmp_path / "v.npz"
    with pytest.raises(UsageError, match=r"expected a file that .*train_universal wrote"):
        read_threat("universal:none.npz")
    for threat in ("l1:3", "patch:2x2"):
        with pytest.raises(UsageError, match=f"trained in linf and l2, got {threat}"):
            train(Linear(), x, y, threat, file)
    with pytest.raises(UsageError, match=r"images \[n, \*f\] with n labels.*\[200, 1, 5, 5\]"):
        train(Linear(), x, y[:3], "l2:1", file)
    with pytest.raises(UsageError, match="has no gradient"):
        train(lambda z: torch.eye(2)[z.flatten(1).argmax(1) * 0], x, y, "l2:1", file)
    train(Linear(), x[:20], y[:20], "l2:0.5", file, epochs=1)
    with pytest.raises(UsageError, match=r"like the perturbation, got \[1, 4, 4\]"):
        robustkit.evaluate(Linear(), (x[:, :, :4, :4], y), f"universal:{file}")
    stored = dict(np.load(file))
    np.savez(file, **{**stored, "delta": 9 * stored["delta"]})
    with pytest.raises(UsageError, match=r"is no part of l2:0\.5"):
        read_threat(f"universal:{file}")
