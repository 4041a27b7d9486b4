"""A user's own data: npz files, image folders, functions; and the import strings that name code."""

from __future__ import annotations

import os
import sys
import textwrap
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from robustkit.core.imports import load_attribute
from robustkit.data import npz
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, digest, select
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError

Y4 = np.array([0, 1, 2, 1])
MB = 1 << 20


def random_bytes(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(folder: Path, save: Callable[..., None] = np.savez, **arrays: Any) -> str:
    save(folder / "set.npz", **arrays)
    return f"npz:{folder / 'set.npz'}"


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("side", [5, 200])
    def test_reads_back_what_was_stored(
        self, tmp_path: Path, save: Callable[..., None], order: Any, side: int
    ) -> None:
        x = random_bytes(4, 3, side, side)
        text = saved(tmp_path, save, x=np.asarray(x, order=order), y=Y4)
        data = open_dataset(text)
        assert isinstance(data, Dataset)
        assert (data.name, data.family) == (text, text)
        assert (data.shape, data.classes, data.labels.tolist()) == ((3, side, side), 3, Y4.tolist())
        got, y = data.fetch([3, 0])
        assert np.array_equal(got.numpy(), x[[3, 0]].astype(np.float32) / np.float32(255))
        assert y.tolist() == [1, 0]

    @pytest.mark.parametrize(
        ("stored", "shape"),
        [
            ((4, 6, 5), (1, 6, 5)),
            ((4, 6, 5, 3), (3, 6, 5)),
            ((4, 3, 6, 5), (3, 6, 5)),
            ((4, 1, 6, 5), (1, 6, 5)),
            ((4, 6, 5, 4), (4, 6, 5)),
        ],
    )
    def test_axes(self, tmp_path: Path, stored: tuple[int, ...], shape: tuple[int, ...]) -> None:
        x = random_bytes(*stored)
        data = open_dataset(saved(tmp_path, x=x, y=Y4))
        assert data.shape == shape
        want = x.reshape(4, 6, 5, -1) if stored[1] == 6 else x.transpose(0, 2, 3, 1)
        got = np.rint(data.fetch([0, 1, 2, 3])[0].numpy() * 255).transpose(0, 2, 3, 1)
        assert np.array_equal(got, want)

    @pytest.mark.parametrize(
        ("stored", "message"),
        [((4, 3, 5, 1), "both axis 1 and axis 3"), ((4, 7, 5, 2), "neither axis 1 nor axis 3")],
    )
    def test_axes_are_never_guessed(
        self, tmp_path: Path, stored: tuple[int, ...], message: str
    ) -> None:
        with pytest.raises(UsageError, match=rf'{message}.*layout="nhwc"'):
            open_dataset(saved(tmp_path, x=random_bytes(*stored), y=Y4))
        text = saved(tmp_path, x=random_bytes(*stored), y=Y4, layout="nchw")
        assert open_dataset(text).shape == stored[1:]

    def test_a_layout_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="one letter an axis, got 'nhw'"):
            open_dataset(saved(tmp_path, x=random_bytes(4, 3, 5, 5), y=Y4, layout="nhw"))

    def test_stated_classes(self, tmp_path: Path) -> None:
        x = random_bytes(4, 6, 5)
        assert open_dataset(saved(tmp_path, x=x, y=Y4, classes=7)).classes == 7
        with pytest.raises(UsageError, match=r"labels from 0 to 1, got 2 at point 2 \(1 of 4"):
            open_dataset(saved(tmp_path, x=x, y=Y4, classes=2))
        with pytest.raises(UsageError, match="classes as one integer"):
            open_dataset(saved(tmp_path, x=x, y=Y4, classes=2.5))

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (random_bytes(4, 6, 5).astype(np.int64) * 2, Y4, "integer images from 0 to 255, got"),
            (random_bytes(4, 6, 5) > 99, Y4, "expected x as bytes, or as float.*got bool"),
            (random_bytes(4, 6, 5).astype(np.int64) % 2, Y4, "all of it is black"),
            (random_bytes(4), Y4, r"expected x as vectors \[n, d\], images.*got \[4\]"),
            (random_bytes(4, 6, 5), Y4[:3], r"one label a point.*got y \[3\] for 4 points"),
            (random_bytes(4, 6, 5), Y4[:, None], r"got y \[4, 1\]"),
            (random_bytes(0, 6, 5), Y4[:0], "at least one point"),
            (random_bytes(4, 6, 5), Y4.astype(complex), "y as integers, got complex128"),
            (random_bytes(4, 6, 5), Y4 - 1, "labels from 0 to 1, got -1 at point 0"),
            (random_bytes(4, 6, 5).astype(object), Y4, "holds Python objects"),
        ],
    )
    def test_bad_arrays(
        self, tmp_path: Path, x: NDArray[Any], y: NDArray[Any], message: str
    ) -> None:
        text = saved(tmp_path, x=x, y=y)
        with pytest.raises(UsageError, match=message) as caught:
            open_dataset(text)
        assert "set.npz" in str(caught.value)

    @pytest.mark.parametrize("bad", [1.5, -0.001, np.nan, np.inf])
    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
    def test_floats_outside_the_range(self, tmp_path: Path, bad: float, kind: Any) -> None:
        x = np.full((4, 6, 5), 0.25, dtype=kind)
        x[2, 3, 4] = x[3, 0, 0] = bad
        with pytest.raises(UsageError, match=r"floats? images? in \[0, 1\], got .* at point 2\."):
            open_dataset(saved(tmp_path, x=x, y=Y4))

    def test_floats_are_checked_again_when_fetched(self) -> None:
        x = np.zeros((4, 6, 5), dtype=np.float32)
        data = from_arrays("live", x, Y4)
        x[1] = 255
        assert data.fetch([0, 2])[0].max() == 0
        with pytest.raises(UsageError, match="got 255 at point 1"):
            data.fetch([3, 1])
        with pytest.raises(UsageError, match="got 255 at point 1"):
            digest(data, np.arange(4))

    def test_missing_file_and_key(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nothing\.npz does not exist"):
            open_dataset(f"npz:{tmp_path / 'nothing.npz'}")
        with pytest.raises(UsageError, match="expected the key 'y', got x, labels"):
            open_dataset(saved(tmp_path, x=random_bytes(4, 6, 5), labels=Y4))

    def test_not_an_npz(self, tmp_path: Path) -> None:
        (tmp_path / "set.npz").write_bytes(b"no zip at all")
        with pytest.raises(UsageError, match="expected an npz file"):
            open_dataset(f"npz:{tmp_path / 'set.npz'}")

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_a_damaged_file(self, tmp_path: Path, save: Callable[..., None]) -> None:
        text = saved(tmp_path, save, x=random_bytes(40, 60, 50), y=np.zeros(40, dtype=int))
        path = Path(text.removeprefix("npz:"))
        whole = bytearray(path.read_bytes())
        whole[30:120] = bytes(90)
        path.write_bytes(bytes(whole))
        with pytest.raises(UsageError, match=r"damaged|expected an npz"):
            open_dataset(text)

    def test_a_header_that_promises_too_much(self, tmp_path: Path) -> None:
        text = saved(tmp_path, x=random_bytes(40, 60, 50), y=np.zeros(40, dtype=int))
        path = Path(text.removeprefix("npz:"))
        path.write_bytes(path.read_bytes().replace(b"(40, 60, 50)", b"(90, 60, 50)"))
        with pytest.raises(UsageError, match="cut short"):
            open_dataset(text)


class TestMemory:
    """64 MB on disk; numpy reports what it allocates to tracemalloc, maps do not count."""

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_opening_and_fetching_does_not_read_it_all(
        self, tmp_path: Path, save: Callable[..., None]
    ) -> None:
        x = np.zeros((64, 1024, 1024), dtype=np.uint8)
        x[63] = 255
        text = saved(tmp_path, save, x=x, y=np.arange(64) % 2)
        del x
        tracemalloc.start()
        try:
            data = open_dataset(text)
            assert tracemalloc.get_traced_memory()[1] < 4 * MB
            assert data.fetch([63])[0].min() == 1
            assert tracemalloc.get_traced_memory()[1] < 16 * MB
        finally:
            tracemalloc.stop()

    def test_floats_are_checked_in_parts(self, tmp_path: Path) -> None:
        text = saved(tmp_path, x=np.ones((256, 256, 256), dtype=np.float32), y=np.arange(256))
        tracemalloc.start()
        try:
            assert open_dataset(text).classes == 256
            assert tracemalloc.get_traced_memory()[1] < 24 * MB
        finally:
            tracemalloc.stop()

    def test_digest_and_select_do_not_grow_with_the_images(self, tmp_path: Path) -> None:
        text = saved(tmp_path, x=np.zeros((8192, 64, 64), dtype=np.uint8), y=np.arange(8192) % 8)
        data = open_dataset(text)
        tracemalloc.start()
        try:
            digest(data, select(data, None, 0))
            assert tracemalloc.get_traced_memory()[1] < 24 * MB
        finally:
            tracemalloc.stop()

    def test_a_stored_member_is_read_at_its_place(self, tmp_path: Path) -> None:
        """Bytes changed in the file after opening are seen: they had not been read before."""
        text = saved(tmp_path, x=np.full((64, 64, 64), 7, dtype=np.uint8), y=np.arange(64))
        path = Path(text.removeprefix("npz:"))
        x = npz.rows(path, "x")
        place = path.read_bytes().index(bytes([7]) * 100)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\x09")
        assert (x[:1][0, 0, 0], x[:1][0, 0, 1], x[63:][0, 63, 63]) == (9, 7, 7)

    def test_no_room_to_unpack(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        text = saved(tmp_path, np.savez_compressed, x=random_bytes(4, 6, 5), y=Y4)
        monkeypatch.setattr("robustkit.data.npz.shutil.copyfileobj", full)
        with pytest.raises(UsageError, match=r"No space left.*TMPDIR.*np\.savez"):
            open_dataset(text)


def image_folder(root: Path, mode: str = "RGB", suffix: str = "png") -> dict[str, NDArray[Any]]:
    """Three classes with two images each, 7 wide and 5 high."""
    made = {}
    for k, name in enumerate(("zebra", "ant", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.roll(random_bytes(5, 7, 3), k * 2 + i)
            pixels = pixels[..., 0] if mode == "L" else pixels
            Image.fromarray(pixels).save(root / name / f"{i}.{suffix}")
            made[f"{name}/{i}"] = pixels
    return made


class TestFolder:
    @pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tiff"])
    def test_classes_are_the_sorted_subfolders(self, tmp_path: Path, suffix: str) -> None:
        made = image_folder(tmp_path, suffix=suffix)
        (tmp_path / "ant" / "notes.txt").write_text("no image")
        (tmp_path / ".hidden").mkdir()
        data = open_dataset(f"folder:{tmp_path}")
        assert isinstance(data, Dataset)
        assert data.class_names == ("ant", "bee", "zebra")
        assert (data.shape, data.classes, data.labels.tolist()) == (
            (3, 5, 7),
            3,
            [0, 0, 1, 1, 2, 2],
        )
        x, y = data.fetch([5, 0])
        assert y.tolist() == [2, 0]
        for got, name in zip(np.rint(x.numpy() * 255), ("zebra/1", "ant/0"), strict=True):
            assert np.array_equal(got.transpose(1, 2, 0), made[name])

    def test_gray_has_one_channel_until_one_is_in_color(self, tmp_path: Path) -> None:
        made = image_folder(tmp_path, "L")
        data = open_dataset(f"folder:{tmp_path}")
        assert data.shape == (1, 5, 7)
        assert np.array_equal(np.rint(data.fetch([0])[0][0, 0].numpy() * 255), made["ant/0"])
        Image.fromarray(random_bytes(5, 7, 3)).save(tmp_path / "bee" / "2.png")
        assert open_dataset(f"folder:{tmp_path}").shape == (3, 5, 7)

    def test_the_odd_size_is_named(self, tmp_path: Path) -> None:
        image_folder(tmp_path)
        Image.fromarray(random_bytes(5, 8, 3)).save(tmp_path / "bee" / "1.png")
        with pytest.raises(UsageError, match=r"bee/1\.png: expected 7 × 5 .*got 8 × 5"):
            open_dataset(f"folder:{tmp_path}")

    @pytest.mark.parametrize("shape", [(5, 7, 4), (5, 7, 2)])
    def test_transparency_is_refused(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        image_folder(tmp_path)
        Image.fromarray(random_bytes(*shape)).save(tmp_path / "bee" / "1.png")
        with pytest.raises(UsageError, match=r"bee/1\.png: expected 8-bit gray or RGB"):
            open_dataset(f"folder:{tmp_path}")

    def test_what_is_no_image(self, tmp_path: Path) -> None:
        image_folder(tmp_path)
        (tmp_path / "ant" / "0.png").write_text("text")
        with pytest.raises(UsageError, match=r"ant/0\.png: expected an image"):
            open_dataset(f"folder:{tmp_path}")

    def test_a_cut_image_is_found_when_fetched(self, tmp_path: Path) -> None:
        image_folder(tmp_path, suffix="bmp")
        path = tmp_path / "ant" / "0.bmp"
        path.write_bytes(path.read_bytes()[:100])
        data = open_dataset(f"folder:{tmp_path}")
        assert len(data.fetch([1])[0]) == 1
        with pytest.raises(UsageError, match=r"ant/0\.bmp cannot be decoded"):
            data.fetch([0])

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not a folder"):
            open_dataset(f"folder:{tmp_path / 'nowhere'}")
        with pytest.raises(UsageError, match="one subfolder a class, got none"):
            open_dataset(f"folder:{tmp_path}")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=r"empty: expected images \(\.bmp"):
            open_dataset(f"folder:{tmp_path}")


CODE = """
    from __future__ import annotations
    import dataclasses
    import numpy as np
    import torch
    from robustkit.data import open_dataset

    @dataclasses.dataclass
    class Local:
        size: int = 4

    def arrays():
        return np.full((2, 5, 5, 3), 51, dtype=np.uint8), np.array([1, 0])

    def tensors():
        return torch.full((2, 1, 5, 5), 0.5, requires_grad=True), torch.tensor([1, 0])

    def dataset():
        return open_dataset("bundled")

    def lists():
        return [[[0.5, 0.5]], [[0.0, 1.0]]], [0, 1]

    def wrong():
        return {"x": 1}

    def alone():
        return tensors()[0]

    def fails():
        raise KeyError("lost")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(CODE))
    return str(path)


class TestFunction:
    def test_arrays_tensors_and_lists(self, code: str) -> None:
        for name, value in (("arrays", 0.2), ("tensors", 0.5)):
            data = open_dataset(f"{code}:{name}")
            assert (data.name, data.family, data.classes) == (f"{code}:{name}",) * 2 + (2,)
            x, y = data.fetch([0, 1])
            assert x.shape == (2, 3 if name == "arrays" else 1, 5, 5)
            assert torch.equal(x, torch.full_like(x, value)) and y.tolist() == [1, 0]
            assert not x.requires_grad
        assert open_dataset(f"{code}:lists").fetch([1])[0].tolist() == [[[[0.0, 1.0]]]]

    def test_a_dataset_is_taken_as_it_is(self, code: str) -> None:
        assert open_dataset(f"{code}:dataset").name == "bundled"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("wrong", r"expected \(x, y\), a .*got dict, which as a Dataset lacks .*labels"),
            ("alone", r"expected \(x, y\), got x alone, of shape \(2, 1, 5, 5\)"),
            ("fails", r"fails\(\) fails: KeyError: 'lost'"),
            ("tensor", "has no attribute 'tensor'. Did you mean 'tensors'"),
        ],
    )
    def test_failures(self, code: str, name: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            open_dataset(f"{code}:{name}")


class TestImporting:
    def test_modules_and_dotted_attributes(self) -> None:
        assert load_attribute("robustkit.errors:UsageError.exit_code") == 2

    def test_a_file_runs_once_until_it_changes(self, code: str) -> None:
        first, again = load_attribute(f"{code}:Local"), load_attribute(f"{code}:Local")
        assert first is again and first().size == 4
        Path(code).write_text("class Local:\n    size = 5\n")
        assert load_attribute(f"{code}:Local")().size == 5

    def test_an_edit_of_the_same_length_within_a_second_is_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        file = tmp_path / "edited.py"
        for value, since in ((3, 10**9), (5, 10**9 + 1)):
            file.write_text(f"VALUE = {value}\n")
            os.utime(file, ns=(since, since))
            assert load_attribute(f"{file}:VALUE") == value

    def test_neighbors_can_be_imported_but_shadow_nothing(self, tmp_path: Path, code: str) -> None:
        (tmp_path / "robustkit_test_neighbor.py").write_text("VALUE = 3\n")
        (tmp_path / "numpy.py").write_text("raise RuntimeError('shadowed')\n")
        Path(code).write_text("import numpy\nfrom robustkit_test_neighbor import VALUE\n")
        assert load_attribute(f"{code}:VALUE") == 3

    def test_the_working_directory_is_searched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "robustkit_test_local.py").write_text("VALUE = 4\n")
        assert load_attribute("robustkit_test_local:VALUE") == 4

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("plain", "expected 'package.module:attr' or 'path/to/file.py:attr', got 'plain'"),
            ("module:", "got 'module:'"),
            ("absent.py:f", r"absent\.py does not exist \(looked from"),
            ("robustkit_absent.sub:f", "there is no module 'robustkit_absent'"),
            ("robustkit.errors.deep:f", "there is no module 'robustkit.errors.deep'"),
            ("robustkit.errors:UsageEror", "Did you mean 'UsageError'.*It defines: .*GateFailed"),
        ],
    )
    def test_what_cannot_be_found(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_attribute(text)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("x = 1\ny = x / 0\n", r"broken\.py fails when it is run: ZeroDivisionError.*line 2"),
            ("def f(:\n", "SyntaxError"),
            ("import robustkit_absent_too\n", "No module named 'robustkit_absent_too'"),
            ("raise SystemExit(3)\n", "SystemExit: 3"),
        ],
    )
    def test_code_that_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
    ) -> None:
        monkeypatch.setattr(sys, "path", list(sys.path))
        before = set(sys.modules)
        (tmp_path / "broken.py").write_text(source)
        with pytest.raises(UsageError, match=message):
            load_attribute(f"{tmp_path / 'broken.py'}:f")
        assert not [name for name in set(sys.modules) - before if "broken" in name]

    def test_a_module_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "robustkit_test_broken.py").write_text("import robustkit_absent_three\n")
        with pytest.raises(
            UsageError, match=r"importing robustkit_test_broken fails.*absent_three"
        ):
            load_attribute("robustkit_test_broken:f")


def test_an_encrypted_member_is_told_apart(tmp_path: Path) -> None:
    text = saved(tmp_path, x=random_bytes(4, 6, 5), y=Y4)
    path = Path(text.removeprefix("npz:"))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x.npy").header_offset
    central = raw.index(b"PK\x01\x02")
    raw[offset + 6] |= 1
    raw[central + 8] |= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(UsageError, match="password"):
        open_dataset(text)
