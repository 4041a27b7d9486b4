"""Data sets: labels in memory, images fetched by the batch; subsets, random orders, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.rng import Keys, bits, task_key
from robustkit.core.types import Images, Labels
from robustkit.errors import UsageError

Indices: TypeAlias = "Tensor | NDArray[Any] | Sequence[int]"
Reader: TypeAlias = Callable[[NDArray[np.int64]], NDArray[Any]]
_CHUNK = 256


class Augment(NamedTuple):
    """How training may vary an image without changing its class.

    Attributes:
        flip: mirrored left to right, half of the time.
        crop: shifted by up to so many pixels over a zero border.
    """

    flip: bool = False
    crop: int = 0


AS_IS = Augment()


@runtime_checkable
class Dataset(Protocol):
    """Points with labels. Images are read when they are fetched: memory does not grow with n."""

    @property
    def name(self) -> str:
        """What records and tables call it."""
        ...

    @property
    def family(self) -> str:
        """The distribution it is drawn from; checkpoints are matched by it."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; labels are 0 to classes − 1."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Every label [n]."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, or nothing where none are known."""
        ...

    @property
    def augment(self) -> Augment:
        """How training may vary an image."""
        ...

    @property
    def note(self) -> str:
        """A caveat about these images that belongs to every result; usually empty."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A `Dataset` over any storage.

    Attributes:
        read: returns the raw images [b, c, h, w] at the indices [b], as uint8 or as floating point.
    """

    name: str
    family: str
    shape: tuple[int, int, int]
    classes: int
    labels: NDArray[np.int64]
    read: Reader
    class_names: tuple[str, ...] = ()
    augment: Augment = AS_IS
    note: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels.

        Bytes become x / 255, correctly rounded.

        Raises:
            IndexError: for an index outside 0 to n − 1.
            UsageError: for an image outside [0, 1] or that cannot be read, with its index.
        """
        chosen = _checked(indices, len(self))
        x = unit(self.read(chosen), chosen, self.name)
        return torch.from_numpy(x), torch.from_numpy(self.labels[chosen])


def unit(raw: NDArray[Any], indices: NDArray[np.int64], name: str) -> NDArray[np.float32]:
    """Turn raw images [b, ...] into float32 in [0, 1].

    Raises:
        UsageError: for a value that is not in [0, 1] or is NaN, with the first point that has one.
    """
    if raw.dtype == np.uint8:
        scaled: NDArray[np.float32] = np.divide(raw, np.float32(255), dtype=np.float32)
        return scaled
    x = np.ascontiguousarray(raw, dtype=np.float32)
    inside = ((x >= 0) & (x <= 1)).reshape(len(x), -1)
    if not inside.all():
        first = int(np.flatnonzero(~inside.all(axis=1))[0])
        worst = x[first].reshape(-1)[np.flatnonzero(~inside[first])[0]]
        raise UsageError(
            f"{name}: expected float images in [0, 1], got {worst:g} at point {indices[first]}. "
            "Divide by the largest value a pixel can have, or store the images as uint8."
        )
    return x


def select(data: Dataset, n: int | None, seed: int) -> NDArray[np.int64]:
    """Choose `n` points, as evenly over the classes as possible; all of them without `n`.

    One point of each class in turn, each class in the order of a counter-based draw keyed by
    (seed, point). The choice is the same on every platform, and that of a smaller `n` is a subset
    of that of a larger one.

    Returns:
        Indices [n], ascending. Counts of any two classes that are not used up differ by at most 1.

    Raises:
        UsageError: when `n` is below 1 or above the number of points.
    """
    if n is None:
        return np.arange(len(data), dtype=np.int64)
    if not 1 <= n <= len(data):
        raise UsageError(f"expected n from 1 to {len(data)} (all of {data.name}), got {n}.")
    labels, draw = data.labels, _draw(len(data), seed)
    order = np.lexsort((draw, labels))
    counts = np.unique(labels, return_counts=True)[1]
    turn = np.empty(len(data), dtype=np.int64)
    turn[order] = np.concatenate([np.arange(count) for count in counts])
    return np.sort(np.lexsort((draw, turn))[:n]).astype(np.int64)


def subset(data: Dataset, indices: Indices) -> ImageSet:
    """Return the points `indices` [b] as a data set of their own.

    Raises:
        IndexError: for an index outside 0 to n − 1.
    """
    chosen = _checked(indices, len(data))
    return ImageSet(
        name=data.name,
        family=data.family,
        shape=data.shape,
        classes=data.classes,
        labels=data.labels[chosen],
        read=lambda places: data.fetch(chosen[places])[0].numpy(),
        class_names=data.class_names,
        augment=data.augment,
        note=data.note,
    )


def shuffled(points: Sequence[int] | NDArray[np.int64], seed: int) -> list[int]:
    """Put points into a random order that depends on (seed, point) alone.

    Any first part of the order is a uniform random sample of the points without replacement.
    """
    chosen = np.asarray(points, dtype=np.int64)
    draw = _draw(int(chosen.max()) + 1, seed, "order")[chosen] if len(chosen) else chosen
    return [int(point) for point in chosen[np.lexsort((chosen, draw))]]


def digest(data: Dataset, indices: Indices) -> str:
    """Return the SHA-256 of exactly these points: shape, pixels (float32) and labels, in order.

    Every point is fetched, so an image that cannot be read or leaves [0, 1] is found here.
    """
    chosen = _checked(indices, len(data))
    state = hashlib.sha256(np.array([len(chosen), *data.shape], dtype="<i8").tobytes())
    labels = []
    for start in range(0, len(chosen), _CHUNK):
        x, y = data.fetch(chosen[start : start + _CHUNK])
        state.update(x.numpy().astype("<f4").tobytes())
        labels.append(y.numpy())
    state.update(np.concatenate([np.empty(0, dtype=np.int64), *labels]).astype("<i8").tobytes())
    return state.hexdigest()


def _draw(n: int, seed: int, purpose: str = "select") -> NDArray[np.int64]:
    """One 63-bit number a point, a pure function of (seed, index)."""
    point = torch.arange(n)
    keys = Keys(torch.full_like(point, seed), point, torch.full_like(point, task_key(purpose)))
    words = bits(keys, 2, 0)
    drawn: NDArray[np.int64] = ((words[:, 0] << 31) | (words[:, 1] >> 1)).numpy()
    return drawn


def _checked(indices: Indices, n: int) -> NDArray[np.int64]:
    raw = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if raw.ndim != 1 or not (np.issubdtype(raw.dtype, np.integer) or raw.size == 0):
        raise IndexError(f"expected integer indices [b], got {raw.dtype} {list(raw.shape)}")
    if raw.size and not (raw.min() >= 0 and raw.max() < n):
        raise IndexError(f"expected indices from 0 to {n - 1}, got {raw.min()} to {raw.max()}")
    return raw.astype(np.int64)
