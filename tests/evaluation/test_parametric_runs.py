"""Runs under a threat model with parameters: verdicts, resumed, verified, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robustkit
from robustkit.cli.program import program as main
from robustkit.core.parametric import ParametricThreat
from robustkit.core.rng import generator
from robustkit.data.arrays import as_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.record.record import Record, content_digest, load
from robustkit.registry import read_threat

THREAT = "style:mean=0.3,scale=3"


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 4, stride=2), nn.ReLU(), nn.Flatten(),
                                        nn.Linear(36, 4))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@pytest.fixture(scope="module")
def points() -> tuple[Tensor, Tensor]:
    x = torch.rand(24, 1, 8, 8, generator=generator(0, 1, 2))
    with torch.no_grad():
        return x, Tiny()(x).argmax(1)


def run(points: tuple[Tensor, Tensor], folder: Path, **more: Any) -> Record:
    return robustkit.evaluate(Tiny(), points, more.pop("threat", THREAT), folder=folder, **more)


@pytest.fixture(scope="module")
def found(
    points: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Record, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(points, folder, certify="auto(nodes=256)"), folder


def test_the_record_brackets_and_says_what_made_each_input(
    found: tuple[Record, Path], points: tuple[Tensor, Tensor]
) -> None:
    record, folder = found
    assert record.suite == "parametric" and record.attacks == ["parametric"]
    assert record.threat.text == THREAT and record.threat.eps == 1
    assert record.certified is not None and 0 < record.certified <= record.robust < 1
    threat = read_threat(THREAT)
    assert isinstance(threat, ParametricThreat)
    stored = robustkit.adversarial_inputs(folder)
    columns = zip(record.points.index, record.points.status, record.points.parameters or (),
                  record.points.distance, strict=True)  # fmt: skip
    for point, status, told, distance in columns:
        assert (told is not None) == (status == "broken")
        if told is None:
            continue
        made = threat.made(points[0][point : point + 1], torch.tensor([told]))
        assert torch.equal(made[0], stored[point])
        assert distance == max(map(abs, told)) / 1000
        with torch.no_grad():
            assert Tiny()(made).argmax() != points[1][point]
    assert load(folder / "record.json") == record


def test_a_record_is_verified_by_its_parameters_alone(
    found: tuple[Record, Path], points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    record, folder = found
    data = as_dataset("arrays", points)
    whole = verify_record(load_baselines(folder)[0], Tiny(), data, sample=2)
    assert whole.holds and whole.findings[-3].checked == record.points.status.count("broken")
    raw = json.loads((folder / "record.json").read_text())
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(raw))
    checked = verify_record(load_baselines(alone)[0], Tiny(), data, sample=2)
    assert checked.holds
    assert checked.findings[2].checked == record.points.status.count("broken")
    row = record.points.status.index("broken")
    told = raw["points"]["parameters"][row]
    moved = [told[0], -told[1]] if abs(told[0]) >= abs(told[1]) else [-told[0], told[1]]
    raw["points"]["parameters"][row] = moved
    raw.pop("digest")
    alone.write_text(json.dumps(raw | {"digest": content_digest(raw)}))
    edited = verify_record(load_baselines(alone)[0], Tiny(), data, sample=0)
    assert moved == told or not edited.holds
    raw["points"]["parameters"][row] = [7, 7]
    alone.write_text(json.dumps(raw | {"digest": content_digest(raw)}))
    with pytest.raises(UsageError, match="its parameters are"):
        load(alone)


class Stop(robustkit.Watcher):
    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, robust: int, points: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 4])
def test_a_run_that_was_stopped_goes_on_to_the_same_record(
    after: int, points: tuple[Tensor, Tensor], tmp_path: Path, found: tuple[Record, Path]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(points, tmp_path, watcher=Stop(after), batch_size=5)
    again = run(points, tmp_path, batch_size=5)
    for one, other in zip(again.points, found[0].points, strict=True):
        if one[0] in ("index", "attack", "distance", "parameters"):
            assert one == other


def test_rows_of_other_threat_models_have_no_field_for_it(
    points: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    run(points, tmp_path, threat="linf:0.1", attacks=["fgsm"])
    assert "parameters" not in json.loads((tmp_path / "record.json").read_text())["points"]


def test_what_needs_a_ball_is_refused(points: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    for more in ({"minimum_norm": True}, {"suite": "fast"}, {"attacks": ["apgd"]}):
        with pytest.raises(UsageError, match=r"needs a norm.*style.*--suite parametric"):
            run(points, tmp_path, **more)
    with pytest.raises(UsageError, match="needs a norm"):
        run(points, tmp_path, certify="ibp")
    told = CliRunner().invoke(main, ["evaluate", "pgd_at", "--threat", "style", "--eps-grid", "1"])
    assert told.exit_code == 2 and "varies the eps of a norm" in told.output


def test_the_gate_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def asked(*words: str) -> str:
        done = CliRunner().invoke(main, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    asked("init", "--model", "pgd_at", "--threat", "style:mean=0.05")
    path = Path("robustkit.toml")
    assert 'suite = "parametric"' in path.read_text()
    path.write_text(path.read_text().replace("# n = 1000", "n = 12 #"))
    asked("baseline", "update", "--reason", "first")
    assert "pass" in asked("check").lower()
    asked("report", "robustkit-baseline")
