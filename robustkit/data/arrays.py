"""Data of the user's own: npz files, image folders, Python functions.

How the axes of `x` are read: [n, h, w] is one channel. Of [n, h, w, c] and [n, c, h, w] the one
whose c is 1, 3 or 4 is taken. Where both or neither are, nothing is guessed: both is an error
that asks for the axes to be stated (in an npz, the key `layout`: "nhwc" or "nchw").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.imports import failure, load_attribute
from robustkit.data import npz
from robustkit.data.dataset import Dataset, ImageSet, Reader, unit
from robustkit.errors import UsageError

_CHANNELS = (1, 3, 4)
_SCAN, _PART = 1 << 28, 1 << 22


def open_npz(name: str, path: Path) -> ImageSet:
    """Open an npz with `x` and `y`, and optionally `classes` and `layout`.

    Args:
        name: what records call it.
        path: x is uint8 or float in [0, 1]; y is integers [n].

    Raises:
        UsageError: for a missing file or key and whatever `from_arrays` refuses.
    """
    stored = npz.keys(path)
    x, y = npz.array(path, "x"), npz.array(path, "y")
    classes = npz.array(path, "classes") if "classes" in stored else None
    layout = str(npz.array(path, "layout")) if "layout" in stored else None
    return from_arrays(name, x, y, classes=classes, layout=layout)


def from_arrays(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    classes: Any = None,
    layout: str | None = None,
) -> ImageSet:
    """Make a data set of two arrays; `x` may be mapped from disk and is not copied.

    Float images are checked here as far as the first 256 MB go, and always when they are fetched.

    Args:
        name: what records call it.
        x: uint8, or float in [0, 1]; [n, h, w], [n, h, w, c] or [n, c, h, w].
        y: integers [n], 0 to classes − 1.
        classes: largest label + 1 when not given.
        layout: "nhw", "nhwc" or "nchw"; read off the shape when not given.

    Raises:
        UsageError: for a type, a shape, a pixel or a label that does not fit.
    """
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise UsageError(
            f"{name}: expected x as uint8, or as float in [0, 1], got {x.dtype}. "
            "Use x.astype('uint8') for bytes, or divide by the largest value a pixel can have."
        )
    axes = _axes(name, x.shape, layout)
    labels, count = _labels(name, y, len(x), classes)
    read = _reader(x, axes)
    _scan(name, x, read)
    sizes = dict(zip(axes, x.shape, strict=True))
    shape = (int(sizes.get("c", 1)), int(sizes["h"]), int(sizes["w"]))
    return ImageSet(name, name, shape, count, labels, read)


def open_function(text: str) -> Dataset:
    """Call the function that `text` (`module:function` or `path/to/file.py:function`) names.

    It takes no arguments and returns (x, y), as arrays or tensors, or a `Dataset`.

    Raises:
        UsageError: when it cannot be imported, raises, or returns something else.
    """
    made = load_attribute(text)
    if callable(made):
        try:
            made = made()
        except Exception as error:
            raise UsageError(f"{text}() fails: {failure(error)}.") from error
    return as_dataset(text, made)


def as_dataset(name: str, made: Any) -> Dataset:
    """Make a data set named `name` of (x, y), arrays or tensors; a `Dataset` comes back as it is.

    Raises:
        UsageError: for something else, and whatever `from_arrays` refuses.
    """
    if isinstance(made, Dataset):
        return made
    if not isinstance(made, tuple | list) or len(made) != 2:
        needed = [part for part in dir(Dataset) if not part.startswith("_")]
        lacking = ", ".join(part for part in needed if not hasattr(made, part))
        raise UsageError(
            f"{name}: expected (x, y) or a robustkit.data.Dataset, got {type(made).__name__}, "
            f"which as a Dataset lacks {lacking or '__len__'}."
        )
    x, y = (part.detach().cpu().numpy() if isinstance(part, Tensor) else part for part in made)
    return from_arrays(name, np.asarray(x), np.asarray(y))


def _axes(name: str, shape: tuple[int, ...], stated: str | None) -> str:
    if stated is not None:
        if stated not in ("nhw", "nhwc", "nchw") or len(stated) != len(shape):
            raise UsageError(
                f"{name}: expected the layout nhw, nhwc or nchw, one letter an axis, "
                f"got {stated!r} for x {list(shape)}."
            )
        return stated
    if len(shape) == 3:
        return "nhw"
    if len(shape) != 4:
        raise UsageError(
            f"{name}: expected x as [n, h, w], [n, h, w, c] or [n, c, h, w], got {list(shape)}."
        )
    last, second = shape[3] in _CHANNELS, shape[1] in _CHANNELS
    if last == second:
        many = "both axis 1 and axis 3 could be" if last else "neither axis 1 nor axis 3 is"
        raise UsageError(
            f"{name}: x {list(shape)}: {many} the channels (1, 3 or 4). Store it with the key "
            'layout="nhwc" or layout="nchw", or return a Dataset made by from_arrays.'
        )
    return "nhwc" if last else "nchw"


def _labels(name: str, y: NDArray[Any], n: int, stated: Any) -> tuple[NDArray[np.int64], int]:
    if not np.issubdtype(y.dtype, np.integer):
        raise UsageError(
            f"{name}: expected y as integers, got {y.dtype}. Use y.astype('int64') if they are "
            "whole numbers, y.argmax(1) if they are one-hot."
        )
    if y.ndim != 1 or len(y) != n or n == 0:
        raise UsageError(
            f"{name}: expected one label an image and at least one image, "
            f"got y {list(y.shape)} for {n} images."
        )
    if stated is not None and (
        np.ndim(stated) or not np.issubdtype(np.asarray(stated).dtype, np.integer)
    ):
        raise UsageError(f"{name}: expected classes as one integer, got {stated!r}.")
    classes = int(y.max()) + 1 if stated is None else int(stated)
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        raise UsageError(
            f"{name}: expected labels from 0 to {classes - 1}, got {y[wrong[0]]} at point "
            f"{wrong[0]} ({len(wrong)} of {n} are out of range)."
        )
    return y.astype(np.int64), classes


def _reader(x: NDArray[Any], axes: str) -> Reader:
    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        raw = np.asarray(x[indices])
        if axes == "nhw":
            return raw[:, None]
        return raw.transpose(0, 3, 1, 2) if axes == "nhwc" else raw

    return read


def _scan(name: str, x: NDArray[Any], read: Reader) -> None:
    """Check float images before the run starts: no more than 256 MB, 4 MB at a time."""
    if x.dtype == np.uint8:
        return
    row = max(1, int(np.prod(x.shape[1:])) * x.dtype.itemsize)
    end, part = min(len(x), max(1, _SCAN // row)), max(1, _PART // row)
    for start in range(0, end, part):
        indices = np.arange(start, min(start + part, end))
        unit(read(indices), indices, name)
