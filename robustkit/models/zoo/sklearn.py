"""scikit-learn: `sklearn:FILE`, a fitted classifier saved by skops, which needs no pickle."""

from __future__ import annotations

import hashlib
from typing import Any

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.scores import has_scores, of_estimator
from robustkit.models.trust import untrusted_types
from robustkit.models.zoo.base import Ask, Found, building
from robustkit.models.zoo.call import arrays


def load(ask: Ask) -> Found:
    """Load a classifier saved by `skops.io.dump`: it takes rows [n, c·h·w] in [0, 1].

    Types that skops does not know are named and refused, unless each is trusted: `--trust TYPE`.
    Options: `layout='rows-nhwc'` where channels come last; `scale=255` if it was fitted on bytes.

    Raises:
        UsageError: when skops is absent, the file is missing or holds no classifier for this data,
            or types that are not trusted.
    """
    ask.refuse_weights()
    layout, scale, ask = arrays(ask)
    ask.refuse_options()
    path = ask.file()
    skops: Any = library("skops.io", "sklearn")
    with building(ask, "Save it again: `skops.io.dump(classifier, FILE)`; pickles are not read."):
        unknown: list[str] = skops.get_untrusted_types(file=path)
    if left := untrusted_types(unknown):
        options = " ".join(f"--trust {name}" for name in left)
        raise UsageError(
            f"{ask.text} holds types that could run code: {', '.join(left)}. If you trust them and "
            f"whoever made the file, say so: {options}, or in Python trust_code={left!r}."
        )
    with building(ask, "Load it with the version of scikit-learn that it was saved with."):
        found = skops.load(path, trusted=unknown)
    if not has_scores(found):
        raise UsageError(
            f"{ask.text} holds a {type(found).__name__}; expected a fitted classifier with "
            "predict_proba or decision_function."
        )
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    model = of_estimator(
        found, ask.shape, ask.classes, ask.class_names, layout=layout or "rows", scale=scale,
        content=content,
    )  # fmt: skip
    return Found(model, (f"classifier: {path}, attacked without gradients",), prepared=True)
