"""Data sets: labels in memory, inputs fetched by the batch; subsets and digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.types import Images, Labels, Shape
from robustkit.data.ranges import Ranges
from robustkit.data.sampling import select, shuffled
from robustkit.data.values import UNIT, Box, in_box

__all__ = [
    "AS_IS",
    "Augment",
    "Dataset",
    "ImageSet",
    "Indices",
    "Reader",
    "digest",
    "select",
    "shuffled",
    "subset",
]

Indices: TypeAlias = "Tensor | NDArray[Any] | Sequence[int]"
Reader: TypeAlias = Callable[[NDArray[np.int64]], NDArray[Any]]
_CHUNK, _CHUNK_BYTES = 256, 1 << 26


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
    def shape(self) -> Shape:
        """That of one input: [c, h, w] of an image, [d] of a vector; see `Shape`."""
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
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels, copies both."""
        ...


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A `Dataset` over any storage.

    Attributes:
        read: returns the raw inputs [b, *shape] at the indices [b], of any real type.
        box: the range of floating-point inputs; bytes become x / 255.
        source: the file or folder that the inputs are read from, for messages.
        ranges: of each feature, where they differ: `read` then returns shares of them in [0, 1].
        targets: of a regression the different values of y, ascending; a label is one's number.
    """

    name: str
    family: str
    shape: Shape
    classes: int
    labels: NDArray[np.int64]
    read: Reader
    class_names: tuple[str, ...] = ()
    augment: Augment = AS_IS
    note: str = ""
    box: Box = UNIT
    source: str = ""
    ranges: Ranges | None = None
    targets: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in the box and int64 labels.

        Both are contiguous copies: whoever writes into them does not change the data set. Bytes
        become x / 255, correctly rounded.

        Raises:
            IndexError: for an index outside 0 to n − 1.
            UsageError: for an image outside the box or that cannot be read, with its index.
        """
        chosen = checked(indices, len(self))
        x = in_box(self.read(chosen), chosen, self.name, self.box)
        return torch.from_numpy(x), torch.from_numpy(self.labels[chosen])


def subset(data: Dataset, indices: Indices) -> ImageSet:
    """Return the points `indices` [b] as a data set of their own.

    Raises:
        IndexError: for an index outside 0 to n − 1.
    """
    chosen = checked(indices, len(data))
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
        box=getattr(data, "box", UNIT),
        source=getattr(data, "source", ""),
        ranges=getattr(data, "ranges", None),
        targets=getattr(data, "targets", None),
    )


class Points(Protocol):
    """What a digest reads: points by their position."""

    @property
    def shape(self) -> Shape: ...
    def __len__(self) -> int: ...
    def fetch(self, indices: Indices) -> tuple[Images, Labels]: ...


def digest(data: Points, indices: Indices) -> str:
    """Return the SHA-256 of exactly these points: shape, pixels (float32) and labels, in order.

    Every point is fetched, so an image that cannot be read or leaves [0, 1] is found here.
    """
    chosen = checked(indices, len(data))
    state = hashlib.sha256(np.array([len(chosen), *data.shape], dtype="<i8").tobytes())
    labels = np.empty(len(chosen), dtype="<i8")
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // max(1, 4 * int(np.prod(data.shape)))))
    for start in range(0, len(chosen), chunk):
        x, y = data.fetch(chosen[start : start + chunk])
        # From where it lies: copies, and small parts kept between them, would take the data's size.
        state.update(np.ascontiguousarray(x.numpy(), dtype="<f4").data)
        labels[start : start + len(y)] = y.numpy()
    state.update(labels.tobytes())
    return state.hexdigest()


def checked(indices: Indices, n: int) -> NDArray[np.int64]:
    """Return indices as an array [b].

    Raises:
        IndexError: for an index outside 0 to n − 1, or what is none.
    """
    raw = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    if raw.ndim != 1 or not (np.issubdtype(raw.dtype, np.integer) or raw.size == 0):
        raise IndexError(f"expected integer indices [b], got {raw.dtype} {list(raw.shape)}")
    if raw.size and not (raw.min() >= 0 and raw.max() < n):
        raise IndexError(f"expected indices from 0 to {n - 1}, got {raw.min()} to {raw.max()}")
    return raw.astype(np.int64)
