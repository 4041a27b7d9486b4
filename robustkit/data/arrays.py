"""Data of the user's own: npz files, image folders, Python functions.

How the axes of `x` are read: [n, d] are vectors, [n, h, w] images of one channel, [n, c, d, h, w]
volumes. Signals [n, c, t] state their axes (layout "nct"). Of [n, h, w, c] and [n, c, h, w] the one
whose c is 1, 3 or 4 is taken. Where both are, tensors are channels first, as everywhere in PyTorch.
Else nothing is guessed: the axes must be stated (in an npz, the key `layout`: "nhwc" or "nchw").

How the pixels are read: integers are bytes and become x / 255; floats of any precision are taken
as they are. See `robustkit.data.values`. With a range for every feature (`lower`, `upper`) numbers
of any type are taken as they are, see `robustkit.data.ranges`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.imports import failure, load_attribute
from robustkit.data import npz
from robustkit.data.dataset import Dataset, ImageSet, Reader
from robustkit.data.npz import Stored
from robustkit.data.ranges import ranges
from robustkit.data.torch_dataset import from_torch, is_torch_data
from robustkit.data.values import UNIT, Box, in_box, rounded
from robustkit.errors import UsageError

_CHANNELS = (1, 3, 4)
_LAYOUTS = ("nd", "nct", "nhw", "nhwc", "nchw", "ncdhw")
_BY_AXES = {2: "nd", 3: "nhw", 5: "ncdhw"}
_TARGETS = 2000
_SCAN, _PART = 1 << 28, 1 << 22


def open_npz(name: str, path: Path, *, box: Box = UNIT) -> ImageSet:
    """Open an npz with `x` and `y`, and optionally `classes`, `layout`, `lower` and `upper`.

    Args:
        name: what records call it.
        path: the arrays are as `from_arrays` takes them.
        box: the range of floats.

    Raises:
        UsageError: for a missing file or key and whatever `from_arrays` refuses.
    """
    stored = npz.keys(path)
    x, y = npz.rows(path, "x"), npz.array(path, "y")
    more: dict[str, Any] = {
        key: npz.array(path, key) for key in ("classes", "lower", "upper") if key in stored
    }
    layout = str(npz.array(path, "layout")) if "layout" in stored else None
    opened = from_arrays(name, x, y, layout=layout, box=box, **more)
    return replace(opened, source=str(path))


def from_arrays(
    name: str,
    x: Stored,
    y: NDArray[Any],
    *,
    classes: Any = None,
    layout: str | None = None,
    box: Box = UNIT,
    lower: Any = None,
    upper: Any = None,
) -> ImageSet:
    """Make a data set of two arrays; `x` may lie on disk and is not copied.

    Floats are checked here as far as the first 256 MB go, and always when they are fetched.

    Args:
        name: what records call it.
        x: bytes as any integers, or floats in the box; vectors [n, d], signals [n, c, t], images
            [n, h, w], [n, h, w, c] or [n, c, h, w], volumes [n, c, d, h, w].
        y: integers [n], 0 to classes − 1; floats [n] are targets of a regression.
        classes: largest label + 1 when not given, and at least two.
        layout: one letter an axis ("nct", "nhwc", ...); read off the shape when not given.
        box: the range of floats.
        lower, upper: ends of the range of each feature, broadcast to one input: numbers of any
            type are handed out as shares of it, see `robustkit.data.ranges.Ranges`.

    Raises:
        UsageError: for a type, a shape, a pixel or a label that does not fit.
    """
    if not (np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)):
        raise UsageError(
            f"{name}: expected x as bytes, or as float in [{box[0]:g}, {box[1]:g}], got {x.dtype}. "
            "Use x.astype('uint8') for bytes, x.astype('float32') for numbers in the range."
        )
    axes = _axes(name, x.shape, layout)
    targets, y = _targets(name, y) if np.issubdtype(y.dtype, np.floating) else (None, y)
    labels, count = _labels(name, y, len(x), classes if targets is None else len(targets))
    if 0 in x.shape[1:]:
        raise UsageError(f"{name}: expected inputs of at least one number, got x {list(x.shape)}.")
    read = _reader(x, axes)
    shape = tuple(map(int, read(np.zeros(1, dtype=np.int64)).shape[1:]))
    if lower is None and upper is None:
        note = _scan(name, x, read, box)
        return ImageSet(name, name, shape, count, labels, read, note=note, box=box, targets=targets)
    if box != UNIT:
        raise UsageError(
            f"{name}: the data bring a range for every feature (lower, upper), and a box is "
            "another: leave out --box (or the box of the threat model), or the ranges."
        )
    known = ranges(name, shape, lower, upper)

    def shares(indices: NDArray[np.int64]) -> NDArray[Any]:
        return known.shares(read(indices), indices, name)

    _scan(name, x, shares, UNIT)
    told = "features are shares of their ranges, lower to upper"
    return ImageSet(
        name, name, shape, count, labels, shares, note=told, ranges=known, targets=targets
    )


def open_function(text: str, *, box: Box = UNIT) -> Dataset:
    """Call the function that `text` (`module:function` or `path/to/file.py:function`) names.

    It takes no arguments and returns (x, y), as arrays or tensors, or a `Dataset`.

    Raises:
        UsageError: when it cannot be imported, raises, or returns something else.
    """
    made = load_attribute(text)
    if callable(made):
        try:
            made = made()
        except (Exception, SystemExit) as error:
            raise UsageError(f"{text}() fails: {failure(error)}.") from error
    return as_dataset(text, made, box=box)


def as_dataset(name: str, made: Any, *, box: Box = UNIT) -> Dataset:
    """Make a data set named `name` of (x, y), arrays or tensors; a `Dataset` comes back as it is.

    A data set or a loader of PyTorch is read by `robustkit.data.torch_dataset.from_torch`.

    Args:
        box: the range of floats.

    Raises:
        UsageError: for something else, and whatever `from_arrays` refuses.
    """
    if isinstance(made, Dataset):
        return made
    if is_torch_data(made):
        return from_torch(name, made, box=box)
    if not isinstance(made, tuple | list) or len(made) != 2:
        needed = [part for part in dir(Dataset) if not part.startswith("_")]
        lacking = ", ".join(part for part in needed if not hasattr(made, part))
        if hasattr(made, "shape"):
            raise UsageError(f"{name}: expected (x, y), got x alone, of shape {tuple(made.shape)}.")
        raise UsageError(
            f"{name}: expected (x, y), a Dataset or DataLoader of PyTorch, or a "
            f"robustkit.data.Dataset, got {type(made).__name__}, which as a Dataset lacks "
            f"{lacking or '__len__'}."
        )
    x, y = (_array(name, part) for part in made)
    both = x.ndim == 4 and x.shape[1] in _CHANNELS and x.shape[3] in _CHANNELS
    layout = "nchw" if isinstance(made[0], Tensor) and both else None
    return from_arrays(name, x, y, layout=layout, box=box)


def _array(name: str, part: Any) -> NDArray[Any]:
    """Return a tensor as an array; NumPy has no bfloat16, of which every number is a float32."""
    try:
        if isinstance(part, Tensor):
            part = part.detach()
            part = part.float() if part.dtype == torch.bfloat16 else part
            part = part.cpu().resolve_conj().resolve_neg().numpy()
        return np.asarray(part)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"{name}: expected x and y as arrays or dense tensors, got {type(part).__name__} "
            f"that cannot be read as an array: {error}."
        ) from error


def _axes(name: str, shape: tuple[int, ...], stated: str | None) -> str:
    if stated is not None:
        if stated not in _LAYOUTS or len(stated) != len(shape):
            raise UsageError(
                f"{name}: expected the layout {', '.join(_LAYOUTS[:-1])} or {_LAYOUTS[-1]}, one "
                f"letter an axis, got {stated!r} for x {list(shape)}."
            )
        return stated
    if len(shape) in _BY_AXES:
        return _BY_AXES[len(shape)]
    if len(shape) != 4:
        raise UsageError(
            f"{name}: expected x as vectors [n, d], images [n, h, w], [n, h, w, c] or "
            f"[n, c, h, w], or volumes [n, c, d, h, w], got {list(shape)}. Signals [n, c, t] have "
            'the key layout="nct".'
        )
    last, second = shape[3] in _CHANNELS, shape[1] in _CHANNELS
    if last == second:
        many = "both axis 1 and axis 3 could be" if last else "neither axis 1 nor axis 3 is"
        raise UsageError(
            f"{name}: x {list(shape)}: {many} the channels (1, 3 or 4). Store it with the key "
            'layout="nhwc" or layout="nchw", or return a Dataset made by from_arrays.'
        )
    return "nhwc" if last else "nchw"


def _targets(name: str, y: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the different targets, ascending, and the number of each point's."""
    if not np.isfinite(y).all():
        raise UsageError(
            f"{name}: expected y as finite numbers, got {y[~np.isfinite(y)][0]} at point "
            f"{np.argwhere(~np.isfinite(y))[0][0]}."
        )
    values, places = np.unique(y.astype(np.float32), return_inverse=True)
    if len(values) > _TARGETS:
        raise UsageError(
            f"{name}: expected at most {_TARGETS:,} different targets, got {len(values):,}: a "
            "model is judged at each of them. Round y to so many values, or take fewer points; "
            "classes are stored as integers."
        )
    if len(values) == 1:  # a second one, which no point has: one class would be none
        values = np.append(values, np.float32(np.nextafter(values[0], np.float32(np.inf))))
    return values, places.reshape(y.shape).astype(np.int64)


def _labels(name: str, y: NDArray[Any], n: int, stated: Any) -> tuple[NDArray[np.int64], int]:
    if not np.issubdtype(y.dtype, np.integer):
        raise UsageError(
            f"{name}: expected y as integers, got {y.dtype}. Use y.astype('int64') if they are "
            "whole numbers, y.argmax(1) if they are one-hot."
        )
    if y.ndim != 1 or len(y) != n or n == 0:
        raise UsageError(
            f"{name}: expected one label a point and at least one point, "
            f"got y {list(y.shape)} for {n} points."
        )
    if stated is not None and (
        np.ndim(stated) or not np.issubdtype(np.asarray(stated).dtype, np.integer)
    ):
        raise UsageError(f"{name}: expected classes as one integer, got {stated!r}.")
    # Points of one class are a subset like any other, whichever class it is.
    classes = max(2, int(y.max()) + 1) if stated is None else int(stated)
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if len(wrong):
        raise UsageError(
            f"{name}: expected labels from 0 to {classes - 1}, got {y[wrong[0]]} at point "
            f"{wrong[0]} ({len(wrong)} of {n} are out of range)."
        )
    return y.astype(np.int64), classes


def _reader(x: Stored, axes: str) -> Reader:
    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        raw = x[indices]
        if axes == "nhw":
            return raw[:, None]
        return raw.transpose(0, 3, 1, 2) if axes == "nhwc" else raw

    return read


def _scan(name: str, x: Stored, read: Reader, box: Box) -> str:
    """Check images before the run starts: no more than 256 MB, 4 MB at a time.

    Returns:
        A note where something had to be clipped.
    """
    if x.dtype == np.uint8:
        return ""
    row = max(1, int(np.prod(x.shape[1:])) * x.dtype.itemsize)
    end, part = min(len(x), max(1, _SCAN // row)), max(1, _PART // row)
    clipped, most = False, 0
    for start in range(0, end, part):
        indices = np.arange(start, min(start + part, end))
        raw = read(indices)
        in_box(raw, indices, name, box)
        clipped = clipped or rounded(raw, box)
        most = max(most, int(raw.max())) if np.issubdtype(raw.dtype, np.integer) else 2
    if most < 2:
        raise UsageError(
            f"{name}: expected integers from 0 to 255, got {x.dtype} from 0 to {most}: read as "
            "bytes, all of it is black. Use x.astype('float32') if 1 is white."
        )
    told = f"pixels outside [{box[0]:g}, {box[1]:g}] by a rounding of float32 are clipped to it"
    return told if clipped else ""
