"""From Python, in words: names of data and threat models, tensors, no name and no folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustkit
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.request import ask, home
from robustkit.evaluation.watcher import Watcher
from robustkit.record.record import load


@pytest.fixture
def arrays(blobs: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """The blobs as two tensors."""
    return blobs.fetch(np.arange(len(blobs)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a folder leave it in the working directory."""
    monkeypatch.chdir(tmp_path)


def run(model: Any, data: Any, **changes: Any) -> robustkit.Record:
    given = {"threat": "linf:0.2", "attacks": ["fgsm"], "device": "cpu", **changes}
    return robustkit.evaluate(model, data=data, **given)


def records() -> list[Path]:
    return sorted(Path("robustkit-runs").rglob("record.json"))


class TestWords:
    def test_tensors_arrays_names_and_datasets_are_the_same_points(
        self, nearest: nn.Module, blobs: Dataset, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        x, y = arrays
        np.savez("blobs.npz", x=x.numpy(), y=y.numpy())
        forms = [blobs, arrays, (x.numpy(), y.numpy()), "npz:blobs.npz"]
        found = [run(nearest, form) for form in forms]
        assert len({record.data.digest for record in found}) == 1
        assert len({tuple(record.points.status) for record in found}) == 1
        assert [r.data.name for r in found] == ["blobs", "arrays", "arrays", "npz:blobs.npz"]
        assert found[3].arguments == {"data": "npz:blobs.npz"}

    def test_a_model_can_be_named_and_names_itself(self, nearest: nn.Module) -> None:
        named = ask("trades", None, "bundled", "linf:0.1", notes=["mine"])
        assert named.name == "trades"
        assert named.notes[-1] == "mine"
        assert any(note.startswith("weights:") for note in named.notes)
        assert ask(nearest, None, "bundled", "linf:0.1").name == "Sequential"
        assert ask(nearest, "other", "bundled", "linf:0.1").name == "other"
        assert ask(torch.sigmoid, None, "bundled", "linf:0.1").name == "sigmoid"

    def test_a_grid_takes_a_norm_and_words_too(
        self, nearest: nn.Module, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        small, large = robustkit.evaluate_grid(
            nearest, data=arrays, threat="linf", grid=[0.2, 0.1], attacks=["fgsm"], device="cpu"
        )
        assert (small.threat.eps, large.threat.eps) == (0.1, 0.2)
        assert {path.parent.name for path in records()} == {"linf-0.1", "linf-0.2"}

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"data": "bundeld"}, "Did you mean 'bundled'"),
            (
                {"data": torch.rand(3, 1, 6, 6)},
                r"expected \(x, y\) or a robustkit.data.Dataset",
            ),
            ({"threat": 8 / 255}, "expected a robustkit.Threat or a text such as 'linf:8/255'"),
            ({"threat": "linf"}, "expected a threat model such as"),
            ({"suite": "quick"}, "either a suite or a list of attacks"),
            ({"progress": True, "watcher": Watcher()}, "leave out watcher, or progress"),
        ],
    )
    def test_what_cannot_be_understood_is_refused_and_leaves_nothing(
        self,
        nearest: nn.Module,
        arrays: tuple[torch.Tensor, torch.Tensor],
        changes: dict[str, Any],
        told: str,
    ) -> None:
        with pytest.raises(UsageError, match=told):
            run(nearest, **({"data": arrays} | changes))
        assert records() == []


class TestHome:
    def test_the_same_run_comes_back_to_its_folder_and_another_does_not(
        self, nearest: nn.Module, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        first = run(nearest, arrays)
        assert [load(path) for path in records()] == [first]
        assert run(nearest, arrays) == first  # read from the folder: not a second was spent
        assert len(records()) == 1
        run(nearest, arrays, n=20)
        run(nearest, arrays, threat="linf:0.1")
        run(nearest, (arrays[0].flip(0), arrays[1].flip(0)))
        with torch.no_grad():
            nearest[1].bias += 1  # type: ignore[index]
        run(nearest, arrays)
        assert len(records()) == 5

    def test_the_name_says_what_is_inside(self) -> None:
        place = home("npz:a/b.npz", "l2:0.5", None, 7, 3, {"weights": "w"})
        assert place.parent == Path("robustkit-runs")
        assert place.name.startswith("npz-a-b.npz-l2-0.5-attacks-7-s3-")
        assert place != home("npz:a/b.npz", "l2:0.5", None, 7, 3, {"weights": "v"})


class TestProgress:
    def test_nothing_is_printed_unless_asked(
        self,
        nearest: nn.Module,
        arrays: tuple[torch.Tensor, torch.Tensor],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        run(nearest, arrays)
        assert capfd.readouterr() == ("", "")

    def test_bars_name_the_model_the_stages_and_the_record(
        self,
        nearest: nn.Module,
        arrays: tuple[torch.Tensor, torch.Tensor],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        record = run(nearest, arrays, progress=True, name="it\x1b[2J")
        out, err = capsys.readouterr()
        assert out == ""
        standing = sum(record.outcomes.values())
        for part in ("it [2J: clean", "it [2J: fgsm", f"{standing} of 80 standing", "Record:"):
            assert part in err
        assert "\x1b[2J" not in err
