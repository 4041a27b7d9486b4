"""The first minute: a certificate by default, and what to do next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit.cli.program import program as main

MODELS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3))

class Branching(nn.Module):  # torch.fx cannot follow it
    def forward(self, x):
        return x.flatten(1)[:, :3] if x.detach().sum() > -1 else -x.flatten(1)[:, :3]
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models.py and data.npz: 12 points of 6 x 6, 3 classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).random((12, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(12) % 3)
    return tmp_path


def evaluate(model: str, *arguments: str) -> Result:
    common = ["--data", "npz:data.npz", "--threat", "linf:0.02", "--device", "cpu", "--out", "out"]
    return CliRunner().invoke(main, ["evaluate", model, *common, "--attack", "fgsm", *arguments])


def record(room: Path, model: str) -> Any:
    return json.loads((room / "out" / f"models.py-{model}" / "record.json").read_text())


def test_interval_bounds_are_tried_unless_something_else_is_asked_for(room: Path) -> None:
    """There is nothing to branch on in a linear network."""
    assert "certified" in evaluate("models.py:net").stdout
    found = record(room, "net")
    assert found["certify"] == "ibp"
    assert "certified" in found["points"]["status"]
    result = evaluate("models.py:net", "--certify", "none", "--fresh")
    assert (result.exit_code, record(room, "net")["certify"]) == (0, None)
    assert "certified" not in result.stdout


def test_the_bracket_closes_within_a_share_of_the_time(room: Path) -> None:
    """Record and table state the budget, and what it leaves undecided."""
    more = ["--threat", "linf:0.1"]
    result = evaluate("models.py:deep", *more, "--json")
    assert result.exit_code == 0, result.stderr
    found = record(room, "deep")
    assert found["certify"] == "auto(share=0.15)"
    (line,) = json.loads(result.stdout)["rows"]
    status = found["points"]["status"]
    assert line["undecided"] == status.count("robust") / 12
    told = evaluate("models.py:deep", *more).stdout
    assert ("certified within 15% of the run's time" in told) == ("robust" in status)
    quick = evaluate("models.py:deep", *more, "--certify", "quick", "--fresh")
    assert quick.exit_code == 0, quick.stderr
    assert "certified within" not in quick.stdout
    first = record(room, "deep")["points"]["status"].count("certified")
    assert status.count("certified") >= first


def test_a_model_without_a_certificate_is_evaluated_all_the_same(room: Path) -> None:
    result = evaluate("models.py:Branching")
    assert result.exit_code == 0, result.stderr
    assert record(room, "Branching")["certify"] is None
    assert "certificate" not in result.stderr
    asked = evaluate("models.py:Branching", "--certify", "ibp", "--fresh")
    assert asked.exit_code == 2


def test_a_folder_from_before_the_default_goes_on_without_a_certificate(room: Path) -> None:
    assert evaluate("models.py:net", "--certify", "none").exit_code == 0
    before = record(room, "net")
    result = evaluate("models.py:net")
    assert result.exit_code == 0, result.stderr
    assert record(room, "net") == before
    other = evaluate("models.py:net", "--certify", "quick")
    assert (other.exit_code, "certify was not given" in other.stderr) == (2, True)


def test_only_a_certificate_that_was_asked_for_is_attacked(room: Path) -> None:
    result = evaluate("models.py:net", "--attack-certified")
    assert (result.exit_code, "--attack-certified needs --certify" in result.stderr) == (2, True)


def test_the_last_lines_are_commands_that_work(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(*_: object) -> list[str]:
        return ["models.py:net", "models.py:Branching"]

    monkeypatch.setattr("robustkit.cli.evaluate.plan.bundled", two)
    common = ["--data", "npz:data.npz", "--threat", "linf:0.02", "--attack", "fgsm"]
    result = CliRunner().invoke(main, ["evaluate", *common, "--out", "a b"])
    assert result.exit_code == 0, result.stderr
    _, claim, report, own = result.stdout.splitlines()[-4:]
    table = (room / "a b" / "leaderboard.csv").read_text().splitlines()
    best = table[1].split(",")[table[0].split(",").index("defense")]
    assert shlex.split(claim, comments=True)[:3] == ["robustkit", "evaluate", best]
    for line in (claim, report):
        done = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert done.exit_code == 0, done.stderr
    assert "path/to/model.py:make" in own
    told = evaluate("models.py:net", "--out", "own").stdout
    assert told.endswith("Next:\n  robustkit report own    # the evidence as a page\n")
