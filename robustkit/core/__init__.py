"""What all other packages use: threat models, losses, random streams, specs, statistics, files.

Enters: numbers, texts and paths.
Leaves: `Threat`, keyed random numbers, intervals and tests, text that is safe to print.
Read first: threat.py, then rng.py and stats/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.core.losses import margin
    from robustkit.core.rng import Keys, task_key, uniform
    from robustkit.core.spec import Spec
    from robustkit.core.threat import Threat
    from robustkit.core.types import Images, Labels, Logits, Model, Scalars

__all__ = [
    "Images",
    "Keys",
    "Labels",
    "Logits",
    "Model",
    "Scalars",
    "Spec",
    "Threat",
    "margin",
    "task_key",
    "uniform",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Images": "types",
        "Keys": "rng",
        "Labels": "types",
        "Logits": "types",
        "Model": "types",
        "Scalars": "types",
        "Spec": "spec",
        "Threat": "threat",
        "margin": "losses",
        "task_key": "rng",
        "uniform": "rng",
    },
)
