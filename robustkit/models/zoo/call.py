"""Functions of arrays: `call:module:function`, scores without gradients, of any library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, get_args

from robustkit.core.imports import load_attribute
from robustkit.core.process_state import kept
from robustkit.errors import UsageError
from robustkit.models.scores import Layout, Scores, has_scores, of_estimator
from robustkit.models.zoo.base import Ask, Found


def load(ask: Ask) -> Found:
    """Name `module:attr` or `path/to/file.py:attr`: a function of float32 arrays, or a classifier.

    A function takes images [n, c, h, w] in [0, 1] and returns scores [n, k], of which the largest
    decides; a classifier is an object with `predict_proba`, or `decision_function`, of rows. Rows
    must not depend on each other. The code named runs, as any Python file that is run. Options:
    `layout=images`, `layout=rows` [n, c·h·w] or `layout='rows-nhwc'`; `scale=255`.

    Raises:
        UsageError: when there is no such attribute, or it is neither.
    """
    ask.refuse_weights()
    layout, scale, ask = arrays(ask)
    ask.refuse_options()
    with kept():
        value = load_attribute(ask.name)
    path = Path(ask.name.rpartition(":")[0]).expanduser()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ask.name
    notes = ("scores of a function of arrays: attacked without gradients",)
    if has_scores(value):
        model = of_estimator(
            value, ask.shape, ask.classes, ask.class_names, layout=layout or "rows", scale=scale,
            content=content,
        )  # fmt: skip
        return Found(model, notes, prepared=True)
    if not callable(value) or isinstance(value, type):
        raise UsageError(
            f"{ask.text}: expected a function of arrays [n, c, h, w] that returns scores [n, k], "
            f"or an object with predict_proba, got {_kind(value)}. Name a function that calls it."
        )
    model = Scores(value, layout=layout or "images", scale=scale, content=content)
    return Found(model, notes, prepared=True)


def arrays(ask: Ask) -> tuple[Any, float, Ask]:
    """Take the options `layout` and `scale` out of a request; the layout is None by default.

    Raises:
        UsageError: for another layout, and a scale that is no positive number.
    """
    layout, ask = ask.option("layout", str)
    if layout not in (None, *get_args(Layout)):
        listed = ", ".join(get_args(Layout))
        raise UsageError(f"{ask.text}: expected layout as one of {listed}, got {layout!r}.")
    scale = ask.options.get("scale", 1)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not scale > 0:
        raise UsageError(f"{ask.text}: expected scale as a number such as 255, got {scale!r}.")
    rest = {key: value for key, value in ask.options.items() if key != "scale"}
    return layout, float(scale), ask._replace(options=rest)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
