"""Images that are kept once they are read: for a training, which asks for each many times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.data.dataset import Dataset, ImageSet

_MOST = 1 << 28  # bytes


def held(data: Dataset) -> Dataset:
    """Return `data` with images that are stored as bytes kept in memory, up to 256 MB.

    Decoding CIFAR-10 (JPEG) anew would take a tenth of an adversarial training on a CPU.
    """
    if not isinstance(data, ImageSet) or len(data) * int(np.prod(data.shape)) > _MOST:
        return data
    source, known = data.read, np.zeros(len(data), dtype=bool)
    first = source(np.zeros(1, dtype=np.int64))
    if first.dtype != np.uint8:
        return data
    kept = np.empty((len(data), *first.shape[1:]), dtype=np.uint8)

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        missing = indices[~known[indices]]
        if len(missing):
            kept[missing] = source(missing)
            known[missing] = True
        return kept[indices]

    return replace(data, read=read)
