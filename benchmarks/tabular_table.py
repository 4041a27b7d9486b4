"""A table with whole numbers, a one-hot group and constraints, built from scikit-learn's data.

Breast cancer (Wolberg et al. 1995): the mean and the largest value of ten measures of a tumor. The
areas become whole numbers; of the mean radius a size class is added, bound to it by two
constraints, and of the texture the spread between largest and mean, by an equality. No largest
value may fall below its mean. Two features may not change: symmetry, mean and largest.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SIZES = (0.0, 12.0, 16.0, 30.0)  # ends of the mean radius of the classes small, medium, large


class Built(NamedTuple):
    """Rows scaled to [0, 1] for training and for the test, and the rules.

    Attributes:
        x: [n, d] float32.
        rules: the arrays of a description.
    """

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    rules: dict[str, Array]


def build() -> Built:
    """Build the table; every second row is of the test."""
    raw: Any = import_module("sklearn.datasets").load_breast_cancer()
    mean, worst = raw.data[:, :10].copy(), raw.data[:, 20:].copy()
    area = 3
    mean[:, area], worst[:, area] = np.floor(mean[:, area]), np.ceil(worst[:, area])
    sizes = np.eye(3)[np.digitize(mean[:, 0], SIZES[1:3])]
    # float32 first: the equality holds for what is stored, up to its rounding.
    v = np.concatenate([mean, worst, (worst - mean)[:, 1:2], sizes], 1)
    names = [f"{kind} {name.removeprefix('mean ')}" for kind in ("mean", "worst")
             for name in raw.feature_names[:10]]  # fmt: skip
    names += ["texture spread", "small", "medium", "large"]
    lower, upper = np.floor(v.min(0)), np.ceil(v.max(0))
    lower[20], upper[20] = 0.0, np.ceil(v[:, 20].max())
    rules = {
        "lower": lower,
        "upper": upper,
        # The spread follows from two others: only its bounds hold it.
        "feature_eps": (upper - lower) * np.array([1.0] * 20 + [100.0] + [1.0] * 3),
        "feature_kind": _kinds(),
        "feature_group": np.array([-1] * 21 + [0] * 3),
        "feature_mutable": np.array([name.split()[-1] != "symmetry" for name in names]),
        "feature_names": np.array(names),
        **_constraints(),
    }
    x = ((v - lower) / (upper - lower)).astype(np.float32)
    return Built(x[::2], raw.target[::2], x[1::2], raw.target[1::2], rules)


def _kinds() -> Array:
    kinds = np.array(["real"] * 21 + ["category"] * 3, dtype="<U8")
    kinds[[3, 13]] = "integer"
    return kinds


def _constraints() -> dict[str, Array]:
    """Mean ≤ largest of every measure; size classes hold the mean radius; spread = their gap."""
    order = np.concatenate([np.eye(10), -np.eye(10), np.zeros((10, 4))], 1)
    above, below = np.zeros((2, 24))
    above[0], above[21:] = -1, SIZES[:3]
    below[0], below[21:] = 1, [-end for end in SIZES[1:]]
    spread = np.zeros((1, 24))
    spread[0, [20, 11, 1]] = 1, -1, 1
    return {
        "constraint_matrix": np.concatenate([order, [above, below]]),
        "constraint_bound": np.zeros(12),
        "equality_matrix": spread,
        "equality_bound": np.zeros(1),
    }
