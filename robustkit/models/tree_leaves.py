"""The leaves of trees, forests, gradient boosting and pipelines of scikit-learn, as boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import UsageError
from robustkit.models.rescaling import Rows, ends_before, rescaling_of
from robustkit.models.trees import Box, Forest, Leaf

_SINGLE = ("DecisionTreeClassifier", "ExtraTreeClassifier")
_FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier")
_BOOSTING = "GradientBoostingClassifier"
_PART, _LOOKS = 256, 8
_ALIKE = 1e-12  # relative: of the start of boosting, worked out at several inputs


def forest_of(estimator: Any, scale: float = 1.0) -> Forest | None:
    """Return the trees of a fitted classifier of scikit-learn; None of other kinds.

    Trees behind scalers of a pipeline, and behind `scale`, are read as trees of the inputs before.

    Args:
        scale: what inputs are multiplied by, in float32, before the classifier gets them.

    Raises:
        UsageError: when inputs inside a leaf's box do not end in it, as in a version of
            scikit-learn that compares otherwise.
    """
    if not type(estimator).__module__.startswith("sklearn."):
        return None
    last, before = rescaling_of(estimator, scale)
    forest = None if last is None else _trees(last)
    if forest is None or before is None:
        return forest
    return moved(forest, before, last.n_features_in_)


def _trees(estimator: Any) -> Forest | None:
    kind = type(estimator).__name__
    if kind == _BOOSTING:
        return _boosted(estimator)
    if getattr(estimator, "n_outputs_", 0) != 1:
        return None
    if kind in _SINGLE:
        return Forest((_leaves(estimator, estimator.predict_proba),))
    if kind in _FORESTS:
        trees = estimator.estimators_
        return Forest(tuple(_leaves(tree, tree.predict_proba) for tree in trees))
    return None


def _boosted(estimator: Any) -> Forest | None:
    """Return stages [n, k] of regression trees; two classes have one column, that of the second.

    What they add to does not depend on the input, unless it is an estimator of its own.
    """
    if estimator.init not in (None, "zero"):
        return None
    stages = estimator.estimators_
    columns = stages.shape[1]
    first, classes = (1, 2) if columns == 1 else (0, columns)

    def answer(tree: Any, place: int) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
        def scores(rows: NDArray[np.float32]) -> NDArray[np.float64]:
            found = np.zeros((len(rows), classes))
            found[:, place] = estimator.learning_rate * tree.predict(rows)
            return found

        return scores

    answers = [
        (tree, answer(tree, first + column)) for row in stages for column, tree in enumerate(row)
    ]
    looks = np.random.default_rng(0).random((_LOOKS, estimator.n_features_in_)).astype(np.float32)
    whole = np.zeros((_LOOKS, classes))
    whole[:, first:] = estimator.decision_function(looks).reshape(_LOOKS, -1)
    parts = [scores(looks) for _, scores in answers]
    starts = whole - sum(parts)
    most = 1 + np.abs(whole).max() + sum(np.abs(part).max() for part in parts)
    if np.ptp(starts, axis=0).max() > _ALIKE * most:
        raise _unknown(estimator, "expected scores to be a start and the sum of the trees")
    return Forest(tuple(_leaves(tree, scores) for tree, scores in answers), starts[0])


def _leaves(estimator: Any, answer: Callable[[NDArray[np.float32]], Any]) -> tuple[Leaf, ...]:
    tree = estimator.tree_
    boxes = dict(_boxes(tree))
    places, found = list(boxes), list[Leaf]()
    for start in range(0, len(places), _PART):
        part = places[start : start + _PART]
        inside = np.full((len(part), estimator.n_features_in_), 0.5, dtype=np.float32)
        for row, place in enumerate(part):
            for feature, (low, high) in boxes[place].items():
                inside[row, feature] = min(max(0.5, low), high)
        if not (estimator.apply(inside) == np.array(part)).all():
            raise _unknown(
                estimator,
                "expected inputs with x <= threshold in float32 to go left, got a leaf of another "
                "side",
            )
        scores = np.asarray(answer(inside), dtype=np.float64)
        found += [Leaf(boxes[place], row) for place, row in zip(part, scores, strict=True)]
    return tuple(found)


def _unknown(estimator: Any, what: str) -> UsageError:
    return UsageError(
        f"{type(estimator).__name__}: {what}. This version of scikit-learn is not known: name the "
        "model by call:path/to/file.py:attr, without certificate."
    )


def _boxes(tree: Any) -> Iterator[tuple[int, Box]]:
    """Yield the number and the box of every leaf that a float32 input can reach."""
    left, right = tree.children_left, tree.children_right
    stack: list[tuple[int, Box]] = [(0, {})]
    while stack:
        node, box = stack.pop()
        if left[node] == right[node]:
            yield node, box
            continue
        feature, split = int(tree.feature[node]), _floor(float(tree.threshold[node]))
        low, high = box.get(feature, (-np.inf, np.inf))
        above = float(np.nextafter(np.float32(split), np.float32(np.inf)))
        if above <= high:
            stack.append((int(right[node]), {**box, feature: (max(low, above), high)}))
        if low <= split:
            stack.append((int(left[node]), {**box, feature: (low, min(high, split))}))


def _floor(threshold: float) -> float:
    """Return the largest float32 number that is not above a threshold."""
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))


def _below(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))


def moved(forest: Forest, before: Rows, features: int) -> Forest:
    """Return the same trees with boxes of the inputs from which `before` makes those of trees."""
    leaves = [leaf for tree in forest.trees for leaf in tree]
    ends: list[set[float]] = [set() for _ in range(features)]
    for leaf in leaves:
        for feature, (low, high) in leaf.box.items():
            ends[feature] |= {_below(low), high}
    last = ends_before(before, [sorted(e for e in some if np.isfinite(e)) for some in ends])

    def box(leaf: Leaf) -> Box:
        found: Box = {}
        for feature, (low, high) in leaf.box.items():
            under = last[feature].get(_below(low), low)
            above = float(np.nextafter(np.float32(under), np.float32(np.inf)))
            found[feature] = (under if under == -np.inf else above, last[feature].get(high, high))
        return found

    def reached(tree: Sequence[Leaf]) -> tuple[Leaf, ...]:
        moved = (Leaf(box(leaf), leaf.scores) for leaf in tree)
        return tuple(
            leaf for leaf in moved
            if all(low <= high and low < np.inf and high > -np.inf for low, high in
                   leaf.box.values())
        )  # fmt: skip

    return Forest(tuple(map(reached, forest.trees)), forest.start)
