"""What box and criterion mean for a request: its threat model, the points it asks about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robustkit.core.criterion import UNTARGETED, Criterion
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.data.sampling import Sample, select
from robustkit.data.values import UNIT, Box
from robustkit.errors import UsageError, some
from robustkit.registry import read_criterion


def with_criterion(threat: Threat, criterion: Criterion | str | None) -> Threat:
    """Return a threat model under a criterion; under its own where none is given.

    Raises:
        UsageError: for a name that is not known, and where both are given and differ.
    """
    if criterion is None:
        return threat
    found = read_criterion(criterion)
    if threat.criterion not in (UNTARGETED, found):
        raise UsageError(
            f"the threat model {threat} names a criterion already, and {found} (--criterion) is "
            "another: leave one of them out."
        )
    return replace(threat, criterion=found)


def in_box(threat: Threat, box: Box) -> Threat:
    """Return a threat model in a box; in its own where that is [0, 1].

    Raises:
        UsageError: for ends that are none, and where both name one and differ.
    """
    if box == UNIT:
        return threat
    if threat.box not in (UNIT, box):
        raise UsageError(
            f"the threat model names a box already, {list(threat.box)}, and {list(box)} (--box) is "
            "another: leave one of them out."
        )
    return replace(threat, lower=box[0], upper=box[1])


@dataclass(frozen=True)
class _Labelled:
    """Some points of a data set, as far as a sample is drawn by it."""

    name: str
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def draw(
    data: Dataset, criterion: Criterion, n: int | None, seed: int, sample: Sample
) -> NDArray[np.int64]:
    """Draw a sample of the points that a criterion asks about, or take all of them, ascending.

    Raises:
        UsageError: as `robustkit.data.sampling.select`, and where it asks about none.
    """
    places = np.flatnonzero(criterion.asked(data.labels))
    if len(places) == len(data):
        return select(data, n, seed, sample)
    if not len(places):
        raise UsageError(
            f"criterion {criterion} asks about none of the points of {data.name}: take another "
            "class, or data of other classes."
        )
    left = _Labelled(f"{data.name} under {criterion}", data.labels[places])
    return places[select(left, n, seed, sample)]


def refuse_unasked(data: Dataset, criterion: Criterion, points: NDArray[np.int64]) -> None:
    """Refuse (a UsageError) points that were named, and that a criterion does not ask about."""
    out = points[~criterion.asked(data.labels[points])]
    if len(out):
        raise UsageError(
            f"criterion {criterion} does not ask about points {some(out.tolist())}, which are of "
            f"class {data.labels[out[0]]}: leave them out."
        )


def abstentions(criterion: Criterion, predicted: Sequence[int]) -> str | None:
    """Say on how many clean points, of those `predicted`, the model abstains; None: it cannot."""
    if criterion.abstention is None:
        return None
    count, n = predicted.count(criterion.abstention), len(predicted)
    return f"abstains on {count} of {n} clean points ({count / n:.4f}), which count as errors"
