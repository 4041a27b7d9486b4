from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from robustkit.core import json_files
from robustkit.errors import RobustkitError, UsageError
from robustkit.record import provenance
from robustkit.record.points import Points
from robustkit.record.record import SCHEMA, Record, load, save
from robustkit.record.schema import Commit, DataInfo, Stage, ThreatInfo, WeightsInfo
from robustkit.verify.flags import Flag

# Six points of three classes: 5 right, 2 taken by pgd and 1 by square, 1 proved.
COLUMNS: dict[str, list[Any]] = {
    "index": [10, 11, 12, 13, 14, 15],
    "label": [0, 0, 1, 1, 2, 2],
    "predicted": [0, 0, 1, 0, 2, 2],
    "status": ["robust", "certified", "broken", "misclassified", "broken", "broken"],
    "attack": [None, None, "pgd(steps=10)", None, "square", "pgd(steps=10)"],
    "distance": [None, None, 0.1, None, 1 / 3, 0.05],
}


def a_record(**changes: Any) -> Record:
    stage = Stage(
        attack="square", jobs=4, entered=4, broken=1, forwards=80, backwards=0, seconds=0.25
    )
    fields: dict[str, Any] = {
        "robustkit": "0.1.0",
        "defense": "trades(beta=6.0)",
        "data": DataInfo(
            name="toy", digest="d1", n=6, total=100, classes=3, shape=[1, 2, 2], note="made up"
        ),
        "threat": ThreatInfo(norm="linf", eps=8 / 255),
        "suite": None,
        "attacks": ["pgd(steps=10)", "square"],
        "seed": 7,
        "arguments": {"attack": ("pgd(steps=10)", "square"), "out": Path("runs"), "n": 6},
        "weights": WeightsInfo(digest="w1", parameters=10),
        "certify": "ibp",
        "randomized": False,
        "flags": [Flag(name="zero_gradients", message="gradients vanish on 3 of 6 points")],
        "notes": ["a note"],
        "stages": [stage],
        "points": Points(**COLUMNS),
        "forwards": 120,
        "backwards": 60,
        "flips": 0,
        "seconds": 0.1 + 0.2,
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.2.0"},
        "device": "cpu",
        "commit": Commit(hash="0" * 40, dirty=True),
    }
    return Record(**(fields | changes))


def test_accuracies_are_fractions_of_all_points() -> None:
    record = a_record()
    assert (record.n, record.clean, record.robust, record.certified) == (6, 5 / 6, 2 / 6, 1 / 6)
    assert record.outcomes == {10: True, 11: True, 12: False, 13: False, 14: False, 15: False}
    assert (record.forwards_per_point, record.backwards_per_point) == (20.0, 10.0)


def test_classes_and_the_strongest_attack() -> None:
    record = a_record()
    assert record.per_class == {0: 1.0, 1: 0.0, 2: 0.0}
    assert record.worst_class == (1, 0.0)
    assert record.strongest_attack == "pgd(steps=10)"
    assert record.class_name(1) == "1"
    named = record.data.model_copy(update={"class_names": ["cat", "dog", "eel"]})
    assert a_record(data=named).class_name(1) == "dog"


def test_an_unbroken_defense_has_no_strongest_attack_and_no_certificate_is_null() -> None:
    columns = {key: values[:1] for key, values in COLUMNS.items()}
    data = DataInfo(name="toy", digest="d", n=1, total=1, classes=2, shape=[4])
    record = a_record(points=Points(**columns), data=data, certify=None)
    assert record.strongest_attack is None
    assert record.certified is None


@pytest.mark.parametrize(("classes", "kept"), [(2, 1), (3, 1), (10, 3), (43, 13), (100, 30)])
def test_the_tail_is_three_tenths_of_the_classes_rounded_up(classes: int, kept: int) -> None:
    # Class c has c + 1 points, of which one stands.
    labels = [c for c in range(classes) for _ in range(c + 1)]
    first = [i == 0 or labels[i] != labels[i - 1] for i in range(len(labels))]
    points = Points(
        index=list(range(len(labels))),
        label=labels,
        predicted=labels,
        status=["robust" if stands else "broken" for stands in first],
        attack=[None if stands else "square" for stands in first],
        distance=[None] * len(labels),
    )
    data = DataInfo(
        name="toy", digest="d", n=len(labels), total=len(labels), classes=classes, shape=[4]
    )
    record = a_record(points=points, data=data)
    assert [c.label for c in record.tail] == list(range(classes))[: -kept - 1 : -1]
    expected = sum(1 / (c + 1) for c in range(classes - kept, classes)) / kept
    assert record.tail_30 == pytest.approx(expected, abs=1e-15)


def test_the_round_trip_is_exact(tmp_path: Path) -> None:
    path, again = tmp_path / "deep" / "record.json", tmp_path / "again.json"
    record = a_record()
    save(record, path)
    assert load(path) == record
    save(load(path), again)
    assert again.read_bytes() == path.read_bytes()
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert json.loads(path.read_text())["arguments"]["attack"] == ["pgd(steps=10)", "square"]


@given(st.floats(0, exclude_min=True, allow_infinity=False), st.text(), st.floats(0, 1e300))
def test_any_number_and_any_text_survive(eps: float, text: str, seconds: float) -> None:
    changes = {"threat": ThreatInfo(norm="l2", eps=eps), "defense": text, "seconds": seconds}
    record = a_record(**changes)
    raw = json_files.text(record.model_dump(mode="json", by_alias=True))
    assert Record.model_validate(json.loads(raw)) == record


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_does_not_have_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        a_record(seconds=value)
    with pytest.raises(ValidationError, match="not JSON compliant"):
        a_record(arguments={"eps": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_files.write({"rows": [{"value": value}]}, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"label": [0, 0]}, r"equal length expected, got \[6, 2, 6, 6, 6, 6\]"),
        ({"index": [1, 1, 2, 3, 4, 5]}, "listed once"),
        ({"attack": [None] * 6}, "point 12 is broken, yet its attack is None"),
        ({"attack": ["square", *COLUMNS["attack"][1:]]}, "point 10 is robust, yet its attack"),
        ({"distance": [0.1, *COLUMNS["distance"][1:]]}, "point 10 is robust, yet its distance"),
        ({"predicted": [1, 0, 1, 0, 2, 2]}, r"point 10 \(0 predicted as 1\) is robust"),
        ({"predicted": [0, 0, 1, 1, 2, 2]}, r"point 13 \(1 predicted as 1\) is misclassified"),
        ({"status": ["lost", *COLUMNS["status"][1:]]}, "status.0"),
    ],
)
def test_contradictory_points_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Points(**(COLUMNS | change))


def test_contradictory_records_are_refused() -> None:
    data = a_record().data
    for changes, sentence in (
        ({"certify": None}, "no certificate was asked for"),
        ({"attacks": ["square"]}, r"broken by \['pgd\(steps=10\)'\], not among the attacks"),
        ({"data": data.model_copy(update={"n": 7})}, r"7 points expected \(data.n\), got 6"),
        ({"data": data.model_copy(update={"classes": 2})}, "label 2 of 2 classes"),
        ({"data": data.model_copy(update={"class_names": ["a"]})}, "3 class names expected, got 1"),
    ):
        with pytest.raises(ValidationError, match=sentence):
            a_record(**changes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "expected JSON, got"),
        (b'{"schema": ', "expected JSON, got"),
        (b"\xff\xfe", "expected JSON, got"),
        (b"[" * 100_000, "expected JSON, got"),
        (b"[]", "expected schema 'robustkit/record/1', got None.*not a record"),
        (b'{"schema": "robustkit/rows/1"}', "got 'robustkit/rows/1'.*not a record"),
        (b'{"schema": "robustkit/record/2"}', "got 'robustkit/record/2'.*newer robustkit"),
        (b'{"schema": "robustkit/record/1"}', "got an error in robustkit: Field required"),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "strange.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"strange\.json: .*{sentence}"):
        load(path)


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save(a_record(), path)
    path.write_text(path.read_text().replace('"broken", "mis', '"robust", "mis'))
    with pytest.raises(UsageError, match=r"record\.json: .*points.*point 12 is robust, yet"):
        load(path)
    with pytest.raises(UsageError, match=r"absent\.json: expected a readable file, got: No such"):
        load(tmp_path / "absent.json")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    save(a_record(), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobustkitError, match=r"record\.json: could not be written \(No space left"):
        save(a_record(seed=8), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_weights_digest_sees_values_names_and_dtypes_only() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    digest, parameters = provenance.weights_digest(nn.Sequential(convolution, norm))
    assert parameters == 3 * 2 * 3 * 3 + 3 + 2 * 3
    same = nn.Sequential(convolution, norm).eval().requires_grad_(False)
    convolution.weight.data = convolution.weight.contiguous(memory_format=torch.channels_last)
    assert provenance.weights_digest(same)[0] == digest
    norm.get_buffer("running_mean")[0] += 1e-7
    changed = provenance.weights_digest(same)[0]
    assert changed != digest
    assert provenance.weights_digest(same.bfloat16())[0] not in (changed, digest)
    named = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    swapped = nn.ModuleDict({"b": named["a"], "a": named["b"]})
    assert provenance.weights_digest(named)[0] != provenance.weights_digest(swapped)[0]


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4, bias=False)
    assert provenance.weights_digest(nn.Sequential(layer, layer))[1] == 16


def test_versions_and_device_name_this_machine() -> None:
    found = provenance.versions()
    assert found["torch"] == torch.__version__
    assert {"python", "robustkit", "numpy"} <= found.keys()
    name = provenance.device_name(torch.device("cpu"))
    assert name.startswith("cpu: ")
    assert name.endswith(f", {torch.get_num_threads()} threads")


def test_a_cuda_device_tells_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 + device.index)
    assert provenance.device_peak(torch.device("cuda", 1)) == 8
    assert provenance.device_peak(torch.device("cpu")) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_and_whether_it_is_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.commit(tmp_path / "absent") is None
    git("init")
    assert provenance.commit(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first", "--no-gpg-sign")
    git("tag", "v1")
    (tmp_path / "robustkit-runs").mkdir()
    (tmp_path / "robustkit-runs" / "record.json").write_text("{}")
    assert provenance.commit(tmp_path) == Commit(hash=git("rev-parse", "HEAD"), dirty=False)
    (tmp_path / "file").write_text("two")
    assert provenance.commit(tmp_path) == Commit(hash=git("rev-parse", "HEAD"), dirty=True)


def test_no_git_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(".") is None
