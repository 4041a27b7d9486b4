"""The registered data sets: read from a data root, downloaded where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import robustkit.data.graphs
import robustkit.data.simplicity  # register data sets of their own
import robustkit.data.toy_lm  # noqa: F401  # likewise
from robustkit.data import npz
from robustkit.data.arrays import from_arrays, open_npz
from robustkit.data.dataset import Augment, ImageSet
from robustkit.data.download import cache_root, download, put
from robustkit.data.image_folder import decode
from robustkit.data.pickled import FOLDERS, refuse_batches
from robustkit.data.rows import Rows
from robustkit.errors import UsageError
from robustkit.registry import datasets

_BUNDLED = Path(__file__).with_name("bundled") / "fashion_mnist_1000.npz"
_COLOR = Path(__file__).with_name("bundled") / "cifar10_jpeg_200.npz"
# fmt: off
_CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat",
            "sandal", "shirt", "sneaker", "bag", "ankle boot")
_THINGS = ("airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck")
# fmt: on
_DIGITS = tuple("0123456789")
_PART = 1000  # records whose labels are read at once


class _Known(NamedTuple):
    """The facts about a data set that do not depend on where its images come from."""

    name: str
    original: str
    shape: tuple[int, int, int]
    classes: int
    augment: Augment
    class_names: tuple[str, ...]


_MNIST = _Known("mnist", "MNIST", (1, 28, 28), 10, Augment(), _DIGITS)
_FASHION = _Known("fashion_mnist", "FashionMNIST", (1, 28, 28), 10, Augment(flip=True), _CLOTHES)
_CIFAR10 = _Known("cifar10", "CIFAR10", (3, 32, 32), 10, Augment(flip=True, crop=4), _THINGS)
_CIFAR100 = _Known("cifar100", "CIFAR100", (3, 32, 32), 100, Augment(flip=True, crop=4), ())

_Reader: TypeAlias = Callable[[_Known, Path, str], ImageSet]


@datasets.register("bundled", threat="linf:0.1", cites="arXiv:1708.07747", license="MIT")
@dataclass(frozen=True)
class Bundled:
    """1,000 Fashion-MNIST test images, 100 a class, shipped with robustkit."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open the images; there is no training split.

        Raises:
            UsageError: when the training split is asked for.
        """
        _refuse_training(split, _FASHION)
        return _described(_FASHION, open_npz("bundled", _BUNDLED))


@datasets.register("bundled-color", threat="linf:8/255", cites="Krizhevsky 2009", license="")
@dataclass(frozen=True)
class BundledColor:
    """200 CIFAR-10 (JPEG) test images, 20 a class drawn by a seed, shipped with robustkit."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open the images; there is no training split.

        Raises:
            UsageError: when the training split is asked for.
        """
        _refuse_training(split, _CIFAR10)
        return _described(_CIFAR10, replace(_jpeg(_CIFAR10, _COLOR, split), name="bundled-color"))


@datasets.register("mnist", threat="linf:0.3", cites="doi:10.1109/5.726791", license="")
@dataclass(frozen=True)
class Mnist:
    """MNIST: 70,000 handwritten digits, 28 × 28, 10 classes."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open mnist.npz of the root, or download it."""
        return _open(_MNIST, root, split, download, {"mnist.npz": _npz})


@datasets.register("fashion_mnist", threat="linf:0.1", cites="arXiv:1708.07747", license="MIT")
@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: 70,000 articles of clothing, 28 × 28, 10 classes."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open fashion_mnist.npz of the root, or download it."""
        return _open(_FASHION, root, split, download, {"fashion_mnist.npz": _npz})


@datasets.register("cifar10", threat="linf:8/255", cites="Krizhevsky 2009", license="")
@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10: 60,000 color photographs, 32 × 32, 10 classes."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open the first of cifar10.npz, cifar-10-batches-bin and cifar10_jpeg.npz, or download."""
        finders: dict[str, _Reader] = {
            "cifar10.npz": _npz,
            "cifar-10-batches-bin": _binary10,
            "cifar10_jpeg.npz": _jpeg,
        }
        return _open(_CIFAR10, root, split, download, finders)


@datasets.register("cifar100", threat="linf:8/255", cites="Krizhevsky 2009", license="")
@dataclass(frozen=True)
class Cifar100:
    """CIFAR-100: 60,000 color photographs, 32 × 32, 100 classes."""

    def open(self, root: Path, split: str, download: bool) -> ImageSet:
        """Open the first of cifar100.npz and cifar-100-binary, or download."""
        finders: dict[str, _Reader] = {"cifar100.npz": _npz, "cifar-100-binary": _binary100}
        return _open(_CIFAR100, root, split, download, finders)


def _open(
    known: _Known, root: Path, split: str, allowed: bool, finders: dict[str, _Reader]
) -> ImageSet:
    """Read the first of the files `finders` that exists in the root or in the cache."""
    if root != cache_root() and not root.is_dir():
        raise UsageError(
            f"the data root {root} is not a folder. Correct --data-root or ROBUSTKIT_DATA."
        )
    places = list(dict.fromkeys([root, cache_root()]))
    for place in places:
        for file, read in finders.items():
            if (place / file).exists():
                return _described(known, read(known, place / file, split))
        if known.name in FOLDERS:
            refuse_batches(place / FOLDERS[known.name])
            refuse_batches(place)
    missing = (
        f"Data set {known.name!r} was not found: looked for {', '.join(finders)} "
        f"in {' and '.join(map(str, places))}."
    )
    if not allowed:
        raise UsageError(f"{missing} Nothing is downloaded here: {put(next(iter(finders)))}.")
    return _described(known, _npz(known, download(known.name, known.original, missing), split))


def _refuse_training(split: str, known: _Known) -> None:
    if split != "test":
        raise UsageError(
            f"the bundled images are test images, got split {split!r}. "
            f"Train on {known.name}, which is downloaded or read from a data root."
        )


def _described(known: _Known, found: ImageSet) -> ImageSet:
    if found.shape != known.shape or found.classes > known.classes:
        raise UsageError(
            f"{found.name}: expected {known.name} images {list(known.shape)} and {known.classes} "
            f"classes, got {list(found.shape)} and {found.classes}. Put the original file there."
        )
    return replace(
        found,
        family=known.name,
        classes=known.classes,
        augment=known.augment,
        class_names=known.class_names,
    )


def _npz(known: _Known, path: Path, split: str) -> ImageSet:
    x, y = npz.rows(path, f"x_{split}"), npz.array(path, f"y_{split}")
    found = from_arrays(f"{path}[{split}]", x, y)
    return replace(found, name=known.name, source=str(path))


def _jpeg(known: _Known, path: Path, split: str) -> ImageSet:
    """Concatenated JPEG files: file i is bytes offset[i] to offset[i + 1]."""
    files, labels = npz.rows(path, f"jpeg_{split}"), npz.array(path, f"y_{split}")
    offset = np.asarray(npz.array(path, f"offset_{split}"))
    if offset.shape != (len(labels) + 1,) or offset[-1] > len(files) or (np.diff(offset) < 0).any():
        raise UsageError(
            f"{path}: expected ascending offset_{split} [{len(labels) + 1}] within "
            f"{len(files)} bytes, got {list(offset.shape)}. The file is damaged: copy it again."
        )

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        encoded = [files[offset[i] : offset[i + 1]].tobytes() for i in indices]
        named = zip(encoded, indices, strict=True)
        return np.stack([decode(f, f"{path}: image {i}", known.shape) for f, i in named])

    return ImageSet(
        name=f"{known.name}_jpeg",
        family=known.name,
        shape=known.shape,
        classes=int(labels.max()) + 1,
        labels=labels.astype(np.int64),
        read=read,
        note="CIFAR-10 (JPEG): lossy recompression",
        source=str(path),
    )


def _binary10(known: _Known, path: Path, split: str) -> ImageSet:
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _binary(known, path, train if split == "train" else ["test_batch.bin"], 1)


def _binary100(known: _Known, path: Path, split: str) -> ImageSet:
    return _binary(known, path, [f"{split}.bin"], 2)


def _binary(known: _Known, folder: Path, files: Sequence[str], label_bytes: int) -> ImageSet:
    """Records of `label_bytes` labels (the last one is the class) and 3,072 pixels [3, 32, 32]."""
    record = label_bytes + 3072
    parts = [_records(folder / file, record) for file in files]
    starts = np.cumsum([0, *map(len, parts)])

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        raw = np.empty((len(indices), 3072), dtype=np.uint8)
        for part, start in zip(parts, starts, strict=False):
            inside = (indices >= start) & (indices < start + len(part))
            raw[inside] = part[indices[inside] - start][:, label_bytes:]
        return raw.reshape(-1, *known.shape)

    labels = np.concatenate([_last_label(part, label_bytes) for part in parts])
    return ImageSet(
        name=known.name,
        family=known.name,
        shape=known.shape,
        classes=int(labels.max()) + 1,
        labels=labels,
        read=read,
        source=str(folder),
    )


def _last_label(part: Rows, label_bytes: int) -> NDArray[np.int64]:
    starts = range(0, len(part), _PART)
    columns = [part[start : start + _PART][:, label_bytes - 1] for start in starts]
    return np.concatenate(columns).astype(np.int64)


def _records(path: Path, record: int) -> Rows:
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or size % record:
        got = f"{size:,} bytes" if path.is_file() else "no such file"
        raise UsageError(
            f"{path}: expected records of {record:,} bytes, got {got}. Unpack the archive again."
        )
    with path.open("rb") as file:
        return Rows(file, 0, (size // record, record), np.dtype(np.uint8), str(path))
