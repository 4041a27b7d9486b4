"""Runs of version 0.1.0 are read, ranked, gated, resumed and replayed by this version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from robustkit import adversarial_inputs
from robustkit.cli.program import program as main
from robustkit.leaderboard.rows import load_records
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import Cost
from robustkit.record.record import load, save

OLD = Path(__file__).parents[1] / "golden" / "old_run"
RECORDS = Path(__file__).parents[2] / "leaderboards" / "records"
ATTACKS = ("--attack", "apgd(steps=10)", "--attack", "square(queries=50)")
ARGUMENTS = {
    "whole/pgd_at": ("pgd_at", *ATTACKS),
    "fast/pgd_at": ("pgd_at", "--suite", "fast"),
    "certified/ibp": ("ibp", "--attack", "apgd(steps=10)", "--certify", "ibp"),
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old runs, as SQLite writes even where it only reads; no configuration near."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(OLD, tmp_path / "old")


def ask(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result


def evaluate(*arguments: str | Path) -> Result:
    return ask("evaluate", *arguments, "--n", "24", "--device", "cpu", "--threads", "1")


def costs(folder: Path) -> dict[int, Cost]:
    with Ledger(folder / "ledger.sqlite", None) as ledger:
        return ledger.costs()


def lost(old: Any, new: Any) -> Any:
    """Return what `old` says and `new` does not; a newer version may say more."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = {key: lost(value, new.get(key)) for key, value in old.items()}
        return {key: part for key, part in parts.items() if part} or None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [part for pair in zip(old, new, strict=True) if (part := lost(*pair))] or None
    return None if old == new else (old, new)


@pytest.mark.parametrize(
    "file", sorted([*RECORDS.glob("*.json"), *OLD.rglob("record.json")]), ids=lambda file: file.stem
)
def test_a_record_is_read_and_nothing_of_it_is_lost(file: Path, tmp_path: Path) -> None:
    save(load(file), tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert lost(json.loads(file.read_text()), again) is None


def test_all_records_of_the_leaderboards_are_found() -> None:
    assert {path for path, _ in load_records([RECORDS])} == set(RECORDS.glob("*.json")) != set()


def test_old_records_are_ranked(old: Path) -> None:
    rows = json.loads(ask("leaderboard", old, "--format", "json").stdout)["rows"]
    assert {row["defense"] for row in rows} == {"pgd_at", "ibp"}
    assert {Path(row["record"]).parent for row in rows} == {old / name for name in ARGUMENTS}
    for row in rows:
        assert row["robust"] == pytest.approx(load(Path(row["record"])).robust, abs=1e-4)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_old_record_passes_against_itself(name: str, old: Path) -> None:
    file = old / name / "record.json"
    (check,) = json.loads(ask("check", file, "--baseline", file, "--json").stdout)["checks"]
    assert check["answer"] == "pass"
    assert {found["drop"] for found in check["findings"] if found["metric"] == "robust"} == {0}


def test_a_run_of_a_suite_that_has_changed_since_is_refused(old: Path) -> None:
    """Its record is read, ranked and gated above; more passes would mix two line-ups."""
    folder = old / "fast/pgd_at"
    before = (folder / "record.json").read_bytes()
    told = CliRunner().invoke(
        main, ["evaluate", *ARGUMENTS["fast/pgd_at"], "--out", str(folder.parent), "--n", "24"]
    )
    assert told.exit_code == 2
    assert "attacks was" in told.stderr and "square(outlook=2, queries=5000)" in told.stderr
    assert (folder / "record.json").read_bytes() == before


@pytest.mark.parametrize("name", ["whole/pgd_at", "certified/ibp"])
def test_a_finished_ledger_answers_without_an_attack(name: str, old: Path) -> None:
    """The record written anew from the ledger says what the old one said, at the old cost."""
    folder = old / name
    record, spent = load(folder / "record.json"), costs(folder)
    result = evaluate(*ARGUMENTS[name], "--out", folder.parent)
    (told,) = result.stderr.splitlines()  # no stage began, the record and the ledger agreed
    assert told.startswith("resumes: ") and "finished before" in told
    assert load(folder / "record.json") == record
    assert costs(folder) == spent
    (folder / "record.json").unlink()
    evaluate(*ARGUMENTS[name], "--out", folder.parent)
    again = load(folder / "record.json")
    points = again.points.model_copy(update={"proof": None})  # which a newer version tells
    assert (points, again.stages, again.audit) == (record.points, record.stages, record.audit)
    assert (again.forwards, again.backwards) == (record.forwards, record.backwards)


def test_a_killed_run_goes_on_to_the_verdicts_of_an_uninterrupted_one(old: Path) -> None:
    before = costs(old / "killed" / "pgd_at")[0]
    assert not before.finished
    evaluate("pgd_at", *ATTACKS, "--out", old / "killed")
    killed, whole = (load(old / name / "pgd_at" / "record.json") for name in ("killed", "whole"))
    one, other = killed.points, whole.points
    assert (one.index, one.status, one.attack) == (other.index, other.status, other.attack)
    assert [stage.broken for stage in killed.stages] == [stage.broken for stage in whole.stages]
    # What was finished is not done again: six tasks at most were in flight, of 11 passes each.
    assert 0 < before.forwards < killed.stages[0].forwards <= whole.stages[0].forwards + 6 * 11


@pytest.mark.parametrize("name", ["whole", "killed"])
def test_old_inputs_are_replayed(name: str, old: Path, tmp_path: Path) -> None:
    stored = adversarial_inputs(old / name / "pgd_at")
    assert stored
    evaluate("pgd_at", "--attack", "fgsm", "--replay", old / name, "--out", tmp_path / "new")
    points = load(tmp_path / "new" / "pgd_at" / "record.json").points
    attacked = zip(points.index, points.attack, strict=True)
    assert {point for point, attack in attacked if attack == "replay"} == set(stored)


def test_the_gate_replays_what_lies_beside_the_baseline(old: Path, tmp_path: Path) -> None:
    asked = ("pgd_at", "--baseline", old / "whole" / "pgd_at", "--device", "cpu", "--json")
    (check,) = json.loads(ask("check", *asked, "--out", tmp_path / "gate").stdout)["checks"]
    assert check["answer"] == "pass"
    assert check["replayed"] == len(adversarial_inputs(old / "whole" / "pgd_at")) > 0
