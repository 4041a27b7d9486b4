"""The normal form of a property: alternatives, each a box of inputs with linear constraints."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Declared(NamedTuple):
    """An input or output of the network, under the name that the property gives it."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


class Disjunct(NamedTuple):
    """Inputs in [low, high] [n] with rows · (x, y) ≤ limits (below them where `strict`).

    Attributes:
        rows: coefficients of the n inputs, then of the k outputs [m, n + k].
    """

    low: Array
    high: Array
    rows: Array
    limits: Array
    strict: NDArray[np.bool_]

    def holds(self, x: Array, y: Array) -> bool:
        """Tell whether the input x [n] with the output y [k] is inside: exactly, in float64."""
        values = self.rows @ np.concatenate([x, y])
        met = np.where(self.strict, values < self.limits, values <= self.limits)
        return bool(((self.low <= x) & (x <= self.high)).all() and met.all())


@dataclass(frozen=True)
class Query:
    """Whether some input lies in one of the alternatives, with the output the network gives it.

    Attributes:
        labels: how the property writes each input and output, in the order of a row.
    """

    version: str
    network: str
    input: Declared
    output: Declared
    disjuncts: list[Disjunct]
    labels: list[str]
