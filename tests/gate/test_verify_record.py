"""`robustkit verify-record`: what an edit cannot change is how the model answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from robustkit.cli.program import program as main
from robustkit.record.ledger import Ledger
from robustkit.record.record import content_digest, load

MODEL = "pgd_at"


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bundled images that breaks some points and leaves others robust."""
    out = tmp_path_factory.mktemp("made")
    words = ("evaluate", MODEL, "--attack", "fgsm", "--n", "40", "--device", "cpu", "--out", out)
    assert ask(*words).exit_code == 0
    return out / MODEL


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    copy = tmp_path / "run"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def checks(folder: Path, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    result = ask("verify-record", folder / "record.json", "--json", *words)
    assert result.exit_code == code, result.output
    told = json.loads(result.stdout)
    assert told["holds"] is (code == 0)
    return {check["what"]: check for check in told["checks"]}


def forge(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a record as somebody does who computes every digest anew."""
    path = folder / "record.json"
    raw = json.loads(path.read_text())
    edit(raw)
    with Ledger(folder / "ledger.sqlite", None) as ledger:
        raw["ledger"] = ledger.seal().model_dump()
    del raw["digest"]
    path.write_text(json.dumps(raw | {"digest": content_digest(raw)}))
    load(path)


def edit_ledger(folder: Path, statement: str, *values: Any) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as plain:
        assert plain.execute(statement, values).rowcount > 0
    plain.close()


def test_what_was_found_holds_when_the_model_is_asked_again(folder: Path) -> None:
    record = load(folder / "record.json")
    broken = record.points.status.count("broken")
    assert 0 < broken < record.n
    found = checks(folder)
    assert {name: (c["checked"], c["differing"]) for name, c in found.items()} == {
        "weights": (1, 0),
        "clean predictions": (record.n, 0),
        "stored inputs lie in the threat model": (broken, 0),
        "the model misclassifies them": (broken, 0),
        "the record says so, at their distance": (broken, 0),
        "stored proofs hold": (0, 0),
        "a sample withstands the record's attacks": (0, 0),  # the whole run costs three passes each
    }
    assert ask("verify-record", folder, "--quiet").output == ""


def verified(folder: Path, *words: str, code: int = 0) -> dict[str, Any]:
    result = ask("verify-record", folder / "record.json", "--json", *words)
    assert result.exit_code == code, result.output
    return dict(json.loads(result.stdout))


def sampled(told: dict[str, Any]) -> dict[str, Any]:
    (found,) = (check for check in told["checks"] if check["what"].startswith("a sample"))
    return dict(found)


def test_a_robust_point_that_falls_shows_though_all_digests_are_made_anew(folder: Path) -> None:
    """The forger calls broken points robust, and drops their inputs from the ledger."""
    before = load(folder / "record.json")
    pairs = zip(before.points.index, before.points.status, strict=True)
    fell = [point for point, status in pairs if status == "broken"]

    def call_robust(raw: dict[str, Any]) -> None:
        points = raw["points"]
        for row, status in enumerate(points["status"]):
            if status == "broken":
                points["status"][row] = "robust"
                points["attack"][row] = points["distance"][row] = None

    edit_ledger(folder, "DELETE FROM broken")
    forge(folder, call_robust)
    told = verified(folder, "--sample", "40", code=1)
    assert sampled(told)["points"] == fell
    assert sampled(told)["differing"] == len(fell)


def test_a_sample_is_attacked_again_and_the_rest_is_named(folder: Path) -> None:
    record = load(folder / "record.json")
    robust = record.points.status.count("robust")
    told = verified(folder, "--sample", "5", "--seed", "3")
    assert (sampled(told)["checked"], sampled(told)["differing"]) == (5, 0)
    (line,) = (line for line in told["unchecked"] if "not attacked again" in line)
    assert line.startswith(f"{robust - 5} of {robust} points that it calls robust")
    assert "with 95% confidence at most 45.1% of all fall" in line  # 1 - 0.05 ** (1 / 5)
    whole = verified(folder, "--sample", "1000")
    assert sampled(whole)["checked"] == robust
    assert not any("not attacked again" in line for line in whole["unchecked"])
    shown = ask("verify-record", folder, "--sample", "5", "--seed", "3").stdout
    assert "Not checked: whether other attacks break more" in shown
    assert "--seed 3 draws this sample" in shown


def test_all_checks_together_take_a_tenth_of_the_run(tmp_path: Path) -> None:
    out = tmp_path / "long"
    words = ("--attack", "pgd(steps=100)", "--certify", "none", "--n", "60", "--out", out)
    assert ask("evaluate", MODEL, *words, "--device", "cpu").exit_code == 0
    told = verified(out / MODEL)
    assert sampled(told)["checked"] > 0
    assert told["passes"] <= told["passes_of_the_run"] / 10


def exchange(place: Path, what: str) -> None:
    """Give a point another image, which its proof holds of too; or the network other weights."""
    manifest = json.loads((place / "manifest.json").read_text())
    if what == "image":
        name = min(manifest["points"])
        with np.load(place / f"{name}.npz") as held:
            arrays = dict(held)
        np.savez(place / f"{name}.npz", **{**arrays, "x": arrays["x"] * np.float32(1 - 1e-6)})
        content = (place / f"{name}.npz").read_bytes()
        manifest["points"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    else:
        path = place / "network.safetensors"
        weights = load_file(path)
        name = max(weights, key=lambda name: weights[name].numel())
        weights[name] = weights[name] * 1.01
        save_file(weights, path)
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))


def test_stored_proofs_are_checked_too(tmp_path: Path) -> None:
    out = tmp_path / "proved"
    words = ("--certify", "crown", "--save-proofs", "--attack", "fgsm", "--n", "6", "--out", out)
    assert ask("evaluate", "ibp", *words, "--device", "cpu").exit_code == 0
    found = {check["what"]: check for check in verified(out / "ibp")["checks"]}
    checked = found["stored proofs hold"]["checked"]
    assert checked == load(out / "ibp" / "record.json").points.status.count("certified") > 0
    place, kept = out / "ibp" / "proofs", tmp_path / "kept"
    shutil.copytree(place, kept)
    exchange(place, "image")
    told = {c["what"]: c for c in verified(out / "ibp", code=1)["checks"]}["stored proofs hold"]
    assert len(told["points"]) == 1
    assert "the image of the data" in told["note"]
    shutil.copytree(kept, place, dirs_exist_ok=True)
    exchange(place, "network")
    told = {c["what"]: c for c in verified(out / "ibp", code=1)["checks"]}["stored proofs hold"]
    assert told["differing"] == 1
    assert "found a network" in told["note"]
    shutil.copytree(kept, place, dirs_exist_ok=True)
    (first,) = sorted((out / "ibp" / "proofs").glob("*.npz"))[:1]
    first.write_bytes(first.read_bytes()[:-1] + b"\1")
    told = verified(out / "ibp", code=1)
    assert any(c["differing"] for c in told["checks"] if c["what"] == "stored proofs hold")


def test_another_model_is_not_the_one_of_the_record(folder: Path) -> None:
    told = verified(folder, "--model", "undefended", code=1)
    found = {check["what"]: check for check in told["checks"]}
    assert found["weights"]["differing"] == 1
    assert not any("weights" in text for text in told["unchecked"])  # it was checked, and differs


def test_a_verdict_forged_with_its_digests_shows(folder: Path) -> None:
    """The record and the ledger say that no point was broken; the stored inputs still break."""
    record = load(folder / "record.json")
    broken = [p for p, s in zip(record.points.index, record.points.status, strict=True)
              if s == "broken"]  # fmt: skip

    def shrink(raw: dict[str, Any]) -> None:
        points = raw["points"]
        points["distance"] = [d and d / 2 for d in points["distance"]]

    edit_ledger(folder, "UPDATE broken SET distance = distance / 2")
    forge(folder, shrink)
    found = checks(folder, code=1)
    assert found["the record says so, at their distance"]["points"] == broken


def test_a_forged_prediction_shows(folder: Path) -> None:
    record = load(folder / "record.json")
    row = record.points.status.index("misclassified")
    point, label = record.points.index[row], record.points.label[row]
    other = next(k for k in range(10) if k not in (label, record.points.predicted[row]))

    def answer(raw: dict[str, Any]) -> None:
        raw["points"]["predicted"][row] = other

    edit_ledger(folder, "UPDATE clean SET predicted = ? WHERE point = ?", other, point)
    forge(folder, answer)
    assert checks(folder, code=1)["clean predictions"]["points"] == [point]


@pytest.mark.parametrize(
    ("value", "what"),
    [(2.0, "stored inputs lie in the threat model"), (None, "the model misclassifies them")],
)
def test_swapped_inputs_show_though_their_digest_is_made_anew(
    value: float | None, what: str, folder: Path
) -> None:
    """An input out of the box; the clean image itself."""
    from robustkit.data.open import open_dataset

    record = load(folder / "record.json")
    point = record.points.index[record.points.status.index("broken")]
    image = open_dataset("bundled").fetch(np.array([point]))[0][0].numpy()
    image = image if value is None else np.full_like(image, value)
    blob = zlib.compress(image.astype("<f4").tobytes())
    edit_ledger(folder, "UPDATE broken SET example = ? WHERE point = ?", blob, point)
    result = ask("verify-record", folder)  # the digest is the old one
    assert result.exit_code == 1
    assert "its stored adversarial inputs differ" in result.stderr
    forge(folder, lambda raw: None)
    assert checks(folder, code=1)[what]["points"] == [point]


def test_an_edited_record_differs(folder: Path) -> None:
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    result = ask("verify-record", path)
    assert result.exit_code == 1
    assert "record.json was altered" in result.stderr


@pytest.mark.parametrize(("key", "option"), [("defense", "--model"), ("data", "--data")])
def test_what_a_record_names_is_not_run(
    key: str, option: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    marker = folder / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")

    def name(raw: dict[str, Any]) -> None:
        if key == "defense":
            raw["defense"] = "code.py:model"
        else:
            raw["arguments"]["data"] = "code.py:points"

    forge(folder, name)
    result = ask("verify-record", "record.json")
    assert result.exit_code == 2
    assert f"name it yourself: `robustkit verify-record record.json {option}" in result.stderr
    assert not marker.exists()


def test_a_record_without_its_ledger_says_what_was_not_asked(folder: Path) -> None:
    (folder / "ledger.sqlite").unlink()
    found = checks(folder)
    assert found["clean predictions"]["checked"] == 40
    assert "have no stored input" in found["stored inputs lie in the threat model"]["note"]


def test_distances_beyond_eps_are_held_against_the_model_too(tmp_path: Path) -> None:
    out = tmp_path / "near"
    words = ("--minimum-norm", "--attack", "fmn(steps=20)", "--n", "20", "--out", out)
    assert ask("evaluate", MODEL, *words, "--threat", "linf:0.1").exit_code == 0
    found = checks(out / MODEL)
    assert found["the model misclassifies them"]["checked"] > 0


def test_an_honest_record_of_a_randomized_model_holds(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(
        "import torch\nfrom robustkit import load_model\nfrom robustkit.data.open import "
        "open_dataset\n\nclass Noisy(torch.nn.Module):\n    def __init__(self):\n        "
        "super().__init__()\n        self.inner = load_model('pgd_at', "
        "data=open_dataset('bundled')).model\n\n    def forward(self, x):\n        "
        "return self.inner(x + 0.3 * torch.randn_like(x))\n"
    )
    name = f"{tmp_path / 'noisy.py'}:Noisy"
    words = ("--attack", "pgd(steps=5)", "--n", "20", "--device", "cpu", "--out", tmp_path / "out")
    assert ask("evaluate", name, *words).exit_code == 0
    (record,) = (tmp_path / "out").rglob("record.json")
    found = checks(record.parent, "--model", name)
    assert found["stored inputs lie in the threat model"]["checked"] > 0
    assert found["the model misclassifies them"]["note"] == "the model is randomized: it varies"


def test_help_answers_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from robustkit.cli.program import program as main\n"
        "try: main(['verify-record', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
