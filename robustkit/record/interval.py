"""How far the accuracies of a record can be trusted: one 95% interval, wherever one is shown.

It is for the population that the points are a sample of, and does not shrink when all points of a
test set are used: a test set is a sample too.

A number of points that was fixed beforehand has the interval of Clopper and Pearson, or Student's
for a mean. They are those of independent draws: a sample in which each class has its share of the
data varies a little less, so that they err on the wide side. Where a run ended early, the number
may depend on what was found, and both are too narrow: there it is a confidence sequence over the
order in which the points were drawn, which is right whenever one stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robustkit.core.stats.intervals import Interval, clopper_pearson, mean_interval
from robustkit.core.stats.sequential import confidence_sequence
from robustkit.record.points import ROBUST

if TYPE_CHECKING:
    from robustkit.record.points import Status
    from robustkit.record.record import Record
    from robustkit.record.variants import VariantAccuracies


def stopped_early(record: Record) -> bool:
    """Whether the run ended before all points that were asked for."""
    return record.data.planned is not None


def robust_interval(record: Record) -> Interval:
    """Return the 95% interval of the robust accuracy."""
    return _of_share(record, ROBUST)


def clean_interval(record: Record) -> Interval:
    """Return the 95% interval of the clean accuracy."""
    return _of_share(record, ("broken", "robust", "certified"))


def expected_interval(record: Record) -> Interval | None:
    """Return the 95% interval of the accuracy of one pass; None unless the model is randomized.

    It covers the draw of the points and of the model's noise.
    """
    pairs = zip(record.points.index, record.points.errors or (), strict=False)
    right = {point: 1 - share for point, share in pairs if share is not None}
    if len(right) < record.n:
        return None
    if stopped_early(record):
        return _sequence(record, right)
    return Interval(*mean_interval(list(right.values()))[1])


def variants_interval(record: Record, found: VariantAccuracies) -> Interval:
    """Return the 95% interval of the mean accuracy over variants, with points as the unit."""
    shares = found.per_point.tolist()
    if stopped_early(record):
        return _sequence(record, dict(zip(found.points, shares, strict=True)))
    return Interval(*mean_interval(shares)[1])


def _of_share(record: Record, wanted: Sequence[Status]) -> Interval:
    status = record.points.status
    if not stopped_early(record):
        return clopper_pearson(sum(map(status.count, wanted)), record.n)
    pairs = zip(record.points.index, status, strict=True)
    return _sequence(record, {point: state in wanted for point, state in pairs})


def _sequence(record: Record, values: Mapping[int, float]) -> Interval:
    from robustkit.data.dataset import shuffled  # needs PyTorch; a record is read without it

    order = shuffled(list(values), record.seed)
    return confidence_sequence(np.array([values[point] for point in order], dtype=float))
