"""`robustkit export-instances`: the undecided points of a record, for any verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from robustkit.certify.vnnlib.instance import instances
from robustkit.certify.vnnlib.read import query_of, read_query
from robustkit.certify.vnnlib.write import robustness
from robustkit.cli.program import program as main
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.export_instances import export_instances
from robustkit.models.onnx_network import Onnx
from robustkit.record.record import load

pytest.importorskip("onnx")


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with proved, broken, misclassified and undecided points."""
    out = tmp_path_factory.mktemp("made")
    words = ("evaluate", "ibp", "--attack", "fgsm", "--n", "60", "--device", "cpu", "--out", out,
             "--certify", "ibp")  # fmt: skip
    assert ask(*words).exit_code == 0
    return out / "ibp"


def test_every_undecided_point_becomes_an_instance(made: Path, tmp_path: Path) -> None:
    result = ask("export-instances", made, "--out", tmp_path, "--timeout", "20")
    assert result.exit_code == 0, result.output
    points = load(made / "record.json").points
    left = [p for p, status in zip(points.index, points.status, strict=True) if status == "robust"]
    assert 0 < len(left) < 30
    assert f"{len(left)} of 60 points are undecided" in result.stdout
    found = instances(tmp_path)
    assert [int(one.property.stem.rpartition("-")[2]) for one in found] == left
    assert {one.seconds for one in found} == {20.0}
    data = open_dataset("bundled")
    runtime = Onnx(found[0].network, found[0].network.read_bytes())
    for index, one in zip(left, found, strict=True):
        x, y = data.fetch([index])
        point, query = x.flatten().double().numpy(), read_query(one.property)
        assert len(query.disjuncts) == 9
        low, high = query.disjuncts[0].low, query.disjuncts[0].high
        np.testing.assert_array_equal(low, np.maximum(point - 0.1, 0.0))
        np.testing.assert_array_equal(high, np.minimum(point + 0.1, 1.0))
        answer = runtime.answer(x.numpy()).astype(float)
        assert int(answer.argmax()) == int(y)
        # The clean answer lies in none of the alternatives, and each one lets another class win.
        assert not any(d.holds(point, answer) for d in query.disjuncts)
        other = answer.copy()
        other[(int(y) + 1) % 10] = answer[int(y)]
        assert sum(d.holds(point, other) for d in query.disjuncts) == 1


def test_our_verifier_reads_what_is_written(made: Path, tmp_path: Path) -> None:
    assert ask("export-instances", made, "--out", tmp_path, "--timeout", "1").exit_code == 0
    lines = (tmp_path / "instances.csv").read_text().splitlines()
    (tmp_path / "instances.csv").write_text(lines[0] + "\n")
    found = ask("verify", tmp_path)
    assert found.exit_code == 0
    assert found.stdout.split(",")[2] in ("sat", "unsat", "unknown", "timeout")


def test_bounds_read_back_as_they_are() -> None:
    low, high = np.array([1e-7, 1 / 3]), np.array([0.1 + 0.2, 1.0])
    text = robustness(low, high, 1, 3, "two inputs")
    assert "-07" not in text
    (first, second) = query_of(text).disjuncts
    np.testing.assert_array_equal(first.low, low)
    np.testing.assert_array_equal(second.high, high)
    np.testing.assert_array_equal(first.rows[:, 2:], [[-1, 1, 0]])
    np.testing.assert_array_equal(second.rows[:, 2:], [[0, 1, -1]])


class Coupled(nn.Module):
    """Answers that depend on the other points of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last((x - x.mean(0)).flatten(1))
        return answer


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Coupled(), "exported to ONNX it is another function .the outputs differ by up to"),
        (lambda x: x.flatten(1)[:, :10], "expected an nn.Module to export, got a function"),
    ],
)
def test_a_model_that_onnx_does_not_hold_is_refused(
    made: Path, model: Any, message: str, tmp_path: Path
) -> None:
    (baseline,) = load_baselines(made)
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=message):
        export_instances(baseline, model, open_dataset("bundled"), tmp_path, 10.0)
    assert not list(tmp_path.iterdir())


def test_a_ball_that_is_no_box_is_refused(made: Path, tmp_path: Path) -> None:
    (baseline,) = load_baselines(made)
    info = baseline.record.threat.model_copy(update={"norm": "l2"})
    other = baseline._replace(record=baseline.record.model_copy(update={"threat": info}))
    with pytest.raises(UsageError, match=r"expected a threat model in linf, .* got l2:0.1"):
        export_instances(other, nn.Identity(), open_dataset("bundled"), tmp_path, 10.0)
