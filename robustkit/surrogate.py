"""Stand-ins for a model, declared by the model itself, that are easier to attack.

A defense with randomness, hard decisions or saturation names smooth stand-ins: an attack follows
the gradient of a stand-in, and what it finds counts only if the model itself is fooled. A module
declares them by a method `surrogates()`: name -> callable from [b, *f] to logits [b, k].
"""

from __future__ import annotations

from typing import Any

from robustkit.errors import UsageError
from robustkit.types import Model


def declared(model: Any) -> dict[str, Model]:
    """Return the surrogates of `model` by name; most models declare none."""
    method = getattr(model, "surrogates", None)
    return dict(method()) if callable(method) else {}


def source(model: Model, name: str) -> Model:
    """Return what an attack with `surrogate=name` takes its gradients from; "" is the model.

    Raises:
        UsageError: when the model declares no such surrogate.
    """
    if not name:
        return model
    known = declared(model)
    if name not in known:
        raise UsageError(
            f"expected a surrogate that the model declares ({', '.join(sorted(known)) or 'none'}), "
            f"got {name!r}."
        )
    return known[name]
