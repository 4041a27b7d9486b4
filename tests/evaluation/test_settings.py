"""From Python, in words: names of data and threat models, tensors, no name and no folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robustkit
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget
from robustkit.evaluation.identity import default_folder
from robustkit.evaluation.settings import ask
from robustkit.evaluation.watcher import Watcher
from robustkit.models.tuning import Tuning
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


def refused(model: nn.Module, given: dict[str, Any], told: str) -> None:
    """The request is refused in these words, and leaves nothing."""
    with pytest.raises(UsageError, match=told):
        run(model, **given)
    assert records() == []


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
        named = ask("trades", "bundled", "linf:0.1", notes=["mine"])
        assert named.name == "trades"
        assert named.notes[-1] == "mine"
        assert any(note.startswith("weights:") for note in named.notes)
        assert ask(nearest, "bundled", "linf:0.1").name == "Sequential"
        assert ask(nearest, "bundled", "linf:0.1", name="other").name == "other"
        assert ask(torch.sigmoid, "bundled", "linf:0.1").name == "sigmoid"

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
                r"expected \(x, y\), got x alone, of shape \(3, 1, 6, 6\)",
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
        refused(nearest, {"data": arrays} | changes, told)


_UNKNOWN: Any = "float64"


class TestTypes:
    def test_numbers_devices_and_masks_of_other_libraries_are_read(
        self, nearest: nn.Module, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        plain = run(nearest, arrays, seed=3, points=[1, 4])
        mask = np.isin(np.arange(len(arrays[1])), [1, 4])
        same = run(
            nearest, arrays, seed=np.int64(3), device=torch.device("cpu"), points=torch.tensor(mask)
        )
        assert same == plain  # the same run, read from its folder
        assert ask(nearest, arrays, "linf:0.1", points=mask.tolist()).points == (1, 4)
        assert ask(nearest, arrays, "linf:0.1", seed=2**63 - 1).seed == 2**63 - 1
        means: tuple[Any, ...] = (0.5, np.ones(1) / 2)
        one, many = (ask(nearest, arrays, "linf:0.1", mean=mean) for mean in means)
        assert one.notes == many.notes == ("inputs are normalized: mean 0.5, std 1",)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"seed": 2**63}, "^seed: expected a whole number from 0 to 9223372036854775807"),
            ({"seed": True}, "^seed: expected a whole number"),
            ({"seed": -1}, "^seed: expected a whole number"),
            ({"n": 1.5}, "^n: expected a whole number"),
            ({"n": 0}, "expected n from 1 to 80"),
            ({"batch_size": 0}, "^batch_size: expected a whole number of at least 1, got 0"),
            ({"workers": -1}, "^workers: expected a whole number of at least 1"),
            ({"fresh": "no"}, "^fresh: expected True or False"),
            ({"save_adversarial": 1}, "^save_adversarial: expected True or False"),
            ({"points": [True, False]}, "^points: expected a mask of 80, one for each, got 2"),
            ({"points": [0.5]}, "^points: expected positions"),
            ({"points": [[0], [1, 2]]}, "^points: expected positions"),
            ({"attacks": "fgsm"}, "^attacks: expected a list, got 'fgsm'"),
            ({"attacks": [b"fgsm"]}, "^attacks: expected a text"),
            ({"attacks": [], "suite": ""}, "^suite: expected a text, got ''"),
            ({"folder": ""}, "^folder: expected a path"),
            ({"folder": b"x"}, "^folder: expected a path"),
            ({"notes": "one"}, "^notes: expected a list"),
            ({"name": 5}, "^name: expected a text"),
            ({"device": 0}, "^device: expected a text"),
            ({"device": torch.device("meta")}, "expected device auto, cpu, cuda"),
            ({"arguments": [1]}, "^arguments: expected a dict"),
            ({"budget": 60}, "^budget: expected a robustkit.evaluation.budget.Budget"),
            ({"tuning": Tuning(_UNKNOWN)}, "^Unknown precision of the tuning 'float64'"),
            ({"watcher": Watcher}, "^watcher: expected an object, not a class"),
            ({"watcher": 5}, "^watcher: expected a robustkit.Watcher, got 5"),
            ({"progress": "yes"}, "^progress: expected True or False"),
            ({"threat": "linf:1e308"}, "^eps: expected a number that float32 can hold"),
            ({"threat": "linf:8"}, "linf:8 reaches beyond the box .* was 8/255 meant"),
            ({"threat": "l2:7"}, "no two inputs .* are farther apart than 6 in l2"),
            ({"threat": "l0:37"}, "no two inputs .* are farther apart than 36 in l0"),
        ],
    )
    def test_what_is_of_another_type_or_range_is_refused(
        self,
        nearest: nn.Module,
        arrays: tuple[torch.Tensor, torch.Tensor],
        changes: dict[str, Any],
        told: str,
    ) -> None:
        refused(nearest, {"data": arrays} | changes, told)

    def test_a_model_is_a_module_a_function_or_a_name(
        self, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        for model in (nn.Sequential, 5, b"trades", None):
            with pytest.raises(UsageError, match=r"^model: expected an nn.Module"):
                robustkit.evaluate(model, data=arrays, threat="linf:0.1", attacks=["fgsm"])  # type: ignore[arg-type]

    @pytest.mark.parametrize("changes", [{"seconds": 0}, {"seconds": math.nan}, {"forwards": 0}])
    def test_a_budget_that_allows_nothing_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=rf"^{next(iter(changes))}: expected"):
            Budget(**changes)

    def test_what_excludes_each_other_is_told_by_argument_and_option(
        self, nearest: nn.Module, arrays: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        told = r"^budget \(--max-time, --max-forwards\) does not go with minimum_norm"
        with pytest.raises(UsageError, match=told):
            run(nearest, arrays, attacks=["fmn"], minimum_norm=True, budget=Budget(forwards=9))


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
        place = default_folder("npz:a/b.npz", "l2:0.5", None, 7, 3, {"weights": "w"})
        assert place.parent == Path("robustkit-runs")
        assert place.name.startswith("npz-a-b.npz-l2-0.5-attacks-7-s3-")
        assert place != default_folder("npz:a/b.npz", "l2:0.5", None, 7, 3, {"weights": "v"})


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
        for part in ("it [2J: clean", "it [2J: fgsm", f"{standing} of 80 robust", "Record:"):
            assert part in err
        assert "\x1b[2J" not in err
