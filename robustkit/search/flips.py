"""Sets of flipped pairs of nodes in a file: what `flips:FILE` judges, and attacks replay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from robustkit.core import files
from robustkit.data import npz
from robustkit.data.graphs import Pairs
from robustkit.errors import UsageError


def write_flips(path: Path | str, sets: Mapping[str, Pairs]) -> None:
    """Write sets of flips by name, pairs in the order given (an npz without pickles).

    Raises:
        UsageError: for a set that is empty, or holds a loop or a pair twice.
    """
    for name, pairs in sets.items():
        _check(f"{path}: {name}", pairs)
    joined = torch.cat(list(sets.values())).numpy().astype(np.int32)
    sizes = np.array([len(pairs) for pairs in sets.values()], dtype=np.int64)
    names = np.frombuffer("\n".join(sets).encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, pairs=joined, sizes=sizes, names=names)
    files.write(content.getvalue(), Path(path))


def open_flips(text: str) -> Mapping[str, Pairs]:
    """Read sets of flips by name; pairs u < v [p, 2] in the order in which they were written.

    Raises:
        UsageError: where there is no such file, or it holds something else.
    """
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"flips:{text}: expected a file that robustkit.search.flips.write_flips wrote, got no "
            f"such file (looked from {Path.cwd()})."
        )
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: Path, _: int) -> Mapping[str, Pairs]:
    pairs, sizes, names = (npz.array(path, key) for key in ("pairs", "sizes", "names"))
    told = bytes(names).decode("utf-8", "replace").split("\n")
    if pairs.ndim != 2 or len(told) != len(sizes) or int(sizes.sum()) != len(pairs):
        raise UsageError(f"{path}: expected sets of flips, got arrays that do not fit together.")
    parts = torch.from_numpy(pairs.astype(np.int64)).split(sizes.tolist())
    found = dict(zip(told, parts, strict=True))
    for name, part in found.items():
        _check(f"{path}: {name}", part)
    return found


def _check(where: str, pairs: Pairs) -> None:
    fair = pairs.ndim == 2 and len(pairs) > 0 and bool((pairs[:, 0] < pairs[:, 1]).all())
    if not fair or len(pairs.unique(dim=0)) < len(pairs):
        raise UsageError(f"{where}: expected distinct pairs u < v [p, 2], and at least one.")
