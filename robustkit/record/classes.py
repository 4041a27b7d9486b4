"""Robust accuracy by class, and the classes that come off worst."""

from __future__ import annotations

from collections import Counter

from robustkit.record.points import ROBUST, Points
from robustkit.record.schema import ClassAccuracy


def robust_by_class(points: Points) -> dict[int, float]:
    """Return the robust accuracy of each class that has points, by label."""
    pairs = Counter(zip(points.label, points.status, strict=True))
    size, robust = Counter[int](), Counter[int]()
    for (label, status), count in pairs.items():
        size[label] += count
        robust[label] += count if status in ROBUST else 0
    return {label: robust[label] / size[label] for label in sorted(size)}


def lowest(accuracy: dict[int, float]) -> list[ClassAccuracy]:
    """Return the ⌈30%⌉ of the classes with the lowest accuracy, worst first."""
    classes = [ClassAccuracy(*pair) for pair in accuracy.items()]
    keep = -(-3 * len(classes) // 10)
    return sorted(classes, key=lambda c: (c.accuracy, c.label))[:keep]
