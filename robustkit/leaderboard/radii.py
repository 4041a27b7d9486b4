"""The bracket of every point: the radius within which it is proved, the distance that breaks it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from robustkit.record.radii import Radii
from robustkit.record.record import Record


class RadiiRow(NamedTuple):
    """One point of one model. The true radius lies in [certified_radius, adversarial_distance].

    `certified_radius` 0: nothing is proved. `adversarial_distance` 0: misclassified as it is;
    empty: no adversarial input was found up to `largest_eps`.
    """

    defense: str
    data: str
    norm: str
    certificate: str
    seed: int
    point: int
    label: int
    certified_radius: float
    adversarial_distance: float | None
    largest_eps: float


def radii(found: Iterable[tuple[Record, Radii]]) -> pd.DataFrame:
    """Return one row per point of every pair of radii and the record of the largest eps."""
    rows = [
        RadiiRow(
            defense=record.defense,
            data=record.data.name,
            norm=record.threat.kind,
            certificate=of.certificate,
            seed=record.seed,
            point=index,
            label=label,
            certified_radius=low,
            adversarial_distance=high,
            largest_eps=record.threat.eps,
        )
        for record, of in found
        for index, label, low, high in zip(
            of.index, of.label, of.certified, of.adversarial, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=list(RadiiRow._fields), dtype=object)
