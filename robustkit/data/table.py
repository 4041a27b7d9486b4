"""The description of a table from an npz file: that of the data, or one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustkit.core.table import Table
from robustkit.data import npz
from robustkit.errors import UsageError

_KEYS = ("eps", "mutable", "kind", "group", "names")
_KNOWN = (
    *("lower", "upper"),
    *(f"feature_{key}" for key in _KEYS),
    *(f"{name}_{part}" for name in ("constraint", "equality") for part in ("matrix", "bound")),
)


def open_table(text: str) -> Table:
    """Read the description in an npz: the keys that `described` takes.

    Raises:
        UsageError: when there is no such file, or the description is none or cannot be met.
    """
    path = Path(text).expanduser()
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _opened(text, path, changed)


@lru_cache(8)
def _opened(text: str, path: Path, changed: int) -> Table:
    there = set(npz.keys(path))
    table = described(text, {key: npz.array(path, key) for key in _KNOWN if key in there})
    table.refuse_empty(text)
    return table


def described(where: str, given: dict[str, Any]) -> Table:
    """Make a table of arrays, each under the name of its key.

    Args:
        where: what messages call the source.
        given: `lower` and `upper` [d], and optionally `feature_eps` [d],
            `feature_mutable` [d] of bools, `feature_kind` [d] of "real", "integer" and "category",
            `feature_group` [d], `feature_names` [d], `constraint_matrix` [m, d],
            `constraint_bound` [m], `equality_matrix` [q, d], `equality_bound` [q].

    Raises:
        UsageError: for what is missing, of another length, or contradicts itself.
    """
    lower = _numbers(where, given, "lower", None)
    d = len(lower)
    upper = _numbers(where, given, "upper", (d,))
    for j in np.flatnonzero(~(lower < upper)).tolist():
        raise UsageError(
            f"{where}: expected lower < upper, got {lower[j]:g} and {upper[j]:g} at feature {j}."
        )
    names = tuple(map(str, given.get("feature_names", [f"feature {j}" for j in range(d)])))
    kind = np.asarray(given.get("feature_kind", ["real"] * d)).astype(str)
    mutable = np.asarray(given.get("feature_mutable", [True] * d))
    group = np.asarray(given.get("feature_group", [-1] * d))
    for key, array in (("names", names), ("kind", kind), ("mutable", mutable), ("group", group)):
        if np.shape(array) != (d,):
            raise _length(where, f"feature_{key}", (d,), np.shape(array))
    if mutable.dtype != np.bool_ or not np.issubdtype(group.dtype, np.integer):
        raise UsageError(
            f"{where}: expected feature_mutable of bools and feature_group of integers, got "
            f"{mutable.dtype} and {group.dtype}."
        )
    rows = _pair(where, given, "constraint", d) + _pair(where, given, "equality", d)
    radius = (
        _numbers(where, given, "feature_eps", (d,)) if "feature_eps" in given else upper - lower
    )
    if (radius < 0).any():
        raise UsageError(f"{where}: expected feature_eps of 0 or more, got {radius.min():g}.")
    _refuse_kinds(where, kind, group, lower, upper)
    whole = kind == "integer"
    arrays = [lower, upper, radius, mutable, whole, group.astype(np.int64), *rows]
    made = [torch.from_numpy(np.array(array)) for array in arrays]
    low, high, reach, free, counts, groups, matrix, bound, equal, value = made
    return Table(low, high, reach, free, counts, groups, matrix, bound, equal, value, names)


def _refuse_kinds(
    where: str, kind: np.ndarray[Any, Any], group: np.ndarray[Any, Any], lower: Any, upper: Any
) -> None:
    for j, (name, g) in enumerate(zip(kind.tolist(), group.tolist(), strict=True)):
        if name not in ("real", "integer", "category"):
            raise UsageError(
                f"{where}: expected feature_kind real, integer or category, got {name!r} at {j}."
            )
        if (name == "category") != (g >= 0):
            raise UsageError(
                f"{where}: expected a feature_group from 0 on for each category and -1 for all "
                f"others, got {name} with group {g} at feature {j}."
            )
        if name == "category" and (lower[j], upper[j]) != (0, 1):
            raise UsageError(
                f"{where}: expected bounds 0 and 1 of a category, got {lower[j]:g} and "
                f"{upper[j]:g} at feature {j}."
            )
        if name == "integer" and (lower[j] % 1 or upper[j] % 1 or upper[j] - lower[j] > 2**22):
            raise UsageError(
                f"{where}: expected whole bounds of an integer, at most 2^22 apart, got "
                f"{lower[j]:g} and {upper[j]:g} at feature {j}."
            )
    for g in np.unique(group[group >= 0]).tolist():
        if (group == g).sum() < 2:
            raise UsageError(f"{where}: expected two columns or more in group {g}, got one.")


def _pair(where: str, given: dict[str, Any], name: str, d: int) -> list[np.ndarray[Any, Any]]:
    keys = f"{name}_matrix", f"{name}_bound"
    if not any(key in given for key in keys):
        return [np.zeros((0, d)), np.zeros(0)]
    bound = _numbers(where, given, keys[1], None)
    return [_numbers(where, given, keys[0], (len(bound), d)), bound]


def _numbers(
    where: str, given: dict[str, Any], key: str, shape: tuple[int, ...] | None
) -> np.ndarray[Any, Any]:
    if key not in given:
        raise UsageError(f"{where}: expected the key {key!r} of a description, got none.")
    array = np.asarray(given[key])
    if not (np.issubdtype(array.dtype, np.number) and np.isfinite(array).all()):
        raise UsageError(f"{where}: expected finite numbers in {key}, got {array.dtype}.")
    if (array.ndim != 1 or not len(array)) if shape is None else array.shape != shape:
        raise _length(where, key, shape or ("n",), array.shape)
    return array.astype(np.float64)


def _length(where: str, key: str, expected: Sequence[Any], got: Sequence[int]) -> UsageError:
    told = ", ".join(map(str, expected))
    return UsageError(f"{where}: expected {key} [{told}], one for each feature, got {list(got)}.")
