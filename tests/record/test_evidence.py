"""Edited evidence: whatever reads it says "altered" and names what differs, and refuses."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import robustkit
from robustkit.cli.program import program as main
from robustkit.errors import EvidenceAltered, UsageError, some
from robustkit.evaluation.budget import Budget
from robustkit.evaluation.stages.replay import find_examples
from robustkit.record.evidence import refuse_altered_ledger
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import BrokenPoint, Cost
from robustkit.record.record import content_digest, load, save

SHAPE = (1, 6, 6)


@pytest.fixture
def folder(tmp_path: Path, nearest: Any, blobs: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that broke some points and left others robust."""
    monkeypatch.chdir(tmp_path)
    return run(tmp_path / "run", nearest, blobs)


def run(folder: Path, model: Any, data: Any, **given: Any) -> Path:
    wanted: dict[str, Any] = {"attacks": ["fgsm"], "threat": "linf:0.05", "device": "cpu"}
    robustkit.evaluate(model, name="toy", data=data, folder=folder, **wanted | given)
    return folder


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def change(folder: Path, statement: str, *values: Any) -> None:
    """Edit the ledger as somebody with any SQLite would."""
    with sqlite3.connect(folder / "ledger.sqlite") as plain:
        assert plain.execute(statement, values).rowcount > 0
    plain.close()


def rewrite(path: Path, edit: Callable[[dict[str, Any]], object], *, renew: bool = False) -> None:
    raw = json.loads(path.read_text())
    edit(raw)
    if renew:  # as somebody does who knows the digest
        del raw["digest"]
        raw["digest"] = content_digest(raw)
    path.write_text(json.dumps(raw))


def acquit(raw: dict[str, Any]) -> None:
    """Let every broken point be robust."""
    points = raw["points"]
    for row, status in enumerate(points["status"]):
        if status == "broken":
            points["status"][row] = "robust"
            points["attack"][row] = points["distance"][row] = None


def slower(raw: dict[str, Any]) -> None:
    raw["seconds"] += 1


LEDGER_EDITS: dict[str, tuple[Any, ...]] = {
    "its verdicts": ("UPDATE broken SET distance = distance / 2",),
    "what identifies its run": ("UPDATE meta SET value = '7' WHERE key = 'seed'",),
    "its stored adversarial inputs": ("UPDATE broken SET example = ?", b"another"),
}
READERS = (
    ("leaderboard", "run"),
    ("history", "run"),
    ("report", "run", "--out", "page.html"),
    ("check", "run/record.json", "--baseline", "run"),
    ("baseline", "list", "run"),
)


def test_what_robustkit_wrote_is_taken(folder: Path) -> None:
    record = load(folder / "record.json")
    assert record.ledger is not None
    with Ledger(folder / "ledger.sqlite", None) as ledger:
        assert ledger.digests() == record.ledger
    refuse_altered_ledger(folder / "ledger.sqlite")
    for words in READERS:
        assert ask(*words).exit_code == 0, words


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_every_reader_refuses_an_edited_record(words: tuple[str, ...], folder: Path) -> None:
    rewrite(folder / "record.json", slower)
    result = ask(*words)
    assert result.exit_code == 2
    assert "record.json was altered" in result.stderr
    assert "its contents differ" in result.stderr
    assert "expected " in result.stderr
    assert "got " in result.stderr


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
@pytest.mark.parametrize("what", LEDGER_EDITS)
def test_every_reader_refuses_an_edited_ledger(
    what: str, words: tuple[str, ...], folder: Path
) -> None:
    change(folder, *LEDGER_EDITS[what])
    result = ask(*words)
    assert result.exit_code == 2
    assert f"ledger.sqlite was altered after robustkit had written it: {what}" in result.stderr


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_a_digest_made_anew_does_not_outvote_the_ledger(
    words: tuple[str, ...], folder: Path
) -> None:
    points = load(folder / "record.json").points
    broken = [p for p, s in zip(points.index, points.status, strict=True) if s == "broken"]
    assert 0 < len(broken) < len(points.index)
    rewrite(folder / "record.json", acquit, renew=True)
    result = ask(*words)
    assert result.exit_code == 2
    assert "record.json was altered" in result.stderr
    assert f"its verdicts on points {some(broken)} are not those of" in result.stderr


def test_a_digest_that_was_taken_out_is_missed(folder: Path) -> None:
    rewrite(folder / "record.json", lambda raw: raw.pop("digest"))
    with pytest.raises(EvidenceAltered, match="expected None"):
        load(folder / "record.json")


@pytest.mark.parametrize("what", LEDGER_EDITS)
def test_edited_inputs_are_not_replayed(what: str, folder: Path) -> None:
    change(folder, *LEDGER_EDITS[what])
    with pytest.raises(EvidenceAltered, match=f"altered .*{what}"):
        find_examples(folder, SHAPE)
    with pytest.raises(EvidenceAltered, match=f"altered .*{what}"):
        robustkit.adversarial_inputs(folder)


def test_the_inputs_of_another_run_are_not_those_of_the_record(
    folder: Path, nearest: Any, blobs: Any, tmp_path: Path
) -> None:
    other = run(tmp_path / "other", nearest, blobs, seed=1, attacks=["pgd(steps=3)"])
    (other / "ledger.sqlite").replace(folder / "ledger.sqlite")
    for words in READERS:
        assert "what identifies its run differ" in ask(*words).stderr
    with pytest.raises(EvidenceAltered, match="what identifies its run"):
        find_examples(folder, SHAPE)


@pytest.mark.parametrize("what", LEDGER_EDITS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_run_does_not_go_on_from_an_edited_ledger(
    what: str, kept: bool, folder: Path, nearest: Any, blobs: Any
) -> None:
    """Without its record too: the ledger knows its own digests."""
    change(folder, *LEDGER_EDITS[what])
    if not kept:
        (folder / "record.json").unlink()
    with pytest.raises(UsageError, match=r"altered|another configuration"):
        run(folder, nearest, blobs)
    run(folder, nearest, blobs, fresh=True)
    refuse_altered_ledger(folder / "ledger.sqlite")


def test_an_edit_that_takes_the_digests_of_the_ledger_out_is_seen(
    folder: Path, nearest: Any, blobs: Any
) -> None:
    change(folder, *LEDGER_EDITS["its verdicts"])
    change(folder, "DELETE FROM memo WHERE key = 'digests'")
    with pytest.raises(EvidenceAltered, match="its verdicts"):
        run(folder, nearest, blobs)


def test_a_run_that_goes_on_gets_new_digests(tmp_path: Path, nearest: Any, blobs: Any) -> None:
    folder, part = tmp_path / "run", Budget(forwards=40)
    run(folder, nearest, blobs, budget=part)
    first = load(folder / "record.json")
    run(folder, nearest, blobs)
    whole = load(folder / "record.json")
    assert first.n < whole.n
    assert first.ledger != whole.ledger
    assert first.digest != whole.digest
    refuse_altered_ledger(folder / "ledger.sqlite")


def test_writing_takes_the_digests_out_until_the_run_ends(folder: Path) -> None:
    path = folder / "ledger.sqlite"
    with Ledger(path, None) as ledger:
        ledger.remember("shape", list(SHAPE))  # nothing new
        ledger.refuse_altered()
        assert ledger.remembered("digests") is not None
        ledger.write(0, [], [BrokenPoint(1, 0, 2, 0.01)], Cost())
        assert ledger.remembered("digests") is None
    with pytest.raises(EvidenceAltered, match="its verdicts"):
        refuse_altered_ledger(path)
    (folder / "record.json").unlink()
    refuse_altered_ledger(path)  # of a run that was killed: nothing to compare


def test_a_saved_record_keeps_its_digest_through_a_change_of_ours(folder: Path) -> None:
    path = folder / "record.json"
    before = load(path)
    save(before.model_copy(update={"arguments": {"reason": "new data"}}), path)
    assert load(path).digest != before.digest
    assert load(path).ledger == before.ledger


def test_the_gate_does_not_pass_over_edited_inputs(folder: Path, tmp_path: Path) -> None:
    """They were left out without a word where they could not be used."""
    from robustkit.gate.baseline import load_baselines, stored_examples

    (baseline,) = load_baselines(folder)
    assert stored_examples(baseline, SHAPE) == folder
    change(folder, *LEDGER_EDITS["its stored adversarial inputs"])
    with pytest.raises(EvidenceAltered):
        stored_examples(baseline, SHAPE)


def test_any_input_that_was_swapped_shows(folder: Path) -> None:
    point = min(robustkit.adversarial_inputs(folder))
    with Ledger(folder / "ledger.sqlite", None) as ledger:
        before = ledger.digests()
        ledger.write(0, [], [BrokenPoint(point, 0, 1, 0.0, torch.zeros(SHAPE).numpy())], Cost())
        assert ledger.digests().inputs != before.inputs


def test_records_without_digests_are_named(
    folder: Path, make_record: Callable[..., Any], tmp_path: Path
) -> None:
    """An earlier robustkit wrote them: they are read, and it is said that edits do not show."""
    old, new = tmp_path / "old" / "record.json", folder / "record.json"
    save(make_record("toy", "rrrbbm" * 3), old)
    rewrite(old, lambda raw: [raw.pop(key) for key in ("digest", "ledger")])
    assert load(old).ledger is None
    told = f"{old} carries no digests of its ledger"
    assert told in ask("check", old, "--baseline", old).stderr
    assert "no digests" not in ask("check", old, "--baseline", old, "--quiet").stderr
    assert "no digests" not in ask("check", new, "--baseline", new).stderr
