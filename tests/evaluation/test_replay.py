"""Stored adversarial inputs on another model: counted only if verified, each one pass."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustkit import adversarial_inputs
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.budget import StoppingRule
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.stages.replay import find_examples
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import LedgerReader, open_readonly
from robustkit.record.ledger_schema import SEAL
from robustkit.record.record import Record

THREAT = Threat.parse("linf:0.06")


def run(model: nn.Module, data: Dataset, folder: Path, **more: object) -> Record:
    given = {"threat": THREAT, "attacks": ["fgsm"], **more}
    return evaluate(model, name="toy", data=data, folder=folder, device="cpu", **given)  # type: ignore[arg-type]


@pytest.fixture
def other(nearest: nn.Module) -> nn.Module:
    """A slightly different model."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    model.load_state_dict(nearest.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def earlier(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> Path:
    run(nearest, blobs, tmp_path / "earlier" / "toy", attacks=["apgd(steps=10)"])
    return tmp_path / "earlier"


def test_what_breaks_the_other_model_too_counts_and_is_shown(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    stored = adversarial_inputs(earlier / "toy")
    record = run(other, blobs, tmp_path / "new", replay=earlier)
    x, y = blobs.fetch(list(stored))
    z = torch.stack(list(stored.values()))
    with torch.no_grad():
        right, fooled = other(x).argmax(1) == y, other(z).argmax(1) != y
    expected = {p for p, ok in zip(stored, (right & fooled).tolist(), strict=True) if ok}
    points = zip(record.points.index, record.points.attack, strict=True)
    assert {p for p, attack in points if attack == "replay"} == expected != set()
    replay, fgsm = record.stages
    assert replay.attack == "replay"
    assert (replay.broken, replay.backwards) == (len(expected), 0)
    assert replay.forwards == replay.jobs == int(right.sum())
    assert fgsm.entered == replay.entered - replay.broken
    assert record.flips == 0


def test_replay_costs_a_pass_each_and_breaks_at_least_what_attacks_alone_do(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    alone = run(other, blobs, tmp_path / "alone")
    both = run(other, blobs, tmp_path / "both", replay=earlier)
    assert both.robust <= alone.robust
    assert both.outcomes.items() >= {p: False for p, ok in alone.outcomes.items() if not ok}.items()


def test_inputs_outside_the_threat_model_are_no_evidence(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    narrow = Threat.parse("linf:0.01")
    record = run(other, blobs, tmp_path / "new", replay=earlier, threat=narrow)
    distances = [d for d in record.points.distance if d is not None]
    assert all(d <= 0.01 + 1e-6 for d in distances)
    assert record.stages[0].forwards < record.stages[0].jobs


def test_inputs_of_other_data_are_doubted(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    class Listener(Watcher):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    x, y = blobs.fetch(range(80))
    moved = from_arrays("moved", x.flip(3).numpy(), y.numpy(), classes=4)
    for data, pace, doubted in (
        (blobs, None, False), (moved, None, True),
        (moved, StoppingRule(), True), (blobs, StoppingRule(), False),
    ):  # fmt: skip
        heard, folder = Listener(), tmp_path / f"{data.name}-{pace is None}"
        record = run(other, data, folder, replay=earlier, watcher=heard, budget=pace)
        told = [note for note in heard.notes if "inputs to replay lies within" in note]
        assert len(told) == doubted
        assert all("none of the " in note for note in told)
        assert (record.stages[0].broken == 0) == doubted


def test_a_proved_point_that_falls_stops_the_run(
    nearest: nn.Module,
    blobs: Dataset,
    earlier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Liar:
        name, batch = "ibp", 16

        def prove(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(x), dtype=torch.bool)

    monkeypatch.setattr(
        sys.modules["robustkit.evaluation.execute"], "build_certifier", lambda *_, **__: Liar()
    )
    with pytest.raises(RobustkitError, match="certificate refuted: replay broke points"):
        run(nearest, blobs, tmp_path / "new", replay=earlier, certify="ibp")


def test_several_ledgers_are_tried_in_turn_and_a_killed_run_goes_on(
    nearest: nn.Module, other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(other, blobs, earlier / "other")
    whole = run(nearest, blobs, tmp_path / "whole", replay=earlier, batch_size=8)
    write = Ledger.write
    calls = []

    def cut(self: Ledger, stage: int, *rest: object) -> None:
        calls.append(stage)
        if calls.count(-3) == 3:
            raise KeyboardInterrupt
        write(self, stage, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        run(nearest, blobs, tmp_path / "cut", replay=earlier, batch_size=8)
    monkeypatch.setattr(Ledger, "write", write)
    again = run(nearest, blobs, tmp_path / "cut", replay=earlier, batch_size=8)
    assert again.points == whole.points
    assert again.stages[0].forwards == whole.stages[0].forwards


def test_other_examples_make_it_another_run(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    run(other, blobs, tmp_path / "new", replay=earlier)
    with pytest.raises(UsageError, match="another configuration: replay was"):
        run(other, blobs, tmp_path / "new")


def test_reading_leaves_the_folder_as_it_was(earlier: Path) -> None:
    folder = earlier / "toy"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (path,) = find_examples(folder, (1, 6, 6)).ledgers
    with open_readonly(path) as ledger:
        assert ledger.stored()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_replayed_is_refused(
    nearest: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path
) -> None:
    def refused(folder: Path, shape: tuple[int, ...], told: str) -> None:
        with pytest.raises(UsageError, match=told):
            find_examples(folder, shape)

    refused(tmp_path, (1, 6, 6), r"holds no ledger\.sqlite")
    refused(earlier, (3, 6, 6), r"of shape \[1, 6, 6\], but the data has \[3, 6, 6\]")
    run(nearest, blobs, tmp_path / "empty", save_adversarial=False)
    refused(tmp_path / "empty", (1, 6, 6), "holds no adversarial inputs")
    with Ledger(earlier / "toy" / "ledger.sqlite", None) as ledger:
        ledger.remember("x", 1)
        refused(earlier, (1, 6, 6), "in use by another run")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "ledger.sqlite").write_bytes(b"no database" * 100)
    refused(damaged, (1, 6, 6), "cannot be read")


def test_the_digest_sees_every_example(earlier: Path, tmp_path: Path) -> None:
    shutil.copytree(earlier, tmp_path / "copy")
    same = find_examples(tmp_path / "copy", (1, 6, 6))
    assert same.digest() == find_examples(earlier, (1, 6, 6)).digest()
    database = sqlite3.connect(tmp_path / "copy" / "toy" / "ledger.sqlite")
    database.execute(
        "UPDATE broken SET example = NULL WHERE point = (SELECT min(point) FROM broken)"
    )
    database.commit()
    database.close()
    assert same.digest() != find_examples(earlier, (1, 6, 6)).digest()
    with open_readonly(same.ledgers[0]) as ledger:
        stored = ledger.examples((1, 6, 6))
    assert stored and all(np.isfinite(example.numpy()).all() for example in stored.values())


def test_a_ledger_without_a_seal_is_checked_no_more_often_in_smaller_batches(
    other: nn.Module, blobs: Dataset, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "unsealed"
    place.mkdir()
    shutil.copy(earlier / "toy" / "ledger.sqlite", place)
    database = sqlite3.connect(place / "ledger.sqlite")
    database.execute("DELETE FROM memo WHERE key = ?", (SEAL,))
    database.commit()
    database.close()
    checks: list[Path] = []
    check = LedgerReader._check_rows

    def counted(self: LedgerReader) -> None:
        checks.append(self.path)
        check(self)

    monkeypatch.setattr(LedgerReader, "_check_rows", counted)
    counts = []
    for batch_size in (80, 4):
        checks.clear()
        run(other, blobs, tmp_path / f"new-{batch_size}", replay=place, batch_size=batch_size)
        counts.append(checks.count(place / "ledger.sqlite"))
    assert 0 < counts[1] == counts[0]
