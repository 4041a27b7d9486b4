"""Scalers of scikit-learn ahead of a classifier, as one increasing function of each feature.

In float32 such a function is no exact affine one, but it never decreases: which inputs it takes to
at most v is an interval, whose end is found by bisection over float32 numbers with the scalers
themselves. So what is known of a classifier of scaled inputs holds for one of the inputs, exactly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Rows: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_INCREASING = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")
_FAR = 2.0**100  # inputs are no farther from 0
_HALVINGS = 33  # of all numbers in float32


def rescaling_of(estimator: Any, scale: float = 1.0) -> tuple[Any, Rows | None]:
    """Return the classifier at the end of a pipeline, and what makes its inputs in float32.

    Without a pipeline that is the estimator; without anything before it there is no function. The
    classifier is None where a step is no scaler: it need not increase.

    Args:
        scale: what inputs are multiplied by first, in float32.
    """
    steps, last = list[Any](), estimator
    if type(estimator).__name__ == "Pipeline":
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        last = steps.pop() if steps else None
    known = all(
        type(step).__module__.startswith("sklearn.") and type(step).__name__ in _INCREASING
        for step in steps
    )
    if not known or scale <= 0:
        return None, None
    if not steps and scale == 1:
        return last, None

    def before(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        found: Any = (torch.from_numpy(rows) * scale).numpy()
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore", UserWarning)  # arrays lack the names of columns
            for step in steps:
                found = step.transform(found)
            return np.asarray(found, dtype=np.float32)

    return last, before


def ends_before(before: Rows, ends: Sequence[Sequence[float]]) -> list[dict[float, float]]:
    """Return for each end v of each feature the largest float32 x with before(x) ≤ v.

    −∞ where there is none, +∞ where all are.

    Args:
        ends: finite numbers in float32, of each feature.
    """
    longest = max(map(len, ends), default=0)
    wanted = np.zeros((longest, len(ends)), dtype=np.float32)
    for feature, values in enumerate(ends):
        wanted[: len(values), feature] = values
    low = np.broadcast_to(_keys(np.float32(-_FAR)), wanted.shape).copy()
    high = np.broadcast_to(_keys(np.float32(_FAR)), wanted.shape).copy()
    if not longest:
        return [{} for _ in ends]
    none, all_ = before(_numbers(low)) > wanted, before(_numbers(high)) <= wanted
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        under = before(_numbers(middle)) <= wanted
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    found = np.where(none, -np.inf, np.where(all_, np.inf, _numbers(low)))
    return [
        {value: float(found[row, feature]) for row, value in enumerate(values)}
        for feature, values in enumerate(ends)
    ]


def _keys(numbers: Any) -> NDArray[np.int64]:
    """Return integers in the order of numbers in float32."""
    bits = np.asarray(numbers, dtype=np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _numbers(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    bits = np.where(keys >= 0, keys, -keys | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)
