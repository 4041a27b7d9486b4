"""Security curves: robust accuracy over eps, and how far the nearest adversarial inputs lie.

A run over several eps leaves one record per eps, each of them a point of the curve. A minimum-norm
run leaves one record with a distance for every point, which is the whole curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.text import posix
from robustkit.errors import UsageError
from robustkit.record.interval import robust_interval
from robustkit.record.record import Record

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


class CurvePoint(NamedTuple):
    """One point of a security curve. Accuracies are fractions of all n points.

    `carried`: points whose verdict was reached at a larger eps. `forwards_per_point`: passes that
    this eps added; empty in the curve of a minimum-norm run.
    """

    defense: str
    data: str
    norm: str
    eps: float
    n: int
    clean: float
    robust: float
    robust_low: float
    robust_high: float
    certified: float | None
    carried: int | None
    forwards_per_point: float | None
    suite: str | None
    seed: int
    record: str


class Distances(NamedTuple):
    """How far the nearest adversarial inputs lie that a minimum-norm run found.

    A quantile q is the distance within which the share q of all n points is misclassified:
    misclassified points count as 0, points without an adversarial input as infinitely far (None).
    The security curve crosses 1 − q there. `mean` is over the points that have one. `robust` is
    the robust accuracy at `eps`, the one of the run's threat model.
    """

    defense: str
    data: str
    norm: str
    eps: float
    n: int
    clean: float
    robust: float
    found: int
    mean: float | None
    q10: float | None
    q25: float | None
    median: float | None
    q75: float | None
    q90: float | None
    forwards_per_point: float
    suite: str | None
    seed: int
    record: str


def curve(records: Iterable[tuple[Path | str, Record]]) -> pd.DataFrame:
    """Return the curves of records and their paths, eps rising; columns as in `CurvePoint`.

    A record with distances gives a point at every distance, from the clean accuracy at 0 down.
    """
    points = [point for path, record in records for point in _curve_points(record, posix(path))]
    points.sort(key=lambda point: (point.data, point.norm, point.defense, point.eps, point.record))
    return pd.DataFrame(points, columns=list(CurvePoint._fields), dtype=object)


def distances(records: Iterable[tuple[Path | str, Record]]) -> pd.DataFrame:
    """Return one row per minimum-norm record; columns as in `Distances`.

    Raises:
        UsageError: for a record without distances.
    """
    rows = [_distances(record, posix(path)) for path, record in records]
    rows.sort(key=lambda row: (row.data, row.norm, row.defense, row.seed, row.record))
    return pd.DataFrame(rows, columns=list(Distances._fields), dtype=object)


def quantile(record: Record, share: float) -> float | None:
    """Return the distance within which `share` of the points is misclassified; None: nowhere.

    The smallest such distance: the ⌈share · n⌉-th of all in order.
    """
    lengths = _lengths(record)
    at = lengths[max(1, math.ceil(share * len(lengths) - 1e-9)) - 1]
    return at if math.isfinite(at) else None


def _lengths(record: Record) -> list[float]:
    """The distances of all points in order: 0 where misclassified, infinite where none is known."""
    points = record.points
    if points.nearest is None:
        raise UsageError(
            f"the record of {record.defense} at {record.threat.norm} {record.threat.eps:.6g} holds "
            "no distances: it is of a run without --minimum-norm."
        )
    pairs = zip(points.status, points.nearest, strict=True)
    return sorted(
        0.0 if status == "misclassified" else math.inf if length is None else length
        for status, length in pairs
    )


def _distances(record: Record, path: str) -> Distances:
    finite = [length for length in _lengths(record) if 0 < length < math.inf]
    q10, q25, median, q75, q90 = (quantile(record, share) for share in QUANTILES)
    return Distances(
        defense=record.defense,
        data=record.data.name,
        norm=record.threat.kind,
        eps=record.threat.eps,
        n=record.n,
        clean=record.clean,
        robust=record.robust,
        found=len(finite),
        mean=math.fsum(finite) / len(finite) if finite else None,
        q10=q10,
        q25=q25,
        median=median,
        q75=q75,
        q90=q90,
        forwards_per_point=record.forwards_per_point,
        suite=record.suite,
        seed=record.seed,
        record=path,
    )


def _curve_points(record: Record, path: str) -> list[CurvePoint]:
    if record.points.nearest is None:
        carried = sum(eps is not None for eps in record.points.carried or ())
        return [
            _curve_point(record, path, record.threat.eps, sum(record.outcomes.values()), carried)
        ]
    lengths = _lengths(record)
    radii = sorted({0.0, *(length for length in lengths if math.isfinite(length))})
    beyond = _beyond(lengths, radii)
    return [_curve_point(record, path, *point, None) for point in zip(radii, beyond, strict=True)]


def _beyond(lengths: Sequence[float], radii: Sequence[float]) -> list[int]:
    """Count for every radius the lengths that exceed it; both are in order."""
    counts, passed = [], 0
    for radius in radii:
        while passed < len(lengths) and lengths[passed] <= radius:
            passed += 1
        counts.append(len(lengths) - passed)
    return counts


def _curve_point(
    record: Record, path: str, eps: float, robust: int, carried: int | None
) -> CurvePoint:
    own = carried is not None  # the record is of this eps alone
    # A minimum-norm run, whose radii these are else, cannot end early: its n was fixed beforehand.
    interval = robust_interval(record) if own else clopper_pearson(robust, record.n)
    return CurvePoint(
        defense=record.defense,
        data=record.data.name,
        norm=record.threat.kind,
        eps=eps,
        n=record.n,
        clean=record.clean,
        robust=robust / record.n,
        robust_low=round(interval.low, 6),
        robust_high=round(interval.high, 6),
        certified=record.certified if own else None,
        carried=carried,
        forwards_per_point=record.forwards_per_point if own else None,
        suite=record.suite,
        seed=record.seed,
        record=path,
    )
