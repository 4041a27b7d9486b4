"""Data sets: points with labels, and where they come from.

Enters: a name, a path, arrays or a function.
Leaves: a `Dataset`: images [n, c, h, w] in [0, 1], labels, and a digest of what was used.
Read first: dataset.py, then open.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.data.arrays import as_dataset, from_arrays
    from robustkit.data.dataset import Augment, Dataset, ImageSet, digest, select, subset
    from robustkit.data.open import data_root, open_dataset

__all__ = [
    "Augment",
    "Dataset",
    "ImageSet",
    "as_dataset",
    "data_root",
    "digest",
    "from_arrays",
    "open_dataset",
    "select",
    "subset",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Augment": "dataset",
        "Dataset": "dataset",
        "ImageSet": "dataset",
        "as_dataset": "arrays",
        "data_root": "open",
        "digest": "dataset",
        "from_arrays": "arrays",
        "open_dataset": "open",
        "select": "dataset",
        "subset": "dataset",
    },
)
