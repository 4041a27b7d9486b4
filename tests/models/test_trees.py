"""Decision trees and forests: what the search says against every input of a grid."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.core.threat import Norm, Threat
from robustkit.models.trees import forest_of

tree = pytest.importorskip("sklearn.tree")
ensemble = pytest.importorskip("sklearn.ensemble")

RANDOM = np.random.default_rng(0)
X = RANDOM.random((120, 3)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 1).astype(int) + (X[:, 2] > 0.7)


def nearest_values(estimators: list[Any], x: float, feature: int) -> list[np.float32]:
    """List x and, on either side of every threshold of a feature, the float32 number next to it."""
    found = {np.float32(x)}
    for one in estimators:
        inner = one.tree_
        for threshold in inner.threshold[inner.feature == feature]:
            near = np.float32(threshold)
            found |= {near, np.nextafter(near, np.float32(2)), np.nextafter(near, np.float32(-2))}
    return sorted(value for value in found if 0 <= value <= 1)


def breaks(model: Any, estimators: list[Any], x: NDArray[Any], y: int, threat: Threat) -> bool:
    """Ask the model about every combination of these values that the threat model contains.

    In every norm the nearest input of any box of leaves is one of them.
    """
    axes = [nearest_values(estimators, float(x[f]), f) for f in range(len(x))]
    grid = np.array(list(itertools.product(*axes)), dtype=np.float32)
    inside = threat.contains(
        torch.from_numpy(grid), torch.from_numpy(x)[None].expand(len(grid), -1)
    )
    return bool((model.predict(grid[inside.numpy()]) != y).any())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.1), ("l1", 0.12), ("l0", 1.0)])
@pytest.mark.parametrize(
    "model",
    [
        tree.DecisionTreeClassifier(random_state=0),
        tree.ExtraTreeClassifier(max_depth=5, random_state=1),
        ensemble.RandomForestClassifier(4, max_depth=3, random_state=0),
        ensemble.ExtraTreesClassifier(3, max_depth=3, random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_search_says_what_a_grid_says(model: Any, norm: Norm, eps: float) -> None:
    model.fit(X, Y)
    threat, estimators = Threat(norm, eps), list(getattr(model, "estimators_", [model]))
    found = forest_of(model)
    assert found is not None
    verdicts = set()
    for x, y in zip(X[:12], model.predict(X[:12]), strict=True):
        proved, z = found.search(x, int(y), threat)
        broken = breaks(model, estimators, x, int(y), threat)
        assert proved != broken
        if z is not None:
            assert model.predict(z[None])[0] != y
            assert threat.contains(torch.from_numpy(z[None]), torch.from_numpy(x[None]))[0]
        verdicts.add(proved)
    assert verdicts == {True, False} or norm == "l0"  # where one feature may break any


def test_thresholds_are_compared_in_float32() -> None:
    """A threshold between two float32 numbers: one side ends there exactly."""
    low = np.float32(4)  # scikit-learn takes values within 1e-7 for one
    high = np.nextafter(low, np.float32(5))
    model = tree.DecisionTreeClassifier().fit([[low], [high]], [0, 1])
    assert low < model.tree_.threshold[0] < high
    (leaves,) = forest_of(model).trees  # type: ignore[union-attr]
    boxes = sorted(leaf.box[0] for leaf in leaves)
    assert boxes == [(-np.inf, float(low)), (float(high), np.inf)]
    assert model.predict([[low], [high]]).tolist() == [0, 1]


def test_a_search_that_is_given_up_says_nothing() -> None:
    model = ensemble.RandomForestClassifier(10, random_state=0).fit(X, Y)
    found = forest_of(model)
    assert found is not None
    assert found.search(X[0], int(model.predict(X[:1])[0]), Threat("linf", 0.3), 3) == (False, None)


def test_ties_of_votes_are_those_of_scikit_learn() -> None:
    """Two stumps that disagree: equal shares, and the first class counts."""
    model = ensemble.RandomForestClassifier(2, max_depth=1, bootstrap=False, random_state=0)
    model.fit(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32), [0, 0, 1, 1])
    found = forest_of(model)
    assert found is not None
    for x in np.array([[0, 0], [1, 1]], dtype=np.float32):
        leaves = [next(leaf for leaf in one if all(lo <= x[f] <= hi for f, (lo, hi) in
                       leaf.box.items())) for one in found.trees]  # fmt: skip
        assert np.array_equal(found.scores(leaves), model.predict_proba(x[None])[0])


def test_other_models_have_no_leaves() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    assert forest_of(linear.LogisticRegression().fit(X, Y)) is None
    several = tree.DecisionTreeClassifier().fit(X, np.stack([Y, Y], 1))
    assert forest_of(several) is None
