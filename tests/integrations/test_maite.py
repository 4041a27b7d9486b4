"""MAITE's protocols: the adapters in its own tasks, its type checks and its spot checks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

import robustkit
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.maite import (
    FromMaite,
    MaiteAttack,
    MaiteDataset,
    MaiteModel,
    from_maite_dataset,
)

needs_maite = pytest.mark.skipif(
    importlib.util.find_spec("maite") is None, reason="maite is not installed"
)
ROOT = Path(__file__).parents[2]
# What a user writes, for a type checker: every adapter where MAITE expects its protocol.
TYPED = """
import maite.protocols.image_classification as ic
from maite.tasks import predict
from torch import nn

import robustkit
from robustkit.integrations.maite import MaiteAttack, MaiteDataset, MaiteModel


def use(model: nn.Module) -> None:
    dataset: ic.Dataset = MaiteDataset(robustkit.open_dataset("bundled"))
    wrapped: ic.Model = MaiteModel(model, "net")
    attack: ic.Augmentation = MaiteAttack(model, "pgd", "linf:0.1")
    predict(model=wrapped, dataset=dataset, augmentation=attack)
"""


class TestDataset:
    def test_items_and_back_again(self, blobs: Dataset) -> None:
        wrapped = MaiteDataset(blobs)
        image, target, metadata = wrapped[-1]
        assert (len(wrapped), metadata, target.shape) == (80, {"id": 79}, (4,))
        assert image.dtype == np.float32 and target.sum() == 1
        assert wrapped.metadata == {
            "id": "blobs", "index2label": {0: "0", 1: "1", 2: "2", 3: "3"}
        }  # fmt: skip
        with pytest.raises(IndexError, match="up to 79"):
            wrapped[80]
        back = from_maite_dataset(wrapped)
        mine, theirs = blobs.fetch(range(80)), back.fetch(range(80))
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
        assert (back.name, back.classes, back.class_names) == ("blobs", 4, ("0", "1", "2", "3"))

    def test_adversarial_inputs_take_the_place_of_clean_ones(self, blobs: Dataset) -> None:
        wrapped = MaiteDataset(blobs, {3: torch.zeros(1, 6, 6)})
        assert not wrapped[3][0].any() and wrapped[4][0].any()
        assert wrapped[3][1].argmax() == blobs.labels[3]

    @pytest.mark.parametrize("target", [[0.5, 0.5], [[1, 0]], []])
    def test_targets_without_one_class_are_refused(self, target: Any) -> None:
        class Unsure:
            metadata: ClassVar = {"id": "unsure"}

            def __len__(self) -> int:
                return 1

            def __getitem__(self, place: int) -> Any:
                return np.zeros((1, 4, 4)), np.array(target), {"id": place}

        with pytest.raises(UsageError, match=r"one largest entry.* at point 0"):
            from_maite_dataset(Unsure())


class TestModel:
    def test_logits_of_each_image(self, nearest: nn.Module, blobs: Dataset) -> None:
        x, _ = blobs.fetch(range(5))
        wrapped = MaiteModel(nearest, "nearest", "abcd")
        torch.testing.assert_close(torch.tensor(np.stack(wrapped(list(x.numpy())))), nearest(x))
        assert wrapped.metadata["index2label"][2] == "c" and wrapped([]) == []
        whole = (x * 255).round().byte()
        torch.testing.assert_close(
            torch.tensor(np.stack(wrapped(list(whole.numpy())))), nearest(whole / 255)
        )

    def test_one_of_theirs_is_evaluated(self, nearest: nn.Module, blobs: Dataset) -> None:
        theirs = FromMaite(MaiteModel(nearest, "nearest"))
        threat = "linf:0.2"
        mine = robustkit.evaluate(
            nearest, blobs, threat, attacks=["square(queries=30)"], progress=False, n=20
        )
        other = robustkit.evaluate(
            theirs, blobs, threat, attacks=["square(queries=30)"], progress=False, n=20
        )
        assert mine.points.status == other.points.status
        assert "broken" in other.points.status

    def test_tensors_keep_their_gradients(self, nearest: nn.Module, blobs: Dataset) -> None:
        def model(batch: Sequence[Tensor]) -> list[Tensor]:
            return list(nearest(torch.stack(list(batch))))

        x = blobs.fetch(range(3))[0].requires_grad_(True)
        logits = FromMaite(model, tensors=True)(x)
        (mine,) = torch.autograd.grad(nearest(x).square().sum(), x)
        (theirs,) = torch.autograd.grad(logits.square().sum(), x)
        torch.testing.assert_close(mine, theirs)
        assert not FromMaite(MaiteModel(nearest, "it"))(x).requires_grad

    @pytest.mark.parametrize("answers", [[], [np.zeros(3)], [np.zeros(3), np.zeros(4)]])
    def test_a_batch_answered_too_short_is_an_error(self, answers: list[NDArray[Any]]) -> None:
        with pytest.raises(RobustkitError, match="expected 2 targets"):
            FromMaite(lambda batch: answers)(torch.zeros(2, 1, 4, 4))


class TestAttack:
    def test_what_it_finds_does_not_depend_on_the_batch(
        self, nearest: nn.Module, blobs: Dataset
    ) -> None:
        wrapped = MaiteDataset(blobs)
        items = [wrapped[i] for i in range(12)]
        named: Any = [(x, y, {"id": f"image {m['id']}"}) for x, y, m in items]
        attack = MaiteAttack(nearest, "pgd(steps=5, restarts=2)", "linf:0.2", seed=3)

        def found(rows: Any) -> dict[Any, NDArray[Any]]:
            images, targets, metadata = zip(*rows, strict=True)
            made, same, told = attack((images, targets, metadata))
            np.testing.assert_array_equal(same, targets)
            assert told is metadata
            return {datum["id"]: image for datum, image in zip(told, made, strict=True)}

        for rows in (items, named):
            whole = found(rows)
            parts = found(rows[7:][::-1]) | found(rows[:7])
            assert all(np.array_equal(whole[key], parts[key]) for key in whole)
        x, y = blobs.fetch(range(12))
        z = torch.tensor(np.stack([found(items)[i] for i in range(12)]))
        assert bool(Threat.parse("linf:0.2").contains(z, x).all())
        assert int((nearest(z).argmax(1) != y).sum()) > int((nearest(x).argmax(1) != y).sum())

    def test_an_empty_batch(self, nearest: nn.Module) -> None:
        assert MaiteAttack(nearest, "pgd", "linf:0.1")(([], [], [])) == ([], [], [])


@needs_maite
class TestTheirOwnChecks:
    def test_their_tasks_run_the_adapters(self, nearest: nn.Module, blobs: Dataset) -> None:
        from maite.tasks import predict

        model, data = MaiteModel(nearest, "nearest"), MaiteDataset(blobs)

        def right(**more: Any) -> int:
            answers, batches = predict(
                model=model, dataset=data, batch_size=7, return_augmented_data=True, **more
            )
            flat: list[ArrayLike] = [row for batch in answers for row in batch]
            truth = [row for _, targets, _ in batches for row in targets]
            pairs = zip(flat, truth, strict=True)
            return sum(int(np.argmax(a) == np.argmax(b)) for a, b in pairs)

        x, y = blobs.fetch(range(80))
        assert right() == int((nearest(x).argmax(1) == y).sum())
        assert right(augmentation=MaiteAttack(nearest, "pgd(steps=5)", "linf:0.3")) < right() - 10

    def test_spot_checks_pass(self, nearest: nn.Module, blobs: Dataset) -> None:
        pytest.importorskip("beartype")
        import maite.protocols.image_classification as ic
        from maite.spotcheck import spotcheck_component

        data: Any = spotcheck_component(ic.Dataset)(MaiteDataset(blobs))
        model: Any = spotcheck_component(ic.Model)(MaiteModel(nearest, "nearest"))
        attack: Any = spotcheck_component(ic.Augmentation)(MaiteAttack(nearest, "pgd", "linf:0.1"))
        image, target, metadata = data[0]
        assert model([image])[0].shape == (4,)
        assert attack(([image], [target], [metadata]))[0][0].shape == image.shape

    @pytest.mark.slow
    def test_their_type_checker_accepts_them(self, tmp_path: Path) -> None:
        pytest.importorskip("pyright")
        (tmp_path / "use.py").write_text(TYPED)
        config = {"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
        words = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", "."]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "0 errors, 0 warnings" in done.stdout
