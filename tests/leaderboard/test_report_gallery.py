"""The gallery shows the points of the record and no others, or says why it shows none."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustkit import Record, Threat, adversarial_inputs, evaluate, open_dataset
from robustkit.data.dataset import Dataset
from robustkit.leaderboard.report.gallery import GalleryMaker
from robustkit.leaderboard.report.images import LARGEST, data_uri, fitted, magnified, pixels
from robustkit.record.record import load


class Done(NamedTuple):
    """A finished run: its folder, its record, and the file of its images."""

    folder: Path
    record: Record
    images: Path

    @property
    def path(self) -> Path:
        return self.folder / "record.json"


def write(path: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    np.savez(path, x=x, y=y, classes=np.int64(4))


@pytest.fixture
def run(blobs: Dataset, nearest: nn.Module, tmp_path: Path) -> Done:
    x, y = blobs.fetch(np.arange(len(blobs)))
    path = tmp_path / "blobs.npz"
    write(path, x.numpy(), y.numpy())
    return evaluated(nearest, path, tmp_path / "run")


def evaluated(model: nn.Module, images: Path, folder: Path, **changes: Any) -> Done:
    name = f"npz:{images}"
    record = evaluate(
        model, name="nearest", data=open_dataset(name), threat=Threat("linf", 0.15), folder=folder,
        attacks=["pgd(steps=5)"], n=40, sample="balanced", device="cpu",
        arguments={"data": name}, **changes,
    )  # fmt: skip
    return Done(folder, record, images)


def test_shows_both_images_both_predictions_and_the_change(run: Done, nearest: nn.Module) -> None:
    found, reason = GalleryMaker().gallery(run.record, run.path, 8)
    assert reason == ""
    assert len(found) == 8
    points, stored = run.record.points, adversarial_inputs(run.folder)
    clean, labels = open_dataset(f"npz:{run.images}").fetch([p.point for p in found])
    for picture, before, label in zip(found, clean, labels, strict=True):
        after = stored[picture.point]
        assert points.status[points.index.index(picture.point)] == "broken"
        assert picture.label == str(int(label))
        assert picture.fooled == str(int(nearest(after[None]).argmax())) != picture.label
        assert picture.attack == "pgd(steps=5)"
        assert picture.distance == pytest.approx(float((after - before).abs().max()))
        assert picture.factor == pytest.approx(0.5 / picture.distance)
        shown = [torch.from_numpy(image).float() / 255 for image in picture.images]
        for image, meant in zip(shown, (before, after), strict=False):
            assert torch.allclose(image, meant[0], atol=0.5 / 255 + 1e-6)
        assert float(shown[2].min()) == 0 or float(shown[2].max()) == 1
    assert {picture.label for picture in found} == {"0", "1", "2", "3"}  # dealt over the classes


def test_a_smaller_gallery_is_the_start_of_a_larger_one(run: Done) -> None:
    few, many = (GalleryMaker().gallery(run.record, run.path, n).pictures for n in (3, 6))
    assert [p.point for p in few] == [p.point for p in many[:3]]


def test_the_data_are_opened_and_checked_once(run: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(name: str, **options: Any) -> Dataset:
        opened.append(name)
        return open_dataset(name, **options)

    monkeypatch.setattr("robustkit.data.open.open_dataset", counting)
    album = GalleryMaker()
    assert album.gallery(run.record, run.path, 2) is not None
    assert len(album.gallery(run.record, run.path, 2).pictures) == 2
    assert opened == [f"npz:{run.images}"]


class TestWithoutPicturesItSaysWhy:
    def reason(self, record: Record, path: Path, **album: Any) -> str:
        pictures, reason = GalleryMaker(**album).gallery(record, path, 4)
        assert pictures == []
        return reason

    def test_no_ledger(self, run: Done, tmp_path: Path) -> None:
        alone = tmp_path / "elsewhere" / "record.json"
        assert "no ledger.sqlite beside" in self.reason(run.record, alone)

    def test_nothing_broken_or_nothing_asked(
        self, run: Done, make_record: Callable[..., Record]
    ) -> None:
        assert self.reason(make_record("x", "rrm"), run.path) == "No point was broken."
        assert "asked for" in GalleryMaker().gallery(run.record, run.path, 0).reason

    def test_images_that_were_not_evaluated(self, run: Done) -> None:
        x, y = open_dataset(f"npz:{run.images}").fetch(np.arange(80))
        write(run.images, x.numpy() * 0.5, y.numpy())
        assert "digests differ" in self.reason(run.record, run.path)
        write(run.images, x.numpy()[:5], y.numpy()[:5])
        assert "digests differ" in self.reason(run.record, run.path)

    def test_images_that_are_gone(self, run: Done) -> None:
        run.images.unlink()
        assert "--data-root" in self.reason(run.record, run.path)

    def test_code_is_not_run_because_a_record_names_it(self, run: Done, tmp_path: Path) -> None:
        trap = tmp_path / "trap.py"
        trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef data(): return None\n")
        for name in (f"{trap}:data", "trap(x):data", f"(x){trap}:data", f"bundled()\n{trap}:data"):
            named = run.record.model_copy(update={"arguments": {"data": name}})
            assert "would run code" in self.reason(named, run.path)
        assert not (tmp_path / "sprung").exists()

    def test_a_record_that_names_nothing(self, run: Done) -> None:
        nameless = run.record.model_copy(update={"arguments": {}})
        assert "--data" in self.reason(nameless, run.path)
        found = GalleryMaker(data=f"npz:{run.images}").gallery(nameless, run.path, 4)
        assert len(found.pictures) == 4

    def test_inputs_that_were_not_stored(self, run: Done, nearest: nn.Module) -> None:
        bare = evaluated(nearest, run.images, run.folder / "bare", save_adversarial=False)
        assert "--no-save-adversarial" in self.reason(bare.record, bare.path)

    def test_the_ledger_of_another_run(self, run: Done, nearest: nn.Module) -> None:
        other = evaluated(nearest, run.images, run.folder / "other", seed=1)
        shutil.copy(other.folder / "ledger.sqlite", run.folder / "ledger.sqlite")
        assert "not that of the record" in self.reason(run.record, run.path)

    def test_a_damaged_ledger(self, run: Done) -> None:
        (run.folder / "ledger.sqlite").write_bytes(b"no database")
        assert "cannot be read" in self.reason(load(run.path), run.path)


class TestImages:
    def test_a_change_is_magnified_around_gray(self) -> None:
        before = np.full((1, 1, 3), 0.5)
        change, factor = magnified(before, before + np.array([[[0.1, -0.05, 0.0]]]))
        assert factor == pytest.approx(5)
        assert change.ravel() == pytest.approx([1.0, 0.25, 0.5])
        assert magnified(before, before)[1] == 1.0

    @pytest.mark.parametrize(
        ("channels", "shape"), [(1, (5, 7)), (2, (5, 7)), (3, (5, 7, 3)), (4, (5, 7, 3))]
    )
    def test_any_number_of_channels_can_be_shown(
        self, channels: int, shape: tuple[int, ...]
    ) -> None:
        assert pixels(np.zeros((channels, 5, 7))).shape == shape

    def test_a_png_holds_the_pixels_and_a_large_image_is_scaled_down(self) -> None:
        def opened(image: np.ndarray[Any, Any]) -> Image.Image:
            kind, _, packed = data_uri(image).partition(",")
            assert kind == "data:image/png;base64"
            return Image.open(io.BytesIO(base64.b64decode(packed)))

        image = np.arange(12, dtype=np.uint8).reshape(3, 4)
        assert np.array_equal(np.asarray(opened(image)), image)
        assert fitted(np.zeros((3, 2 * LARGEST, LARGEST))).shape == (3, LARGEST, LARGEST // 2)

    def test_the_magnification_told_is_that_of_the_image_as_it_is_shown(self) -> None:
        before = np.full((1, 2 * LARGEST, 2 * LARGEST), 0.5)
        after = before.copy()
        after[0, 0, 0] += 0.2  # one pixel of the four that are shown as one
        change, factor = magnified(fitted(before), fitted(after))
        assert factor == pytest.approx(10)  # by which 0.2 / 4 reaches white
        assert pixels(change).max() == 255
