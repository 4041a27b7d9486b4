"""Classifiers of arrays, as those of scikit-learn: scores without gradients, rows by themselves."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core import arguments
from robustkit.core.types import Shape
from robustkit.errors import UsageError, unknown
from robustkit.models.surrogates.resolve import plain
from robustkit.models.tree_leaves import forest_of, moved
from robustkit.models.trees import Forest

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

Layout: TypeAlias = Literal["images", "rows", "rows-nhwc"]


class Probabilistic(Protocol):
    """A fitted classifier of rows, as those of scikit-learn; one may have `decision_function`."""

    def predict_proba(self, rows: Any, /) -> Any:
        """[n, d] -> [n, k]."""
        ...


Function: TypeAlias = Callable[[NDArray[np.float32]], Any]


class Scores(nn.Module):
    """A function of arrays [n, ...] -> scores [n, k], as a module [b, c, h, w] -> [b, k] float64.

    Scores keep their precision and are not turned into logits: the largest decides, as with
    `predict`. One number z an input, as of a binary `decision_function`, is read as [0, z]. There
    is no gradient: attacks by scores and by decisions apply.

    Args:
        function: of float32 arrays, in [0, 1] times `scale`.
        layout: of what it gets: "images" [n, c, h, w], "rows" [n, c·h·w], or "rows-nhwc", with the
            channels last.
        labels: of its columns, ascending; nothing: 0 to k − 1.
        forest: the trees that the scores are of, where they are known; they read inputs before
            `scale`.
        content: digest of all that answers depend on, as weights are of others.
    """

    content: Tensor

    def __init__(
        self,
        function: Function,
        *,
        layout: Layout = "rows",
        scale: float = 1.0,
        labels: Sequence[int] = (),
        forest: Forest | None = None,
        content: str = "",
    ) -> None:
        super().__init__()
        if layout not in get_args(Layout):
            raise unknown("layout", str(layout), get_args(Layout))
        self.function, self.layout, self.scale, self.forest = function, layout, scale, forest
        self.labels = tuple(labels)
        self.register_buffer("content", torch.tensor(list(content.encode()), dtype=torch.uint8))
        self.eval()

    def arrays(self, x: Tensor) -> NDArray[np.float32]:
        """Return images [b, c, h, w] as the function gets them."""
        return self._laid_out(x.detach().cpu().float() * self.scale)

    def _laid_out(self, x: Tensor) -> NDArray[np.float32]:
        if self.layout == "rows-nhwc":
            x = x.permute(0, 2, 3, 1)
        return np.ascontiguousarray((x if self.layout == "images" else x.flatten(1)).numpy())

    def images(self, rows: NDArray[np.float32], like: Tensor) -> Tensor:
        """Return rows as images of the shape of `like` [b, c, h, w]."""
        made = torch.from_numpy(rows)
        if self.layout == "rows-nhwc":
            c, h, w = like.shape[1:]
            made = made.view(len(rows), h, w, c).permute(0, 3, 1, 2)
        return made.reshape(len(rows), *like.shape[1:]).to(like)

    def behind(self, layer: nn.Module, shape: Shape) -> Scores:
        """Return the same scores of layer(x), which increases with each feature alone.

        Trees stay known: their boxes become those of the inputs of `layer`.

        Args:
            shape: of one input.
        """
        like = torch.zeros(1, *shape)

        def before(rows: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._laid_out(layer.to("cpu")(self.images(rows, like)))

        made = Scores(
            lambda rows: self.function((torch.from_numpy(before(rows)) * self.scale).numpy()),
            layout=self.layout,
            labels=self.labels,
            forest=self.forest and moved(self.forest, before, math.prod(shape)),
        )
        made.content, made.layer = self.content, layer
        return made

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> scores [b, k], float64.

        Raises:
            UsageError: for an answer that is not one row of numbers an input.
        """
        given = self.arrays(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # arrays lack the names of columns
            answer = self.function(given)
        try:
            found = np.array(answer, dtype=np.float64)
        except (TypeError, ValueError):
            found = np.empty(())
        if found.shape in ((len(given),), (len(given), 1)):
            found = np.stack([np.zeros(len(given)), found.reshape(-1)], 1)
        if found.ndim != 2 or len(found) != len(given):
            raise UsageError(
                f"expected scores [{len(given)}, k] for an array {list(given.shape)}, one row an "
                f"input, got {arguments.shown(answer)}."
            )
        return torch.from_numpy(self._by_label(found)).to(x.device)

    def _by_label(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put columns where their labels are; those without one are never the largest."""
        if not self.labels or self.labels == tuple(range(found.shape[1])):
            return found
        low = found.min(axis=1, keepdims=True) - 1
        whole = np.repeat(low, self.labels[-1] + 1, axis=1)
        whole[:, self.labels] = found
        return whole

    @property
    def attacks(self) -> tuple[str, ...]:
        """Specs of attacks that are exact for the model, ahead of those of a suite."""
        return ("trees:nearest",) if self.forest is not None else ()

    def certificates(self) -> dict[str, Any]:
        """Declare the certificate of decision trees, where the scores are theirs."""
        return {} if self.forest is None else {"trees": self._proved}

    def _proved(self, x: Tensor, y: Tensor, threat: Any) -> Tensor:
        return torch.tensor([proved for proved, _ in self.searched(x, y, threat)], device=x.device)

    def searched(self, x: Tensor, y: Tensor, threat: Any) -> list[tuple[bool, Tensor | None]]:
        """Return of each point whether its label is proved, and an input that breaks it.

        Neither is found where the search was given up.
        """
        assert self.forest is not None
        columns = {label: place for place, label in enumerate(self.labels)}
        rows = self._laid_out(x.detach().cpu().float())
        found: list[tuple[bool, Tensor | None]] = []
        for row, point, label in zip(rows, x, y.tolist(), strict=True):
            column = columns.get(label, -1) if columns else label
            proved, z = self.forest.search(row, column, threat)
            image = None if z is None else self.images(z[None], point[None])[0]
            found.append((proved, image))
        return found


def without_gradients(model: Any) -> Scores | None:
    """Return the part of a model that has scores and no gradients; None of most models."""
    bare = plain(model)
    parts = bare.modules() if isinstance(bare, nn.Module) else iter(())
    return next((part for part in parts if isinstance(part, Scores)), None)


def has_scores(value: Any) -> bool:
    """Whether `value` is a fitted classifier of arrays: an object with `predict_proba` or so."""
    named = any(callable(getattr(value, name, None)) for name in _METHODS)
    return named and not isinstance(value, type | nn.Module)


_METHODS = ("predict_proba", "decision_function")


def of_estimator(
    estimator: Any,
    shape: Shape,
    classes: int,
    class_names: Sequence[str] = (),
    *,
    layout: Layout = "rows",
    scale: float = 1.0,
    content: str = "",
) -> Scores:
    """Make a module of a classifier with `predict_proba`, else `decision_function`; it is copied.

    It runs on one thread: sums of forests would depend on the order in which threads end.

    Args:
        shape: of one input.
        class_names: of the data, for a classifier whose classes are texts.
        content: digest of all that its answers depend on.

    Raises:
        UsageError: when it takes another number of features, or knows other classes.
    """
    estimator, kind = copy.deepcopy(estimator), type(estimator).__name__
    if hasattr(estimator, "get_params") and hasattr(estimator, "set_params"):
        jobs = [key for key in estimator.get_params() if key.split("__")[-1] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(jobs))
    wanted, given = getattr(estimator, "n_features_in_", None), math.prod(shape)
    if wanted is not None and wanted != given and layout != "images":
        raise UsageError(
            f"{kind} was fitted on {wanted} features, and the data has {given}: images "
            f"{list(shape)} as rows. Name the data that it was fitted on."
        )
    method = next(name for name in _METHODS if callable(getattr(estimator, name, None)))
    labels = _labels(estimator, kind, classes, class_names)
    return Scores(
        getattr(estimator, method), layout=layout, scale=scale, labels=labels,
        forest=forest_of(estimator, scale), content=content,
    )  # fmt: skip


def _labels(estimator: Any, kind: str, classes: int, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of the columns, ascending: of equal scores the first column counts."""
    known = getattr(estimator, "classes_", None)
    if known is None:
        return ()
    try:
        array = np.asarray(known)
        numbers = np.issubdtype(array.dtype, np.integer)
        listed = [int(c) if numbers else list(class_names).index(str(c)) for c in array]
    except (TypeError, ValueError):
        listed = []
    if not listed or listed != sorted(set(listed)) or listed[0] < 0 or listed[-1] >= classes:
        raise UsageError(
            f"{kind} knows the classes {arguments.shown(known)}; expected labels of the data from "
            f"0 to {classes - 1}, ascending, or names of its classes in their order. Fit it on "
            "the labels."
        )
    return tuple(listed)
