"""Images that are kept once they are read: for a training, which asks for each many times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.data.dataset import Dataset, ImageSet

_MOST = 1 << 28  # bytes


def held(data: Dataset) -> Dataset:
    """Return `data` with its images as they are stored, kept in memory, up to 256 MB of bytes.

    Decoding CIFAR-10 (JPEG) anew would take a tenth of an adversarial training on a CPU.
    """
    if not isinstance(data, ImageSet) or len(data) * int(np.prod(data.shape)) > _MOST:
        return data
    source, known = data.read, np.zeros(len(data), dtype=bool)
    kept: NDArray[Any] | None = None

    def read(indices: NDArray[np.int64]) -> NDArray[Any]:
        nonlocal kept
        indices = np.asarray(indices)
        missing = indices[~known[indices]]
        if len(missing):
            found = source(missing)
            if found.dtype != np.uint8:
                return source(indices)
            if kept is None:
                kept = np.empty((len(data), *found.shape[1:]), dtype=np.uint8)
            kept[missing], known[missing] = found, True
        assert kept is not None
        return kept[indices]

    return replace(data, read=read)
