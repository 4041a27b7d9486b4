"""Criteria for models that predict a number: an absolute or a relative error beyond a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.criterion import Answers, Criterion, settled
from robustkit.core.text import number
from robustkit.core.types import Labels, Logits
from robustkit.errors import UsageError
from robustkit.registry import criteria


@criteria.register("error", cites="", examples=("error>0.5",))
@dataclass(frozen=True)
class Error(Criterion):
    """A point is broken where |f(x') − y| exceeds a tolerance, in units of y.

    `error>0.5`, for data whose y are floats. The model answers one number a point;
    `robustkit.models.regression.Residuals` makes logits of it, in which a label is a target's
    number, so that attacks, bounds and branch and bound are those of classification.
    """

    above: float

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows the name."""
        try:
            above = number(re.fullmatch(r">(.*)", text)[1])  # type: ignore[index]
        except (TypeError, ValueError):
            above = 0.0
        if not 0 < above < np.inf:
            raise UsageError(
                f"criterion: expected a tolerance above 0, such as {cls._name()}>0.5, got "
                f"{cls._name()}{text}."
            )
        return cls(above)

    @classmethod
    def _name(cls) -> str:
        return "error"

    def __str__(self) -> str:
        return f"{self._name()}>{self.above:.6g}"

    def tolerances(self, targets: NDArray[np.float32] | None) -> NDArray[np.float64] | None:
        """Return the largest error of each target [k] that does not break a point.

        Raises:
            UsageError: for data without targets.
        """
        if targets is None:
            raise UsageError(
                f"criterion {self} is of models that predict numbers, and the labels of this data "
                "are classes: store y as floats."
            )
        return self._of(targets.astype(np.float64))

    def _of(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full(len(targets), self.above)

    def probed(self, classes: int) -> tuple[int, int]:
        """Above and below the median target: all outputs move together, so that none leads."""
        return classes + classes // 2, 2 * classes + classes // 2

    def classes(self, outputs: int) -> int:
        """Within the tolerance, above it and below it."""
        return 3

    def harmless(self, y: Labels, outputs: int) -> Bool[Tensor, "b k"]:
        """All but to be above or below the point's own target."""
        count, place = outputs // 3, torch.arange(outputs, device=y.device)
        return (place < count) | (place % count != y[:, None])

    def broken(self, logits: Answers, y: Labels) -> Bool[Tensor, "*t b"]:
        """Where the answer lies above or below; the logits of other targets do not count."""
        spared = self.harmless(y, logits.shape[-1])
        beyond = logits.masked_fill(spared, -torch.inf).amax(-1)
        return beyond > _own(logits, y)[..., 0]

    def margins(self, logits: Answers, y: Labels) -> Answers:
        """The tolerance less the error, against the two of the point's own target alone."""
        return settled(logits, self.harmless(y, logits.shape[-1]), _own(logits, y), y)

    def reference(self, logits: Logits, y: Labels) -> Labels:
        """The target's own."""
        return y


def _own(logits: Answers, y: Labels) -> Answers:
    """Return the logit of each label [*t, b, 1], which `Residuals` leaves at 0."""
    return logits.gather(-1, y.expand(logits.shape[:-1])[..., None])


@criteria.register("relative_error", cites="", examples=("relative_error>0.1",))
@dataclass(frozen=True)
class RelativeError(Error):
    """A point is broken where |f(x') − y| exceeds a share of |y|: `relative_error>0.1`."""

    @classmethod
    def _name(cls) -> str:
        return "relative_error"

    def _of(self, targets: NDArray[np.float64]) -> NDArray[np.float64]:
        if not targets.all():
            raise UsageError(
                f"criterion {self}: a target is 0, of which no error is a share. Take "
                "error>TOLERANCE, or leave these points out."
            )
        return self.above * np.abs(targets)
