"""Decision trees and forests: what the search says against every input of a grid."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.core.threat import Norm, Threat
from robustkit.data.arrays import from_arrays
from robustkit.models.normalization import in_units
from robustkit.models.scores import of_estimator
from robustkit.models.tree_leaves import forest_of

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


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.1), ("l0", 1.0)])
@pytest.mark.parametrize("kind", ["boosting", "boosting-3", "standard", "min-max", "bytes"])
def test_boosting_and_trees_behind_scalers_say_what_a_grid_says(
    kind: str, norm: Norm, eps: float
) -> None:
    """Values next to every end of a box, asked of the model itself."""
    steps = pytest.importorskip("sklearn.preprocessing")
    make_pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline
    boosting, y = ensemble.GradientBoostingClassifier, np.minimum(Y, 1)
    deep = tree.DecisionTreeClassifier(random_state=0)
    model = {
        "boosting": lambda: boosting(n_estimators=4, max_depth=2, learning_rate=0.5),
        "boosting-3": lambda: boosting(n_estimators=2, max_depth=2, learning_rate=0.9),
        "standard": lambda: make_pipeline(steps.StandardScaler(), deep),
        "min-max": lambda: make_pipeline("passthrough", steps.MinMaxScaler((-3, 1)), deep),
        "bytes": lambda: deep,
    }[kind]()
    scale = 255.0 if kind == "bytes" else 1.0
    model.fit(X * np.float32(scale), Y if kind != "boosting" else y)
    found, threat, verdicts = forest_of(model, scale), Threat(norm, eps), set()
    assert found is not None
    decided = model.predict(X[:8] * np.float32(scale))
    for x, label in zip(X[:8], decided, strict=True):
        axes = []
        for f in range(3):
            ends = {end for one in found.trees for leaf in one for end in leaf.box.get(f, ())}
            near = [np.float32(end) for end in ends if np.isfinite(end)]
            around = {np.nextafter(end, np.float32(side)) for end in near for side in (-9, 9)}
            axes.append([v for v in {np.float32(x[f]), *near, *around} if 0 <= v <= 1])
        grid = np.array(list(itertools.product(*axes)), dtype=np.float32)
        inside = threat.contains(
            torch.from_numpy(grid), torch.from_numpy(x)[None].expand(len(grid), -1)
        )
        broken = (model.predict(grid[inside.numpy()] * np.float32(scale)) != label).any()
        proved, z = found.search(x, int(label), threat, 100_000)
        assert proved == (not broken)
        if z is not None:
            assert model.predict(z[None] * np.float32(scale))[0] != label
        verdicts.add(proved)
    assert verdicts == {True, False} or norm == "l0"


def test_the_ends_of_boxes_behind_a_scaler_are_exact() -> None:
    """The largest float32 number that the pipeline sends left, and the next one."""
    steps = pytest.importorskip("sklearn.preprocessing")
    pipeline = pytest.importorskip("sklearn.pipeline")
    model = pipeline.make_pipeline(
        steps.StandardScaler(), tree.DecisionTreeClassifier(max_depth=1, random_state=0)
    ).fit(X, np.minimum(Y, 1))
    (leaves,) = forest_of(model).trees  # type: ignore[union-attr]
    ((feature, _),) = leaves[0].box.items()
    (low, left), (right, high) = sorted(leaf.box[feature] for leaf in leaves)
    assert (low, high) == (-np.inf, np.inf)
    assert right == np.nextafter(np.float32(left), np.float32(1))
    ends = np.repeat(X[:1], 2, axis=0)
    ends[:, feature] = left, right
    leaf = model[-1].apply(model[:-1].transform(ends))
    assert leaf[0] != leaf[1]


def test_boosting_from_an_estimator_has_no_leaves_and_many_trees_are_bounded() -> None:
    own = tree.DecisionTreeClassifier(max_depth=1)
    boosting, y = ensemble.GradientBoostingClassifier, np.minimum(Y, 1)
    assert forest_of(boosting(n_estimators=2, init=own).fit(X, y)) is None
    model = boosting(n_estimators=600, max_depth=1).fit(X, y)
    found = forest_of(model)
    assert found is not None
    label = int(model.predict(X[:1])[0])
    assert found.search(X[0], label, Threat("linf", 1e-4)) == (True, None)
    assert found.search(X[0], label, Threat("linf", 0.9)) == (False, None)


def test_trees_of_tables_are_searched_in_the_units_of_the_table() -> None:
    lower, upper = np.array([-3.0, 10.0, 0.0]), np.array([5.0, 1000.0, 1.0])
    rows = lower + X * (upper - lower)
    fitted = tree.DecisionTreeClassifier(random_state=0).fit(rows, Y)
    data = from_arrays("table", rows, Y, lower=lower, upper=upper)
    x, y = data.fetch(range(40))
    scores, threat = in_units(of_estimator(fitted, (3,), 3), data), Threat("linf", 0.03)
    near = (x[:, None] + (torch.rand(40, 500, 3) * 2 - 1) * 0.03).clamp(0, 1)
    safe = scores(near.flatten(0, 1)).argmax(1).view(40, 500).eq(y[:, None]).all(1)
    proofs = []
    for (proved, z), point, label, held in zip(
        scores.searched(x, y, threat), x, y, safe, strict=True
    ):
        proofs.append(proved)
        assert held or not proved
        if not proved:
            assert z is not None
            assert threat.contains(z[None], point[None]) and scores(z[None]).argmax() != label
    assert 5 < sum(proofs) < 35
