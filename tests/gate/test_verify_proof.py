"""`robustkit verify-proof`: files, digests and the record beside them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from robustkit.cli.program import program as main
from robustkit.record.record import load


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


EVALUATE = ("evaluate", "ibp", "--attack", "fgsm", "--n", "6", "--device", "cpu", "--certify",
            "alpha-crown", "--save-proofs")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stored its proofs."""
    out = tmp_path_factory.mktemp("made")
    result = ask(*EVALUATE, "--out", out)
    assert result.exit_code == 0, result.output
    return out / "ibp"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to edit."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def points_of(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in (run / "proofs").glob("*.npz"))


def fit(run: Path) -> None:
    """Compute all digests of the manifest anew, as somebody does who forges on purpose."""
    path = run / "proofs" / "manifest.json"
    told = json.loads(path.read_text())
    for name in told["files"]:
        told["files"][name] = hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
    for name, entry in told["points"].items():
        content = (path.parent / f"{name}.npz").read_bytes()
        entry["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(told))


def test_a_folder_emptied_of_its_proofs_does_not_pass(run: Path) -> None:
    path = run / "proofs" / "manifest.json"
    told = json.loads(path.read_text()) | {"points": {}, "files": {}}
    path.write_text(json.dumps(told))
    result = ask("verify-proof", run)
    assert result.exit_code == 1
    assert "certified points, found none" in result.output


def test_every_certified_point_has_a_proof_that_holds(made: Path) -> None:
    """The run's folder and the folder of proofs are both taken."""
    record = load(made / "record.json")
    certified = [p for p, s in zip(record.points.index, record.points.status, strict=True)
                 if s == "certified"]  # fmt: skip
    assert certified
    assert points_of(made) == sorted(certified)
    for place in (made, made / "proofs", made.parent):
        result = ask("verify-proof", place, "--json")
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["checks"]
        assert (found["proofs"], found["failures"]) == (len(certified), [])


def test_a_second_life_keeps_the_proofs(made: Path) -> None:
    """The same command again writes the same files."""
    before = {path.name: path.read_bytes() for path in (made / "proofs").iterdir()}
    assert ask(*EVALUATE, "--out", made.parent).exit_code == 0
    assert {path.name: path.read_bytes() for path in (made / "proofs").iterdir()} == before


def _cut(run: Path) -> None:
    path = run / "proofs" / f"{points_of(run)[0]}.npz"
    path.write_bytes(path.read_bytes()[:-40])


def _swap(run: Path) -> None:
    """Another point under this name."""
    first, second = points_of(run)[:2]
    folder = run / "proofs"
    shutil.copy(folder / f"{first}.npz", folder / f"{second}.npz")


def _weights(run: Path) -> None:
    path = run / "proofs" / "network.safetensors"
    tensors = load_file(path)
    last = max(tensors, key=lambda name: int(name.split(".")[0]))
    number = last.split(".")[0]
    save_file({**tensors, f"{number}.weight": -tensors[f"{number}.weight"]}, path)


def _manifest(key: str, value: Any) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "proofs" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return edit


def _label(run: Path) -> None:
    path = run / "proofs" / "manifest.json"
    told = json.loads(path.read_text())
    entry = told["points"][str(points_of(run)[0])]
    entry["label"] = (entry["label"] + 1) % 10
    path.write_text(json.dumps(told))


_SMALLER = {"norm": "linf", "eps": 0.01, "lower": 0.0, "upper": 1.0}


@pytest.mark.parametrize("digests_fit", [False, True])
@pytest.mark.parametrize(
    "edit",
    [_cut, _weights, _label, _manifest("record", "0" * 64), _manifest("threat", _SMALLER)],
    ids=["cut", "weights", "label", "record", "threat"],
)
def test_edited_files_fail(run: Path, edit: Callable[[Path], None], digests_fit: bool) -> None:
    """A line for each, and exit code 1, whether or not the digests are made to fit."""
    edit(run)
    if digests_fit:
        fit(run)
    result = ask("verify-proof", run)
    assert result.exit_code == 1, result.output
    assert "expected" in result.stdout or "cannot be read" in result.stdout


def test_the_proof_of_another_point_fails_by_its_digest(run: Path) -> None:
    """The digests tell which file is which point's."""
    if len(points_of(run)) < 2:
        pytest.skip("one certified point")
    _swap(run)
    result = ask("verify-proof", run)
    assert result.exit_code == 1
    assert f"point {points_of(run)[1]}: expected" in result.stdout


def test_a_folder_without_proofs_is_a_bad_request(tmp_path: Path) -> None:
    """And so are proofs of what is not known, before anything runs."""
    assert ask("verify-proof", tmp_path).exit_code == 2
    words = ("evaluate", "undefended", "--n", "2", "--attack", "fgsm", "--certify", "none")
    result = ask(*words, "--save-proofs", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--save-proofs" in result.stderr


def test_a_point_outside_of_its_box_proves_nothing(run: Path) -> None:
    """An empty ball would prove everything."""
    path = run / "proofs" / f"{points_of(run)[0]}.npz"
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    np.savez(path, **{**arrays, "x": arrays["x"] + 2})
    fit(run)
    assert ask("verify-proof", run).exit_code == 1
