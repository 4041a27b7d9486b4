"""Classifiers of arrays: of scikit-learn, by file, by name and as objects, without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import robustkit
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.load import load_model
from robustkit.models.scores import Scores, of_estimator, without_gradients
from robustkit.registry import attacks
from robustkit.search.suites import line_up

RANDOM = np.random.default_rng(0)
X = RANDOM.random((40, 3, 2, 2)).astype(np.float32)
ROWS = X.reshape(len(X), -1)
Y = (ROWS[:, 0] > 0.5).astype(int) + (ROWS[:, 11] > 0.7)
LINF = robustkit.Threat("linf", 0.05)


def images() -> Dataset:
    return from_arrays("boxes", X, Y, layout="nchw")


class Nearest:
    """The nearest of three corners, with the interface of scikit-learn."""

    classes_ = np.arange(3)
    n_features_in_ = 12

    def predict_proba(self, rows: Any) -> Any:
        """[n, 12] -> [n, 3]."""
        near = np.stack([-np.abs(rows - k / 2).sum(1) for k in range(3)], 1)
        odds = np.exp(near - near.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)


class Sided:
    """A binary classifier by one number."""

    classes_ = np.array([0, 2])

    def decision_function(self, rows: Any) -> Any:
        """[n, 12] -> [n]."""
        return rows[:, 0] - 0.5


def test_arrays_come_as_they_are_asked_for() -> None:
    x, seen = torch.from_numpy(X), list[Any]()

    def function(array: Any) -> Any:
        seen.append(array)
        return np.zeros((len(array), 3))

    for options in ({"layout": "images"}, {}, {"layout": "rows-nhwc", "scale": 255.0}):
        model = Scores(function, **options)
        answer = model(x)
        assert answer.dtype is torch.float64 and not answer.requires_grad
        rows = model.arrays(x)
        assert torch.allclose(model.images(rows, x) / model.scale, x)
    assert np.array_equal(seen[0], X) and np.array_equal(seen[1], ROWS)
    assert np.allclose(seen[2], X.transpose(0, 2, 3, 1).reshape(40, -1) * 255)


def test_columns_stand_where_their_labels_are() -> None:
    model = load_of(Sided())
    logits = model(torch.from_numpy(X))
    assert logits.argmax(1).tolist() == [2 * int(first > 0.5) for first in ROWS[:, 0]]


def load_of(value: Any) -> Scores:
    return of_estimator(value, (3, 2, 2), 3)


def test_an_object_is_attacked_by_scores_and_decisions(tmp_path: Path) -> None:
    record = robustkit.evaluate(
        Nearest(), images(), LINF, attacks=["square(queries=20)"], folder=tmp_path
    )
    assert record.defense == "Nearest" and 0 <= record.robust <= record.clean
    assert [flag.name for flag in record.flags if flag.name == "scores_only"] == ["scores_only"]
    assert not {"no_gradient", "huge_eps"} & {flag.name for flag in record.flags}


def test_suites_choose_attacks_without_gradients() -> None:
    model = load_of(Nearest())
    for suite in ("quick", "fast", "parity"):
        names = [spec.name for spec in line_up(suite, (), LINF, model).specs]
        assert names in (["square", "rays"], ["square"])
    l2 = robustkit.Threat("l2", 0.5)
    assert [spec.name for spec in line_up("scores", (), l2, model).specs] == [
        "square",
        "hopskipjump",
    ]
    with pytest.raises(UsageError, match=r"apgd follows gradients.*--suite scores"):
        line_up(None, ["apgd"], LINF, model)
    assert without_gradients(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_features_in_": 5}, r"fitted on 5 features, and the data has 12"),
        ({"classes_": np.arange(4)}, r"classes .*; expected labels of the data from 0 to 2"),
        ({"classes_": np.array(["b", "a", "c"])}, "expected labels of the data"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_of(type("Other", (Nearest,), changes)())


def test_an_answer_is_a_row_an_input() -> None:
    with pytest.raises(UsageError, match=r"expected scores \[40, k\] for an array \[40, 12\]"):
        Scores(lambda rows: rows.sum())(torch.from_numpy(X))


def test_a_function_is_named_by_call(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def scores(x):\n    return np.stack([x[:, c].mean((1, 2)) for c in range(3)], 1)\n"
        "class One:\n    def predict_proba(self, rows):\n        return rows[:, :3]\n"
        "one, nothing = One(), 3\n"
    )
    x: Tensor = torch.from_numpy(X)
    subject = load_model(f"call:{path}:scores", data=images())
    assert torch.allclose(subject.model(x).float(), x.mean((2, 3)))
    assert torch.equal(load_model(f"call:{path}:one", data=images()).model(x)[0].float(), x[0, 0].
                       flatten()[:3])  # fmt: skip
    for name, message in {
        "One": "expected a function of arrays.*got the class One",
        "nothing": "expected a function of arrays.*got int",
        "scores(layout=rows, scale=0)": "expected scale as a number",
        "scores(layout=columns)": "expected layout as one of images, rows, rows-nhwc",
        "scores(steps=3)": "has no option 'steps'",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_model(f"call:{path}:{name}", data=images())


def test_the_search_of_trees_is_for_trees(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match="searches decision trees and forests"):
        robustkit.evaluate(Nearest(), images(), LINF, attacks=["trees:nearest"], folder=tmp_path)
    for spec in ("trees:farthest", "trees:nearest(steps=3)"):
        with pytest.raises(UsageError, match="expected trees:nearest, which has no options"):
            attacks.build(spec).jobs(LINF, 3)


class TestScikitLearn:
    def test_a_tree_is_certified_exactly(self, tmp_path: Path) -> None:
        tree = pytest.importorskip("sklearn.tree")
        skops = pytest.importorskip("skops.io")
        model = tree.DecisionTreeClassifier(max_depth=4, random_state=0).fit(ROWS, Y)
        skops.dump(model, tmp_path / "tree.skops")
        record = robustkit.evaluate(
            f"sklearn:{tmp_path / 'tree.skops'}", images(), LINF, certify="quick",
            attacks=["trees:nearest"], folder=tmp_path / "run",
            trust_code=["sklearn.tree._tree.Tree"],  # skops trusts no compiled state
        )  # fmt: skip
        assert record.certified == record.robust and 0 < record.robust < record.clean == 1
        assert record.reliability == "reliable"

    def test_proofs_answer_that_there_is_no_gradient(self, tmp_path: Path) -> None:
        ensemble = pytest.importorskip("sklearn.ensemble")
        model = ensemble.RandomForestClassifier(3, max_depth=3, random_state=0).fit(ROWS, Y)
        closed, opened = (
            robustkit.evaluate(
                model, images(), LINF, attacks=["trees:nearest"], certify=certify,
                folder=tmp_path / str(certify),
            )
            for certify in ("trees", None)
        )  # fmt: skip
        assert closed.certified == closed.robust == opened.robust < closed.clean
        assert (closed.reliability, opened.reliability) == ("reliable", "suspicious")

    def test_types_are_named_before_they_are_made(self, tmp_path: Path) -> None:
        skops = pytest.importorskip("skops.io")
        linear = pytest.importorskip("sklearn.linear_model")
        pipeline = pytest.importorskip("sklearn.pipeline")
        steps = pytest.importorskip("sklearn.preprocessing")
        step = steps.FunctionTransformer(np.testing.suppress_warnings)
        model = pipeline.make_pipeline(step, linear.LogisticRegression())
        skops.dump(model, path := tmp_path / "odd.skops")
        with pytest.raises(UsageError, match=r"could run code: .*--trust .*suppress_warnings"):
            load_model(f"sklearn:{path}", data=images())

    def test_files_that_hold_no_classifier_are_refused(self, tmp_path: Path) -> None:
        skops = pytest.importorskip("skops.io")
        skops.dump([1, 2], path := tmp_path / "list.skops")
        for text, message in {
            f"sklearn:{path}": "holds a list; expected a fitted classifier",
            "sklearn:absent.skops": "there is no file absent.skops",
            f"sklearn:{__file__}": "pickles are not read",
        }.items():
            with pytest.raises(UsageError, match=message):
                load_model(text, data=images())
