"""Numbers of the inputs: from whatever type they are stored in to float32 inside a box."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import UsageError

Box: TypeAlias = "tuple[float, float]"
UNIT: Box = (0.0, 1.0)
# Four units in the last place of float32: what arithmetic such as x * 0.5 + 0.5 may add.
ROUNDING = 2.0**-21
_OVERSHOOT = 0.05  # of a resize


def in_box(
    raw: NDArray[Any], indices: NDArray[np.int64], name: str, box: Box = UNIT
) -> NDArray[np.float32]:
    """Turn raw images [b, ...] into float32 inside `box`: contiguous, and in memory of their own.

    Integers are bytes and become x / 255. Floating-point numbers stay; what leaves the box by no
    more than the rounding of float32 is clipped to it.

    Raises:
        UsageError: for a value outside the box or NaN, with the first point that has one.
    """
    if np.issubdtype(raw.dtype, np.integer):
        if raw.dtype != np.uint8:
            _refuse(raw, (raw >= 0) & (raw <= 255), indices, name, "integer images from 0 to 255")
        scaled = np.empty(raw.shape, dtype=np.float32)
        np.divide(raw, np.float32(255), out=scaled, casting="unsafe", dtype=np.float32)
        return scaled
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
        x = np.array(raw, dtype=np.float32, order="C")
    lower, upper = np.float32(box[0]), np.float32(box[1])
    if ((x >= lower) & (x <= upper)).all():
        return x
    slack = np.float32(ROUNDING * max(map(abs, box)))
    near = (x >= lower - slack) & (x <= upper + slack)
    if not near.all():
        seen = x[np.isfinite(x)]
        advice = _advice(float(seen.min(initial=0)), float(seen.max(initial=0)), box)
        if not np.isfinite(x).all():
            advice = "Mend the images with NaN or infinite values, or leave them out."
        _refuse(x, near, indices, name, f"float images in [{box[0]:g}, {box[1]:g}]", advice)
    return np.clip(x, lower, upper, out=x)


def rounded(raw: NDArray[Any], box: Box = UNIT) -> bool:
    """Whether `in_box` clips anything of these images, which it accepts."""
    if np.issubdtype(raw.dtype, np.integer) or not raw.size:
        return False
    x = np.asarray(raw, dtype=np.float32)
    return bool(x.min() < np.float32(box[0]) or x.max() > np.float32(box[1]))


def _refuse(
    x: NDArray[Any],
    inside: NDArray[np.bool_],
    indices: NDArray[np.int64],
    name: str,
    expected: str,
    advice: str = "Store bytes as uint8, and other images as floats in [0, 1].",
) -> None:
    flat = inside.reshape(len(x), -1)
    if flat.all():
        return
    row = int(np.flatnonzero(~flat.all(axis=1))[0])
    first = int(np.flatnonzero(~flat[row])[0])
    worst = x.reshape(len(x), -1)[row, first]
    vector = f", feature {first}" if x.ndim == 2 else ""
    raise UsageError(
        f"{name}: expected {expected}, got {float(worst):.9g} at point {indices[row]}{vector}. "
        f"{advice}"
    )


def _advice(low: float, high: float, box: Box) -> str:
    """Say what images from `low` to `high` look like, and what to do with them."""
    if box != UNIT:
        return (
            "The box is that of the threat model: give it the lower and upper end of the data "
            "(--box, or lower and upper of Threat), or bring the data into it."
        )
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return "If a resize has overshot, clip them: x.clip(0, 1)."
    if -1 - ROUNDING <= low < 0 and high <= 1 + ROUNDING:
        return (
            "They look scaled to [-1, 1]: store x * 0.5 + 0.5 and give the model --mean and --std "
            "of 0.5 a channel. Or keep them, with --box -1,1; from Python, Threat(norm, eps, "
            "lower=-1, upper=1)."
        )
    if low < 0:
        return "They look normalized: undo it (x * std + mean) and give the model --mean and --std."
    return "Divide by the largest value a pixel can have, or store the images as uint8."
