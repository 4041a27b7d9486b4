"""Models: how they are loaded, trained, stored and made differentiable.

Enters: a name, a file or a module; data to train on.
Leaves: a frozen model from [b, c, h, w] to logits [b, k], and its surrogates.
Read first: load.py, then protocols.py and surrogates/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.models.load import Subject, load_model
    from robustkit.models.protocols import Composed, Network
    from robustkit.models.training import Recipe, fit

__all__ = ["Composed", "Network", "Recipe", "Subject", "fit", "load_model"]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Composed": "protocols",
        "Network": "protocols",
        "Recipe": "training",
        "Subject": "load",
        "fit": "training",
        "load_model": "load",
    },
)
