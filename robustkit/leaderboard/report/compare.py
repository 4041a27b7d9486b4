"""What the page needs to compare models point by point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robustkit.leaderboard.report.view import Group, Line, class_name

_LETTERS = {"certified": "c", "robust": "r", "broken": "b", "misclassified": "m"}


def verdicts(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the points that models share, and a letter for the verdict of each model on each.

    `sets` holds one entry per set of points: position in the data set, label, and names of the
    classes. `models` maps the id of a model to its set, its letters (certified, robust, broken,
    misclassified) in that order, and its label.
    """
    sets: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    for line in (line for group in groups for line in group.lines):
        record = line.record
        order = sorted(range(record.n), key=record.points.index.__getitem__)
        digest = record.data.digest
        if digest not in sets:
            sets[digest] = _points(line, order)
        status = record.points.status
        letters = "".join(_LETTERS[status[at]] for at in order)
        models[line.id] = [list(sets).index(digest), letters, line.label]
    return {"sets": list(sets.values()), "models": models}


def _points(line: Line, order: Sequence[int]) -> dict[str, Any]:
    points = line.record.points
    labels = [points.label[at] for at in order]
    names = {label: class_name(line.record, label) for label in sorted(set(labels))}
    return {"index": [points.index[at] for at in order], "label": labels, "names": names}
