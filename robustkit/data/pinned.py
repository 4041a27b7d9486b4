"""A data set as it was when a run began: what is read later must be the same."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.types import Images, Labels
from robustkit.data.dataset import Dataset, Indices, checked, digest
from robustkit.data.values import Box
from robustkit.errors import RobustkitError, UsageError


class PinnedData:
    """Hands out the points of a data set, each checked against its first reading.

    Whoever evaluates reads through this: inputs are float32, contiguous and in memory of their own,
    whatever the data set hands out, and lie in the box of the threat model. A point that is read
    again and is another ends the run before anything is written about it.

    Attributes:
        content: digest of the points; empty until `pin`.
    """

    def __init__(self, data: Dataset, box: Box) -> None:
        self.shape = data.shape
        self._data, self._box = data, box
        self._points, self.content = np.empty(0, dtype=np.int64), ""
        self._marks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._data)

    @property
    def name(self) -> str:
        """That of the data set."""
        return self._data.name

    @property
    def labels(self) -> NDArray[np.int64]:
        """Those of the data set."""
        return self._data.labels

    def pin(self, points: NDArray[np.int64]) -> None:
        """Read the points that the run is about; from now on they must stay as they are.

        Raises:
            UsageError: for a point that cannot be read or lies outside the box.
        """
        self._points, self.content = points, digest(self, points)

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read points: see `Dataset.fetch`.

        Raises:
            UsageError: for a point that cannot be read or lies outside the box.
            RobustkitError: for a point that is not what it was, or cannot be read any more.
        """
        chosen = checked(indices, len(self))
        try:
            x, y = self._read(chosen)
        except UsageError as error:
            if not self.content:
                raise
            raise RobustkitError(
                f"{self._where()}: the data cannot be read any more: {error} "
                f"The run began with the digest {self.content}. {_CURE}"
            ) from error
        marks = _marks(x, y)
        for point, mark in zip(chosen.tolist(), marks, strict=True):
            if self._marks.setdefault(point, mark) != mark:
                raise self._changed(f"point {point} is not what it was when the run began")
        return x, y

    def verify(self) -> None:
        """Read all points again, as the last thing before a record is written.

        Raises:
            RobustkitError: when they are not what they were.
        """
        if digest(self, self._points) != self.content:
            raise self._changed("the points are not what they were when the run began")

    def _read(self, chosen: NDArray[np.int64]) -> tuple[Images, Labels]:
        given: Any = self._data.fetch(chosen)  # of a data set of the user's own, perhaps
        x, y = (part.detach() if isinstance(part, Tensor) else part for part in given)
        wanted = (len(chosen), *self.shape)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or tuple(x.shape) != wanted:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"{self.name}: expected fetch to return images {list(wanted)} and labels "
                f"[{len(chosen)}] as tensors, got {got}."
            )
        mine = torch.empty(wanted, dtype=torch.float32).copy_(x)
        lower, upper = self._box
        inside = ((mine >= lower) & (mine <= upper)).flatten(1)
        if not inside.all():
            row = int((~inside.all(1)).nonzero()[0])
            worst = mine[row].flatten()[~inside[row]][0]
            raise UsageError(
                f"{self.name}: point {chosen[row]} holds {float(worst):.9g}, outside the box "
                f"[{lower:g}, {upper:g}] of the threat model. Give it the lower and upper end of "
                "the data (--box, or lower and upper of Threat), or bring the data into the box."
            )
        return mine, torch.empty(len(chosen), dtype=torch.int64).copy_(y)

    def _where(self) -> str:
        source = getattr(self._data, "source", "")
        return f"{self.name} ({source})" if source and source not in self.name else self.name

    def _changed(self, what: str) -> RobustkitError:
        self._marks, points = {}, self._points
        if not self.content:  # the run has not begun: no digest can be compared
            return RobustkitError(
                f"{self._where()}: the data are not the same each time they are read: {what}. "
                "Leave out random transforms (augmentation), which are for training."
            )
        try:
            now = digest(self._data, points)
        except (RobustkitError, OSError) as error:
            now = f"none, as they cannot be read ({error})"
        return RobustkitError(
            f"{self._where()}: the data changed while the run went on: {what}. The digest of its "
            f"points was {self.content}, now it is {now}. {_CURE}"
        )


_CURE = (
    "No record was written; the ledger keeps the verdicts on what the run began with. Put the data "
    "back and give the same command again, or start over with --fresh."
)


def _marks(x: Images, y: Labels) -> list[bytes]:
    """One short digest a point, of its pixels and its label."""
    rows, labels = x.numpy().reshape(len(x), -1), y.numpy()
    marks = []
    for row, label in zip(rows, labels, strict=True):
        mark = hashlib.blake2b(row.data, digest_size=16)
        mark.update(label.tobytes())
        marks.append(mark.digest())
    return marks
