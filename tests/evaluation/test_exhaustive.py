"""Runs under a finite threat model: exact verdicts, resumed; refused where a norm is asked for."""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robustkit
from robustkit.cli.program import program as main
from robustkit.core.stats.intervals import mean_interval
from robustkit.data.open import open_dataset
from robustkit.errors import EvidenceAltered, UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.models.load import load_model
from robustkit.record.evidence import refuse_altered
from robustkit.record.record import Record, content_digest, load

THREAT = "corruption:fog@3+shot_noise@1-2"
NAMES = ["fog@3", "shot_noise@1", "shot_noise@2"]


def run(folder: Path, **more: Any) -> Record:
    asked: dict[str, Any] = {"n": 30, "folder": folder, **more}
    return robustkit.evaluate("pgd_at", "bundled", THREAT, **asked)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def test_the_verdict_is_that_of_brute_force(record: tuple[Record, Path]) -> None:
    found, _ = record
    corrupt = importlib.import_module("robustkit.attacks._corruptions").corrupt
    data = open_dataset("bundled")
    model = load_model("pgd_at", data=data).model.eval()
    index = found.points.index
    x, y = data.fetch(index)
    right = np.zeros((len(index), 3), dtype=bool)
    for column, name in enumerate(NAMES):
        kind, _, severity = name.partition("@")
        made = [corrupt(z, kind, int(severity), p)
                for p, z in zip(index, x.numpy(), strict=True)]  # fmt: skip
        z = torch.from_numpy(np.stack(made)).float() / 255
        with torch.no_grad():
            right[:, column] = (model(z).argmax(1) == y).numpy()
    with torch.no_grad():
        clean = (model(x).argmax(1) == y).numpy()
    assert found.threat.variants == NAMES
    assert found.points.variants == ["".join("01"[bit] for bit in row) for row in right.astype(int)]
    assert found.clean == clean.mean()
    assert found.robust == (clean & right.all(1)).mean()
    assert 0 < found.points.status.count("broken") < 30
    assert found.attacks == ["exhaustive"] and found.suite == "exhaustive"
    assert found.strongest_attack == "exhaustive" and found.reliability == "reliable"
    for status, distance, row in zip(
        found.points.status, found.points.distance, right, strict=True
    ):
        if status == "broken":  # the least severe variant that errs
            assert distance == min(s for s, ok in zip((3, 1, 2), row, strict=True) if not ok)


def test_the_columns_follow_from_the_verdicts(record: tuple[Record, Path]) -> None:
    found = record[0]
    told = found.corruptions
    assert told is not None
    right = np.array([[sign == "1" for sign in row] for row in found.points.variants or ()])
    assert told.cells == dict(zip(NAMES, right.mean(0).tolist(), strict=True))
    fog, shot = right[:, 0].mean(), right[:, 1:].mean()
    assert told.kinds == pytest.approx({"shot_noise": shot, "fog": fog})
    assert told.mean == pytest.approx((shot + fog) / 2)
    assert told.worst[0] == "fog" and told.worst[1] == pytest.approx(fog)
    assert told.hardest is None
    assert found.robust <= min(told.cells.values())
    points = (right[:, 1:].mean(1) + right[:, 0]) / 2
    line = robustkit.leaderboard.rows.row(found, "there")
    assert line.norm == "corruption:fog@3+shot_noise@1-2" and line.eps == 3
    assert line.mean_corrupted == pytest.approx((shot + fog) / 2)
    ends = mean_interval(points.tolist())[1]
    assert (line.mean_corrupted_low, line.mean_corrupted_high) == pytest.approx(ends, abs=1e-6)
    assert line.corruptions == f"fog={fog:.4f}; shot_noise={shot:.4f}"


@pytest.mark.parametrize("batch", [1, 7])
def test_nothing_depends_on_the_batch(
    batch: int, record: tuple[Record, Path], tmp_path: Path
) -> None:
    points = record[0].points
    again = run(tmp_path, batch_size=batch, seed=5, n=None, points=points.index[3:17])
    assert again.points.variants == (points.variants or [])[3:17]


class Stop(robustkit.Watcher):
    """Ends a run after so many batches."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, robust: int, points: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_that_was_stopped_goes_on_to_the_same_record(
    record: tuple[Record, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batch_size=4, watcher=Stop(11))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        (through,) = ledger.execute("SELECT count(*) FROM spent WHERE job = 3").fetchone()
    assert 0 < through < 30
    resumed = run(tmp_path, batch_size=4)
    assert resumed.points == record[0].points
    assert resumed.stages[0].forwards == record[0].stages[0].forwards == 90


def test_the_record_is_borne_out_by_the_model_and_an_altered_input_is_not(
    record: tuple[Record, Path], tmp_path: Path
) -> None:
    (baseline,) = load_baselines(record[1])
    data = open_dataset("bundled")
    model = load_model("pgd_at", data=data).model
    told = verify_record(baseline, model, data, sample=5)
    assert told.holds, told.findings
    stored = {finding.what: finding for finding in told.findings}
    assert stored["stored inputs lie in the threat model"].checked > 0
    z = robustkit.adversarial_inputs(record[1])
    x = data.fetch(list(z))[0]
    made = torch.stack(list(z.values()))
    assert bool(baseline.threat.contains(made, x, points=list(z)).all())
    assert not bool(baseline.threat.contains(made + 0.001, x, points=list(z)).any())


def test_stored_inputs_are_not_tried_first(record: tuple[Record, Path], tmp_path: Path) -> None:
    """All variants are tried anyway, and of a randomized model a second vote may differ."""
    again = run(tmp_path, replay=record[1])
    assert [stage.attack for stage in again.stages] == ["exhaustive"]
    assert again.points == record[0].points


def test_a_randomized_model_is_tried_beside_its_own_stored_inputs(tmp_path: Path) -> None:
    data = open_dataset("bundled")
    bare = load_model("pgd_at", data=data).model.eval()

    def noisy(x: Tensor) -> Tensor:
        logits: Tensor = bare(x)
        return logits + 2 * torch.randn_like(logits)

    asked: dict[str, Any] = {"n": 10, "name": "noisy"}
    robustkit.evaluate(noisy, data, THREAT, folder=tmp_path / "first", **asked)
    again = robustkit.evaluate(
        noisy, data, THREAT, folder=tmp_path / "again", replay=tmp_path / "first", **asked
    )
    assert again.randomized
    assert again.points.variants is not None


def forged(record: tuple[Record, Path], folder: Path) -> Path:
    """Tell a point that is wrong under some variants to be wrong under others; digests made anew.

    Of a misclassified point, so that nothing contradicts it.
    """
    raw = json.loads((record[1] / "record.json").read_text())
    signs, status = raw["points"]["variants"], raw["points"]["status"]
    for place, right in enumerate(signs):
        if status[place] == "misclassified":
            signs[place] = right.translate({48: 49, 49: 48})
    raw["digest"] = content_digest({k: v for k, v in raw.items() if k != "digest"})
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(raw))
    return folder / "record.json"


def test_forged_answers_to_variants_show(record: tuple[Record, Path], tmp_path: Path) -> None:
    path = forged(record, tmp_path / "bare")
    data = open_dataset("bundled")
    model = load_model("pgd_at", data=data).model
    assert "misclassified" in record[0].points.status
    found = [verify_record(load_baselines(path)[0], model, data, seed=k) for k in range(6)]
    assert not all(one.holds for one in found)
    shutil.copy(record[1] / "ledger.sqlite", path.with_name("ledger.sqlite"))
    with pytest.raises(EvidenceAltered, match="verdicts on points"):
        refuse_altered(load(path), path)


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"attacks": ["pgd"]}, "pgd needs a norm .* leave out --attack"),
        ({"suite": "fast"}, "suite fast needs a norm .* --suite exhaustive"),
        ({"certify": "ibp"}, "certify=ibp .* needs a norm"),
        ({"minimum_norm": True}, "minimum_norm .* needs a norm"),
    ],
)
def test_what_needs_a_norm_is_refused_by_name(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        run(Path("unused"), **asked)


def test_the_other_refusals_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"exhaustive supports .* got linf\. Use --suite fast"):
        robustkit.evaluate("pgd_at", "bundled", "linf:0.1", suite="exhaustive", folder=tmp_path)
    x, y = torch.rand(4, 1, 20, 20), torch.tensor([0, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 2))
    with pytest.raises(UsageError, match=r"at least 28 pixels a side, got inputs \[1, 20, 20\]"):
        robustkit.evaluate(model, (x, y), "corruption:fog", folder=tmp_path)
    with pytest.raises(UsageError, match=r"robustkit\.attack needs a norm"):
        robustkit.attack(model, x, y, "pgd", "corruption:fog")


class Noisy(nn.Module):
    """Adds noise to the logits of another model: two passes differ."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits + 0.3 * torch.randn_like(logits)


def test_a_randomized_model_is_asked_repeatedly(tmp_path: Path) -> None:
    data = open_dataset("bundled")
    model = Noisy(load_model("undefended", data=data).model)
    torch.manual_seed(0)
    found = robustkit.evaluate(model, data, "corruption:shot_noise@5", n=20, folder=tmp_path)
    assert found.randomized and found.stages[0].forwards > 60
    assert found.points.errors is not None and None not in found.points.errors


def test_the_command_runs_and_resumes(tmp_path: Path) -> None:
    words = ["evaluate", "pgd_at", "--threat", "corruption:contrast@5", "--n", "12",
             "--out", str(tmp_path / "run")]  # fmt: skip
    for _ in range(2):
        ended = CliRunner().invoke(main, words)
        assert ended.exit_code == 0, ended.output
        assert "corruption:contrast@5" in ended.output
    refused = CliRunner().invoke(main, [*words, "--certify", "crown"])
    assert refused.exit_code == 2 and "--certify" in refused.output
    refused = CliRunner().invoke(main, [*words, "--eps-grid", "1,2"])
    assert refused.exit_code == 2 and "pick severities" in refused.output.replace("\n", " ")
