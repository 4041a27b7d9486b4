"""The recorded answers to variants, asked again: a sample of points, every variant of each."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch

from robustkit.core.finite import FiniteThreat
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.record.record import Record
from robustkit.verify.candidates import predict

_SHARE = 20  # a twentieth of the points


class Differing(NamedTuple):
    """What was asked again, and the points at which an answer is not the recorded one."""

    asked: int
    points: tuple[int, ...]


def differing_variants(
    record: Record,
    threat: FiniteThreat,
    model: Model,
    data: Dataset,
    device: torch.device,
    seed: int,
) -> Differing:
    """Make all variants of a seeded sample of points anew, misclassified ones too, and ask.

    Args:
        model: deterministic.
    """
    signs = dict(zip(record.points.index, record.points.variants or (), strict=False))
    if not signs:
        return Differing(0, ())
    count = max(1, len(signs) // _SHARE)
    points = sorted(random.Random(seed).sample(sorted(signs), count))
    x, y = data.fetch(points)
    wrong = set[int]()
    for job, variant in enumerate(threat.variants):
        made = threat.images(x, points, variant).to(device)
        right = predict(model, made, 1, threat.criterion.at(y.to(device))).predicted.cpu() == y
        told = [signs[point][job] == "1" for point in points]
        wrong |= {p for p, a, b in zip(points, right.tolist(), told, strict=True) if a != b}
    return Differing(count * len(threat.variants), tuple(sorted(wrong)))
