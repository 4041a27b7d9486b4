"""`robustkit evaluate --eps-grid` and `--minimum-norm`: files, tables, JSON, bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit.cli.program import program as main
from robustkit.record.record import load

MODELS = """
import torch
from torch import nn

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

def other():
    return net(1)
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models.py and data.npz: 24 points of 6 x 6, 3 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTKIT_DEBUG", raising=False)
    (tmp_path / "models.py").write_text(MODELS)
    x = np.random.default_rng(0).random((24, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(24) % 3)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def evaluate(*arguments: str) -> Result:
    return run("evaluate", "--data", "npz:data.npz", "--device", "cpu", *arguments)


GRID = ("models.py:net", "--threat", "linf", "--eps-grid", "0.03,1/100,0.06", "--attack", "pgd")
NEAR = ("models.py:net", "--minimum-norm", "--attack", "fmn(steps=20)", "--out", "out")


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestGrid:
    def test_leaves_a_record_per_eps_and_prints_one_curve(self, room: Path) -> None:
        result = evaluate(*GRID, "--out", "out")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("chance: clean accuracy") == 1
        cells = [line.split() for line in result.stdout.splitlines()]
        assert [line[0] for line in cells if line and line[0] in ("0", "0.01", "0.03", "0.06")] == [
            "0", "0.01", "0.03", "0.06"
        ]  # fmt: skip
        assert "without another attack" in result.stdout
        steps = lines(room / "out" / "curve.csv")
        assert [step["eps"] for step in steps] == ["0.01", "0.03", "0.06"]
        for step in steps:
            record = load(room / step["record"])
            assert step["record"] == f"out/models.py-net/linf-{step['eps']}/record.json"
            assert float(step["robust"]) == pytest.approx(record.robust, abs=1e-4)
            assert record.arguments["eps_grid"] == [0.06, 0.03, 0.01]
        assert [int(step["carried"]) > 0 for step in steps][-1] is False
        board = run("leaderboard", "out", "--format", "csv")
        assert board.stdout == (room / "out" / "leaderboard.csv").read_text()
        assert [line["eps"] for line in lines(room / "out" / "leaderboard.csv")] == [
            "0.01", "0.03", "0.06"
        ]  # fmt: skip

    def test_json_holds_the_rows_and_the_curve(self, room: Path) -> None:
        result = evaluate(*GRID, "models.py:other", "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert [len(found["rows"]), len(found["curve"])] == [6, 6]
        for model in ("models.py:net", "models.py:other"):
            curve = [step for step in found["curve"] if step["defense"] == model]
            assert [step["eps"] for step in curve] == [0.01, 0.03, 0.06]
            robust = [step["robust"] for step in curve]
            assert robust == sorted(robust, reverse=True)
        (folder,) = (room / "robustkit-runs").iterdir()
        assert folder.name.startswith("npz-data.npz-linf-0.01-0.06-attacks-24-s0-")

    def test_the_order_in_which_the_radii_are_typed_does_not_matter(self, room: Path) -> None:
        first = evaluate(*GRID, "--out", "out", "--json")
        again = evaluate(*GRID[:3], "--eps-grid", "0.01,0.03,0.06", *GRID[5:], "--out", "out",
                         "--json")  # fmt: skip
        assert again.exit_code == 0, again.stderr
        assert again.stdout == first.stdout

    def test_certificates_stand_beside_the_robust_accuracy(self, room: Path) -> None:
        result = evaluate(*GRID, "--certify", "ibp", "--out", "out")
        assert result.exit_code == 0, result.stderr
        assert "≤" in result.stdout
        for step in lines(room / "out" / "curve.csv"):
            assert float(step["certified"]) <= float(step["robust"])

    def test_fresh_drops_the_records_of_other_radii(self, room: Path) -> None:
        evaluate(*GRID, "--out", "out", "--quiet")
        other = [*GRID[:3], "--eps-grid", "0.02,0.03", *GRID[5:], "--out", "out"]
        refused = evaluate(*other)
        assert refused.exit_code == 2
        assert "out holds another evaluation: eps_grid was 0.06, 0.03, 0.01, now" in refused.stderr
        assert evaluate(*other, "--fresh", "--quiet").exit_code == 0
        records = sorted(path.parent.name for path in (room / "out").rglob("record.json"))
        assert records == ["linf-0.02", "linf-0.03"]
        single = ["models.py:net", "--threat", "linf:0.02", "--attack", "pgd", "--out", "out"]
        assert evaluate(*single, "--fresh", "--quiet").exit_code == 0
        assert list((room / "out").rglob("record.json")) == [
            room / "out" / "models.py-net" / "record.json"
        ]


class TestMinimumNorm:
    @pytest.mark.parametrize(
        ("threat", "eps"), [("l2", 6.0), ("linf:0.05", 0.05), ("l1", 36.0), ("l2:0.5", 0.5)]
    )
    def test_distances_are_found_beyond_eps(self, room: Path, threat: str, eps: float) -> None:
        result = evaluate(*NEAR, "--threat", threat)
        assert result.exit_code == 0, result.stderr
        assert "distance within which so many points are broken" in result.stdout
        assert "plain gray" not in result.stderr
        record = load(room / "out" / "models.py-net" / "record.json")
        assert record.threat.eps == eps
        (row,) = lines(room / "out" / "distances.csv")
        found = [length for length in record.points.nearest or () if length is not None]
        assert (
            int(row["found"])
            == len(found)
            == record.points.status.count("broken") + (record.points.status.count("robust"))
        )
        steps = lines(room / "out" / "curve.csv")
        assert [float(step["eps"]) for step in steps] == sorted(
            float(f"{length:.6g}") for length in {0.0, *found}
        )
        assert float(steps[0]["robust"]) == pytest.approx(record.clean, abs=1e-4)
        assert float(steps[-1]["robust"]) == 0

    def test_json_holds_the_distances(self, room: Path) -> None:
        result = evaluate(*NEAR, "--threat", "l0", "--json")
        assert result.exit_code == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        assert found.keys() == {"schema", "rows", "curve", "distances"}
        (row,) = found["distances"]
        assert row["median"] == int(row["median"]) <= 36
        assert row["q10"] <= row["q25"] <= row["median"] <= row["q75"] <= row["q90"]

    def test_the_suite_is_the_default(self, room: Path) -> None:
        result = evaluate("models.py:net", "--minimum-norm", "--threat", "l0", "--n", "3", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["rows"][0]["suite"] == "minimum_norm"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--eps-grid", "0.1,x", "--threat", "linf"], "expected comma-separated numbers"),
        (["--eps-grid", "", "--threat", "linf"], "expected comma-separated numbers"),
        (["--eps-grid", "0.1,0.1", "--threat", "linf"], "the grid holds linf:0.1 twice"),
        (["--eps-grid", "0.1,0", "--threat", "linf"], "eps must be positive and finite, got 0.0"),
        (["--eps-grid", "0.1", "--threat", "l3"], "Unknown norm 'l3'"),
        (["--eps-grid", "1,2.5", "--threat", "l0"], "a whole number, got 2.5"),
        (
            ["--eps-grid", "0.1,0.2", "--threat", "linf:0.1"],
            "--threat linf:0.1 names an eps, and --eps-grid names others: give the norm alone, "
            "--threat linf.",
        ),
        (["--eps-grid", "0.1,0.2"], "no threat model is usual for 'npz:data.npz'"),
        (["--eps-grid", "0.1", "--minimum-norm", "--threat", "l2"], "exclude each other"),
        (["--minimum-norm", "--threat", "l2", "--attack", "pgd"], "pgd searches at a fixed eps"),
        (["--minimum-norm", "--threat", "l2", "--suite", "parity"], "apgd searches at a fixed eps"),
        (["--minimum-norm", "--threat", "l1", "--attack", "ddn"], "ddn supports l2, got l1"),
        (["--minimum-norm", "--threat", "9"], "Unknown norm '9'"),
        (["--threat", "linf"], "expected a threat model such as"),
        (["--threat", "l0:0.5"], "a whole number, got 0.5"),
        (["--threat", "l0:5", "--suite", "parity"], "the suite parity is not defined for l0"),
        (["--threat", "l0:5", "--attack", "apgd"], "apgd supports linf and l2, got l0. Use sigma"),
        (
            ["--threat", "l2:5", "--attack", "sigma_zero"],
            "sigma_zero supports l0 and l0px, got l2. Use fmn",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    room: Path, arguments: list[str], told: str
) -> None:
    result = evaluate("models.py:net", *arguments)
    assert result.exit_code == 2, result.stderr
    assert told in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in room.iterdir() if path.name[0] != "_") == [
        "data.npz", "models.py"
    ]  # fmt: skip
