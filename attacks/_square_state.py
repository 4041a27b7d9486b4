"""The state of a random search over square windows, which ascents may interrupt."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from robustkit.core.types import Images, Integers, Labels, Mask, Scalars


class State(NamedTuple):
    """Per slot three images and a few numbers.

    answered: queries so far; left: queries of an ascent to come, 0 in the random search; draws: of
    a block of proposals [s, n, m] the windows and displacements (linf), or random numbers. marks:
    the best values at the last two times that the queries had doubled [s, 2], see `square`.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    best: Images
    best_value: Scalars
    answered: Integers
    seed: Integers
    point: Integers
    task: Integers
    left: Integers
    draws: Float[Tensor, "s n m"]
    marks: Float[Tensor, "s 2"]

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient: those in an ascent."""
        return self.left > 0
