"""A range of its own for every feature: data become shares of it, and the model gets them back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robustkit.core.types import Shape
from robustkit.data.values import ROUNDING
from robustkit.errors import UsageError


class Ranges(NamedTuple):
    """Lower and upper end of each feature [*shape], float64.

    Points are handed out as (x − lower) / (upper − lower), in the unit box of every threat model;
    `robustkit.models.normalization.in_units` turns that back in front of the model. So eps is a
    share of each feature's range, and norms weigh features by their ranges.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    def shares(
        self, raw: NDArray[Any], indices: NDArray[np.int64], name: str
    ) -> NDArray[np.float32]:
        """Return points [b, *shape] as shares of the ranges.

        What leaves a range by no more than the rounding of float32 is clipped to it.

        Raises:
            UsageError: for a value outside its range or NaN, with point and feature.
        """
        wide = np.asarray(raw, dtype=np.float64)
        # In units of the data: of a range far from zero, float32 holds few shares.
        slack = ROUNDING * np.maximum(np.abs(self.lower), np.abs(self.upper))
        inside = (wide >= self.lower - slack) & (wide <= self.upper + slack)
        if not inside.all():
            row, *place = (int(part) for part in np.argwhere(~inside)[0])
            where = tuple(place)
            raise UsageError(
                f"{name}: expected feature {feature(where)} in [{self.lower[where]:g}, "
                f"{self.upper[where]:g}], as its lower and upper say, got "
                f"{wide[(row, *where)]:.9g} at point {indices[row]}. Widen the range, or leave the "
                "point out."
            )
        return np.clip((wide - self.lower) / (self.upper - self.lower), 0, 1).astype(np.float32)


def feature(place: tuple[int, ...]) -> str:
    """Name a feature by its place in one input: `7` of a vector, `[0, 12]` of a signal."""
    return str(place[0]) if len(place) == 1 else str(list(place))


def ranges(name: str, shape: Shape, lower: Any, upper: Any) -> Ranges:
    """Read the ends of the ranges, which broadcast to one input.

    Raises:
        UsageError: for one alone, another type or shape, or ends that leave no room.
    """
    if lower is None or upper is None:
        missing = "lower" if lower is None else "upper"
        raise UsageError(f"{name}: expected both lower and upper, got no {missing}.")
    ends = []
    for key, given in (("lower", lower), ("upper", upper)):
        try:
            ends.append(np.broadcast_to(np.asarray(given, dtype=np.float64), shape))
        except (TypeError, ValueError):
            raise UsageError(
                f"{name}: expected {key} as numbers that broadcast to one input {list(shape)}, got "
                f"{np.asarray(given).dtype} {list(np.shape(given))}."
            ) from None
    low, high = ends
    wrong = ~(np.isfinite(low) & np.isfinite(high) & (low < high))
    if wrong.any():
        place = tuple(int(part) for part in np.argwhere(wrong)[0])
        raise UsageError(
            f"{name}: expected lower < upper, both finite, got {low[place]:g} and "
            f"{high[place]:g} of feature {feature(place)}. A feature that never changes needs a "
            "range all the same, such as one unit around it."
        )
    return Ranges(low, high)
