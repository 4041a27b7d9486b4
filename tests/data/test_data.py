"""The bundled images, subsets and digests of a data set, and the names that `--data` takes."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Augment, Dataset, ImageSet, digest, select
from robustkit.data.open import data_root, open_dataset
from robustkit.errors import UsageError
from robustkit.registry import datasets

HAS_ROOT = bool(os.environ.get("ROBUSTKIT_DATA"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def toy(labels: Sequence[int], classes: int | None = None) -> ImageSet:
    y = np.array(labels, dtype=np.int64)
    x = np.arange(len(y) * 4, dtype=np.uint64).reshape(-1, 2, 2) % 251
    return from_arrays("toy", x.astype(np.uint8), y, classes=classes)


class TestBundled:
    def test_is_balanced_fashion_mnist(self) -> None:
        data = open_dataset("bundled")
        assert isinstance(data, Dataset)
        assert (data.name, data.family, len(data)) == ("bundled", "fashion_mnist", 1000)
        assert (data.shape, data.classes) == ((1, 28, 28), 10)
        assert data.augment == Augment(flip=True, crop=0)
        assert np.bincount(data.labels).tolist() == [100] * 10
        assert len(data.class_names) == 10 and data.class_names[9] == "ankle boot"

    def test_in_color_it_is_balanced_cifar10_from_jpeg_files(self) -> None:
        data = open_dataset(" bundled-color ")
        assert (data.name, data.family, len(data)) == ("bundled-color", "cifar10", 200)
        assert (data.shape, data.classes, data.note) == (
            (3, 32, 32), 10, "CIFAR-10 (JPEG): lossy recompression"
        )  # fmt: skip
        assert np.bincount(data.labels).tolist() == [20] * 10
        assert data.class_names[9] == "truck"
        x, _ = data.fetch(np.arange(200))
        pixels = (x.numpy() * 255).round().astype(np.uint8)
        # As libjpeg-turbo decodes: where this fails, Pillow was built with another decoder, and
        # records of these images do not pair with the committed ones.
        assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith("7209689df5576d38")
        with pytest.raises(UsageError, match="Train on cifar10"):
            open_dataset("bundled-color", split="train")

    def test_fetches_the_stored_pixels_over_255(self) -> None:
        data = open_dataset("bundled")
        path = (
            Path(__file__).parents[2] / "robustkit" / "data" / "bundled" / "fashion_mnist_1000.npz"
        )
        with np.load(path) as stored:
            chosen = [999, 0, 17]
            x, y = data.fetch(torch.tensor(chosen))
            expected = (stored["x"][chosen].astype(np.float64) / 255).astype(np.float32)
            assert np.array_equal(x.numpy()[:, 0], expected)
            assert y.tolist() == stored["y"][chosen].tolist()
        assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (3, 1, 28, 28))

    def test_its_license_stands_beside_it(self) -> None:
        folder = Path(__file__).parents[2] / "robustkit" / "data" / "bundled"
        assert "Zalando SE" in (folder / "FASHION_MNIST_LICENSE").read_text(encoding="utf-8")
        assert "MIT" in (folder / "README.md").read_text(encoding="utf-8")

    def test_has_no_training_split(self) -> None:
        with pytest.raises(UsageError, match="Train on fashion_mnist"):
            open_dataset("bundled", split="train")

    @pytest.mark.skipif(not HAS_ROOT, reason="ROBUSTKIT_DATA is not set")
    def test_is_a_part_of_the_original_test_set(self) -> None:
        whole, part = open_dataset("fashion_mnist", download=False), open_dataset("bundled")
        firsts = [np.flatnonzero(whole.labels == k)[:100] for k in range(10)]
        index = np.sort(np.concatenate(firsts))
        assert digest(whole, index) == digest(part, np.arange(1000))


class TestFetch:
    def test_takes_lists_arrays_and_tensors(self) -> None:
        data = toy([0, 1, 2, 3])
        kinds: list[Any] = [[3, 1], np.array([3, 1]), torch.tensor([3, 1])]
        for indices in kinds:
            assert data.fetch(indices)[1].tolist() == [3, 1]

    @pytest.mark.parametrize("indices", [[4], [-1], np.array([[0]]), np.array([0.5])])
    def test_refuses_what_is_no_index(self, indices: Any) -> None:
        with pytest.raises(IndexError, match="indices"):
            toy([0, 1, 2, 3]).fetch(indices)

    def test_does_not_touch_the_stored_array(self) -> None:
        x = np.full((2, 3, 3), 0.5, dtype=np.float32)
        data = from_arrays("toy", x, np.array([0, 1]))
        data.fetch([0, 1])[0].zero_()
        assert (x == 0.5).all()


samples = given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    seed=st.integers(0, 2**40),
    part=st.floats(0, 1),
)


class TestSelect:
    @samples
    def test_is_balanced_nested_and_sorted(self, labels: list[int], seed: int, part: float) -> None:
        data = toy(labels, classes=5)
        n = 1 + round(part * (len(labels) - 1))
        chosen = select(data, n, seed, "balanced")
        assert chosen.dtype == np.int64 and len(set(chosen.tolist())) == n
        assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < len(labels)
        got = np.bincount(data.labels[chosen], minlength=5)
        available = np.bincount(data.labels, minlength=5)
        open_classes = got[got < available]
        assert (got <= available).all()
        assert all(got.max() - count <= 1 for count in open_classes)
        assert set(chosen) <= set(select(data, len(labels), seed, "balanced"))
        assert set(select(data, max(1, n - 1), seed, "balanced")) <= set(chosen)

    @samples
    def test_every_class_has_its_share(self, labels: list[int], seed: int, part: float) -> None:
        data = toy(labels, classes=5)
        n = 1 + round(part * (len(labels) - 1))
        chosen = select(data, n, seed)
        assert len(set(chosen.tolist())) == n and (np.diff(chosen) > 0).all()
        assert set(select(data, max(1, n - 1), seed)) <= set(chosen)
        got = np.bincount(data.labels[chosen], minlength=5)
        there = np.bincount(data.labels, minlength=5)
        # All shares lie within one point of a common threshold t: ⌊t · size⌋ or one more.
        low, high = (got - 1) / there.clip(1), (got + 1) / there.clip(1)
        assert max(low[there > 0]) <= min(high[there > 0]) + 1e-9

    @pytest.mark.parametrize("sizes", [(955, 45), (300, 20, 3), (190, *[1] * 10)])
    def test_every_point_is_as_likely(self, sizes: tuple[int, ...]) -> None:
        """The share of each class is right on average, however small the class."""
        data, n, draws = toy(np.repeat(np.arange(len(sizes)), sizes).tolist()), 20, 400
        got = np.zeros(len(sizes))
        for seed in range(draws):
            got += np.bincount(data.labels[select(data, n, seed)], minlength=len(sizes))
        want = np.array(sizes) / sum(sizes) * n
        error = np.sqrt(np.maximum(want, 0.1) / draws)  # no more than that of a Poisson count
        assert (np.abs(got / draws - want) <= 4 * error).all()

    @pytest.mark.parametrize("n", [1, 7, 10, 25, 200])
    def test_where_classes_are_of_one_size_both_samples_are_the_same(self, n: int) -> None:
        data = open_dataset("bundled")
        for seed in range(5):
            assert np.array_equal(select(data, n, seed), select(data, n, seed, "balanced"))

    def test_another_kind_of_sample(self) -> None:
        with pytest.raises(UsageError, match=r"Unknown kind of sample 'weighted'.*balanced"):
            select(toy([0, 1]), 1, 0, "weighted")  # type: ignore[arg-type]

    def test_is_the_same_everywhere(self) -> None:
        chosen = select(open_dataset("bundled"), 10, 0)
        assert chosen.tolist() == [16, 76, 325, 489, 492, 659, 688, 705, 745, 756]

    def test_depends_on_the_seed(self) -> None:
        data = open_dataset("bundled")
        assert select(data, 100, 0).tolist() != select(data, 100, 1).tolist()

    def test_ignores_points_that_come_later(self) -> None:
        """A point's turn is a matter of its own class, so new classes only add points."""
        small, large = toy([0, 1] * 10), toy([0, 1] * 10 + [2] * 10)
        assert set(select(small, 8, 3)) <= set(select(large, 12, 3))

    def test_without_n_is_everything(self) -> None:
        assert select(toy([1, 0, 1]), None, 0).tolist() == [0, 1, 2]

    @pytest.mark.parametrize("n", [0, -1, 4])
    def test_refuses_an_impossible_n(self, n: int) -> None:
        with pytest.raises(UsageError, match=rf"expected n from 1 to 3 .* got {n}"):
            select(toy([1, 0, 1]), n, 0)


class TestDigest:
    def test_is_that_of_the_bytes(self) -> None:
        data = toy([0, 1, 1])
        x, y = data.fetch([2, 0])
        header = np.array([2, 1, 2, 2], dtype="<i8").tobytes()
        body = x.numpy().astype("<f4").tobytes() + y.numpy().astype("<i8").tobytes()
        assert digest(data, [2, 0]) == hashlib.sha256(header + body).hexdigest()

    def test_does_not_depend_on_storage(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (600, 3, 5, 6), dtype=np.uint8)
        y = np.arange(600) % 7
        floats = x.astype(np.float32) / np.float32(255)
        sets = [
            from_arrays("bytes", x, y),
            from_arrays("floats", floats, y),
            from_arrays("last", np.ascontiguousarray(x.transpose(0, 2, 3, 1)), y),
        ]
        assert len({digest(data, np.arange(600)) for data in sets}) == 1

    def test_changes_with_pixel_label_order_and_shape(self) -> None:
        x, y = np.zeros((3, 4, 2), dtype=np.uint8), np.array([0, 1, 1])
        pixel, label = x.copy(), y.copy()
        pixel[2, 3, 1], label[2] = 1, 0
        sets = [(x, y), (pixel, y), (x, label), (x.reshape(3, 2, 4), y)]
        digests = [digest(from_arrays("toy", a, b), [0, 1, 2]) for a, b in sets]
        digests.append(digest(from_arrays("toy", x, y), [1, 0, 2]))
        digests.append(digest(from_arrays("toy", x, y), [0, 1]))
        assert len(set(digests)) == len(digests)


class TestNames:
    def test_registered(self) -> None:
        assert {"bundled", "mnist", "fashion_mnist", "cifar10", "cifar100"} <= set(datasets)
        assert all(entry.summary for entry in datasets.entries())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("fashion_minst", "Did you mean 'fashion_mnist'"),
            ("bundled(size=3)", "has no option 'size'"),
            ("some/images.npz", "write 'npz:some/images.npz'"),
            ("load.py", "as in 'load.py:load'"),
            ("a/b", "Known: bundled, bundled-color, cifar10"),
        ],
    )
    def test_a_miss_says_what_was_meant(self, text: str, message: str) -> None:
        with pytest.raises(UsageError, match=message.replace("(", r"\(")):
            open_dataset(text, download=False)

    def test_a_folder_wants_its_prefix(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="write 'folder:"):
            open_dataset(str(tmp_path))

    def test_an_unknown_split(self) -> None:
        with pytest.raises(UsageError, match="'train' or 'test', got 'valid'"):
            open_dataset("bundled", split="valid")

    def test_the_data_root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
        assert data_root() == tmp_path / "cache" / "robustkit"
        monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path / "env"))
        assert data_root() == tmp_path / "env"
        assert data_root(tmp_path / "given") == tmp_path / "given"

    def test_a_root_that_is_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nowhere is not a folder.*ROBUSTKIT_DATA"):
            open_dataset("mnist", root=tmp_path / "nowhere")
        assert len(open_dataset("bundled", root=tmp_path / "nowhere")) == 1000


def originals(shape: tuple[int, ...], classes: int = 10, n: int = 12) -> dict[str, NDArray[Any]]:
    """A small substitute with the keys and types of an original set."""
    draw = np.random.default_rng(1)
    return {
        f"{key}_{split}": value
        for split in ("train", "test")
        for key, value in (
            ("x", draw.integers(0, 256, (n, *shape), dtype=np.uint8)),
            ("y", (np.arange(n) % classes).astype(np.uint8)),
        )
    }


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


class TestRoot:
    @pytest.mark.parametrize(
        ("name", "shape", "augment"),
        [
            ("mnist", (28, 28), Augment()),
            ("fashion_mnist", (28, 28), Augment(flip=True)),
            ("cifar10", (32, 32, 3), Augment(flip=True, crop=4)),
            ("cifar100", (32, 32, 3), Augment(flip=True, crop=4)),
        ],
    )
    def test_npz(self, tmp_path: Path, name: str, shape: tuple[int, ...], augment: Augment) -> None:
        stored = originals(shape)
        np.savez_compressed(tmp_path / f"{name}.npz", **stored)  # type: ignore[arg-type]
        for split in ("train", "test"):
            data = open_dataset(name, root=tmp_path, split=split, download=False)
            assert (data.name, data.family, data.note) == (name, name, "")
            assert (data.augment, data.classes) == (augment, 100 if name == "cifar100" else 10)
            pixels = data.fetch(np.arange(len(data)))[0].numpy() * 255
            want = stored[f"x_{split}"].reshape(12, *shape[:2], -1).transpose(0, 3, 1, 2)
            assert np.array_equal(np.rint(pixels), want)

    def test_a_file_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mnist.npz", **originals((27, 28)))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"expected mnist images \[1, 28, 28\].*\[1, 27, 28\]"):
            open_dataset("mnist", root=tmp_path)

    @pytest.mark.parametrize(
        ("name", "folder", "files", "extra"),
        [
            ("cifar10", "cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], 1),
            ("cifar100", "cifar-100-binary", ["train.bin"], 2),
        ],
    )
    def test_binary_batches(
        self, tmp_path: Path, name: str, folder: str, files: list[str], extra: int
    ) -> None:
        (tmp_path / folder).mkdir()
        draw, records = np.random.default_rng(2), []
        for size, file in enumerate(files, start=3):
            part = draw.integers(0, 256, (size, extra + 3072), dtype=np.uint8)
            part[:, :extra] %= 10
            (tmp_path / folder / file).write_bytes(part.tobytes())
            records.append(part)
        whole = np.concatenate(records)
        data = open_dataset(name, root=tmp_path, split="train")
        order = draw.permutation(len(whole))
        x, y = data.fetch(order)
        assert y.tolist() == whole[order, extra - 1].tolist()
        assert np.array_equal(np.rint(x.numpy() * 255), whole[order, extra:].reshape(-1, 3, 32, 32))

    def test_a_cut_batch_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "cifar-10-batches-bin").mkdir()
        (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes(3072))
        with pytest.raises(UsageError, match=r"records of 3,073 bytes, got 3,072 bytes"):
            open_dataset("cifar10", root=tmp_path)
        with pytest.raises(UsageError, match=r"data_batch_1.bin.*no such file"):
            open_dataset("cifar10", root=tmp_path, split="train")

    @pytest.mark.parametrize(
        ("name", "folder", "files"),
        [
            ("cifar10", "cifar-10-batches-py", ("batches.meta", "data_batch_1", "test_batch")),
            ("cifar100", "cifar-100-python", ("meta", "train", "test")),
        ],
    )
    def test_pickled_batches_are_refused_and_never_loaded(
        self, tmp_path: Path, name: str, folder: str, files: tuple[str, ...]
    ) -> None:
        trap = tmp_path / "ran"
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).write_bytes(pickle.dumps(Trap(str(trap))))
        renamed = shutil.copytree(tmp_path / folder, tmp_path / "another name")
        told = (
            rf"pickled batches.*none is loaded here.*{name}\.npz in the data root.*binary version"
        )
        for root in (tmp_path, tmp_path / folder, renamed):
            with pytest.raises(UsageError, match=told):
                open_dataset(name, root=root)
        for text in (f"folder:{tmp_path / folder}", f"folder:{renamed}"):
            with pytest.raises(UsageError, match=told):
                open_dataset(text)
        with pytest.raises(UsageError, match="npz"):
            open_dataset(f"npz:{tmp_path / folder / files[-1]}")
        assert not trap.exists()
        np.savez(tmp_path / f"{name}.npz", **originals((32, 32, 3)))  # type: ignore[arg-type]
        assert open_dataset(name, root=tmp_path).name == name

    def test_jpeg_says_so(self, tmp_path: Path) -> None:
        colors = [(10, 20, 30), (200, 100, 50), (0, 255, 0)]
        files = []
        for color in colors:
            buffer = BytesIO()
            Image.new("RGB", (32, 32), color).save(buffer, "JPEG", quality=95, subsampling=0)
            files.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
        offset = np.cumsum([0, *map(len, files)])
        stored = {"jpeg_test": np.concatenate(files), "offset_test": offset, "y_test": [0, 5, 9]}
        np.savez(tmp_path / "cifar10_jpeg.npz", **stored)  # type: ignore[arg-type]
        data = open_dataset("cifar10", root=tmp_path)
        assert (data.name, data.family) == ("cifar10_jpeg", "cifar10")
        assert data.note == "CIFAR-10 (JPEG): lossy recompression"
        x, y = data.fetch([2, 0])
        assert y.tolist() == [9, 0]
        for image, color in zip(x, (colors[2], colors[0]), strict=True):
            assert (image.mean((1, 2)) * 255).tolist() == pytest.approx(color, abs=2)

    def test_the_original_wins_over_jpeg(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "cifar10.npz", **originals((32, 32, 3)))  # type: ignore[arg-type]
        (tmp_path / "cifar10_jpeg.npz").write_bytes(b"not opened")
        assert open_dataset("cifar10", root=tmp_path).name == "cifar10"

    @pytest.mark.skipif(not HAS_ROOT, reason="ROBUSTKIT_DATA is not set")
    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
    def test_the_real_sets_have_their_sizes(self, name: str) -> None:
        sizes = {"train": 50_000 if name == "cifar10" else 60_000, "test": 10_000}
        for split, size in sizes.items():
            data = open_dataset(name, split=split, download=False)
            assert len(data) == size and data.classes == 10
            x, _ = data.fetch(select(data, 20, 0))
            assert x.min() >= 0 and 0.5 < x.max() <= 1


class TestDownload:
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()

    def test_absent_and_not_allowed(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"looked for mnist\.npz.*put mnist\.npz into"):
            open_dataset("mnist", root=tmp_path / "root", download=False)

    def test_without_torchvision(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(UsageError, match=r"pip install torchvision.*put mnist\.npz into"):
            open_dataset("mnist", root=tmp_path / "root")

    def test_with_a_broken_torchvision(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "site" / "torchvision"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist')"
        )
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(package.parent))
        with pytest.raises(UsageError, match=r"broken.*nms does not exist.*pip install") as caught:
            open_dataset("cifar100", root=tmp_path / "root")
        assert f"torch {torch.__version__}" in str(caught.value)

    def test_is_kept_as_one_mapped_npz(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[bool] = []
        stored = originals((28, 28))

        def original(folder: str, train: bool, download: bool) -> SimpleNamespace:
            calls.append(train)
            print("Downloading ...")
            split = "train" if train else "test"
            x, y = torch.from_numpy(stored[f"x_{split}"]), torch.from_numpy(stored[f"y_{split}"])
            return SimpleNamespace(data=x, targets=y)

        fake_torchvision(monkeypatch, MNIST=original)
        for _ in range(2):
            data = open_dataset("mnist", root=tmp_path / "root")
            assert digest(data, [0, 1]) == digest(
                from_arrays("toy", stored["x_test"], stored["y_test"]), [0, 1]
            )
        assert sorted(calls) == [False, True]
        assert capsys.readouterr().out == ""
        assert [path.name for path in (tmp_path / "cache" / "robustkit").iterdir()] == ["mnist.npz"]

    def test_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def original(folder: str, train: bool, download: bool) -> SimpleNamespace:
            (Path(folder) / "half").write_bytes(b"half")
            raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

        fake_torchvision(monkeypatch, FashionMNIST=original)
        with pytest.raises(UsageError, match=r"failed \(RuntimeError: Error downloading") as caught:
            open_dataset("fashion_mnist", root=tmp_path / "root")
        assert "put fashion_mnist.npz into the data root" in str(caught.value)
        assert list((tmp_path / "cache" / "robustkit").iterdir()) == []


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, **classes: Any) -> None:
    package, module = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    vars(module).update(classes)
    vars(package).update(datasets=module)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
