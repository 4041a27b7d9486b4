"""From below and from above: a certified radius and an adversarial distance for every point."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.certify.certifier import Certifier
from robustkit.core.attribution import blaming
from robustkit.evaluation.execute import certifier_of
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.watcher import Watcher
from robustkit.record import radii as kept
from robustkit.record.radii import Radii
from robustkit.record.record import Record

ROUNDS = 3  # a radius is then known to an eighth of a step of the grid


def bisect(
    settings: Settings,
    prepared: Prepared,
    records: Sequence[Record],
    folder: Path,
    watcher: Watcher,
) -> Radii | None:
    """Bracket every point of a grid that has ended; None for a model without a certificate.

    A proof at some radius holds at every smaller one. The records say between which eps of the grid
    the certificate stops holding; `ROUNDS` bisections narrow that step. No radius is tried at which
    an adversarial input is known. The state lies in `folder` after every bisection of all points:
    a run that was killed goes on there.

    Args:
        records: of all eps, the smallest first.

    Raises:
        RobustkitError: when the model fails, or the state cannot be written.
    """
    if not settings.certify or all(record.certify is None for record in records):
        return None
    found = _start(records)
    if (before := kept.read(folder)) is not None and before.run == found.run:
        found = before
    certifier = certifier_of(settings, prepared) if found.rounds < ROUNDS else None
    while certifier is not None and found.rounds < ROUNDS:
        found = _halve(found, certifier, settings, prepared, watcher)
        kept.write(found, folder)
    return found


def _start(records: Sequence[Record]) -> Radii:
    """Read from the records where the certificate holds, where it does not, and what breaks."""
    points = records[0].points
    size, row = len(points.index), {index: row for row, index in enumerate(points.index)}
    certified, beyond = np.zeros(size), np.full(size, inf)
    nearest = np.full(size, inf)
    evidence = hashlib.sha256()
    for record in records:
        evidence.update(record.model_dump_json().encode())
        columns = (record.points.index, record.points.status, record.points.distance)
        for index, status, distance in zip(*columns, strict=True):
            at = row[index]
            if status == "certified":
                certified[at] = max(certified[at], record.threat.eps)
                continue
            beyond[at] = min(beyond[at], record.threat.eps)
            if status != "robust":  # misclassified points have no distance, and need none
                nearest[at] = min(nearest[at], distance or 0.0)
    return Radii(
        run=evidence.hexdigest(),
        certificate=next(r.certify for r in records if r.certify is not None),
        index=points.index,
        label=points.label,
        certified=certified.tolist(),
        adversarial=_finite(nearest),
        open=_finite(beyond),
    )


def _finite(values: np.ndarray[Any, Any]) -> list[float | None]:
    return [None if value == inf else value for value in values.tolist()]


def _halve(
    found: Radii, certifier: Certifier, settings: Settings, prepared: Prepared, watcher: Watcher
) -> Radii:
    """Try the certificate in the middle between the radius that holds and the one that does not."""
    certified, beyond = list(found.certified), list(found.open)
    middles: dict[float, list[int]] = {}
    for at, (low, high, nearest) in enumerate(
        zip(certified, beyond, found.adversarial, strict=True)
    ):
        if high is None or nearest == 0.0:
            continue
        middle = (low + high) / 2
        if nearest is not None and middle >= nearest:
            beyond[at] = middle
        else:
            middles.setdefault(middle, []).append(at)
    total = sum(map(len, middles.values()))
    watcher.stage(f"certified radius {found.rounds + 1}/{ROUNDS}", total)
    done = 0
    for eps, rows in sorted(middles.items()):
        here = certifier.at(replace(settings.threat, eps=eps))
        holds = _prove(here, settings, prepared, [found.index[at] for at in rows])
        for at, proved in zip(rows, holds, strict=True):
            if proved:
                certified[at] = eps
            else:
                beyond[at] = eps
        done += len(rows)
        watcher.advance(done, sum(low > 0 for low in certified), len(certified))
    return found.model_copy(
        update={"certified": certified, "open": beyond, "rounds": found.rounds + 1}
    )


def _prove(
    certifier: Certifier, settings: Settings, prepared: Prepared, points: Sequence[int]
) -> list[bool]:
    holds: list[bool] = []
    for start in range(0, len(points), certifier.batch):
        x, y = prepared.data.fetch(points[start : start + certifier.batch])
        with blaming(settings.name):
            holds += certifier.prove(x.to(prepared.device), y.to(prepared.device)).tolist()
    return holds
