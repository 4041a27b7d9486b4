"""Corrupted images that lie in a folder: CIFAR-10-C, ImageNet-C and whatever is laid out so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.types import Images
from robustkit.data.dataset import ImageSet
from robustkit.data.image_folder import open_folder
from robustkit.data.npz import Stored, npy
from robustkit.errors import UsageError
from robustkit.registry import threats

from ._corruptions import CORRUPTIONS, EXTRA, SEVERITIES
from ._selection import selected

_BLOCK = 1 << 24
_LEAST, _LABELS = 5, "labels"  # severities that every file holds, one after the other


@threats.register("stored", cites="arXiv:1903.12261")
@dataclass(frozen=True)
class StoredCorruptions(FiniteThreat):
    """The corrupted images of a folder, read as they are, under the points of the clean data.

    `stored:FOLDER`, or `stored:FOLDER::fog@3` to select (as `corruption:` does). FOLDER holds
    `labels.npy` and one `NAME.npy` a corruption, bytes [5 n, h, w, c], severity after severity in
    the order of the clean data (CIFAR-10-C), or `NAME/SEVERITY/CLASS/IMAGE` (ImageNet-C). `--data`
    names the clean images, in the same order: the labels must agree. `all` leaves out the extra
    corruptions.
    """

    @classmethod
    def read(cls, text: str) -> StoredCorruptions:
        """Read what follows `stored:`."""
        folder, marked, selection = text.partition("::")
        chosen = _variants(folder, selection)
        name = f"stored:{folder}{'::' * bool(marked)}{selection}"
        return cls(cast(Any, name), float(max(v.severity for v in chosen)))

    @property
    def variants(self) -> Sequence[Variant]:
        """In the order of the selection."""
        return _variants(*self._parts)

    def digest(self) -> str:
        """Of the contents of NAME.npy and the labels; of folders of images, of names and sizes."""
        folder, found = Path(self._parts[0]), hashlib.sha256()
        for kind in dict.fromkeys(variant.kind for variant in self.variants):
            file = folder / f"{kind}.npy"
            if file.is_file():
                for path in (file, folder / f"{_LABELS}.npy"):
                    with path.open("rb") as opened:
                        while block := opened.read(_BLOCK):
                            found.update(block)
                continue
            for path in sorted(path for path in (folder / kind).rglob("*") if path.is_file()):
                told = f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n"
                found.update(told.encode())
        return found.hexdigest()

    @property
    def _parts(self) -> tuple[str, str]:
        folder, _, selection = self.norm.partition(":")[2].partition("::")
        return folder, selection

    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Read one variant of some points."""
        source = _source(self._parts[0], variant)
        rows = np.asarray(points, dtype=np.int64)
        if isinstance(source, ImageSet):
            made = source.read(rows)
        else:
            first = (variant.severity - 1) * (len(source) // _LEAST)
            made = _channels_first(source[first + rows])
        if made.shape != tuple(x.shape):
            raise UsageError(
                f"{self._parts[0]}: expected {variant} as images {list(x.shape[1:])} like the "
                f"data, got {list(made.shape[1:])}. Name the clean images of this folder in --data."
            )
        return torch.from_numpy(np.ascontiguousarray(made)).float() / 255

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse data of other points than those that were corrupted."""
        folder, known = self._parts[0], np.asarray(labels)
        for variant in self.variants:
            source = _source(folder, variant)
            if isinstance(source, ImageSet):
                theirs: NDArray[Any] = source.labels
            else:
                stored = npy(Path(folder) / f"{_LABELS}.npy")[:]
                count = len(source) // _LEAST
                theirs = stored[:count]
            if not np.array_equal(theirs, known):
                raise UsageError(
                    f"{folder}: {variant} has {len(theirs):,} points, and the data {len(known):,}, "
                    "or their labels differ. Name the clean images that this folder was made from, "
                    "in the same order, in --data."
                )


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


@lru_cache
def _variants(folder: str, selection: str) -> tuple[Variant, ...]:
    """Return what is selected of what a folder holds."""
    place, found = Path(folder), dict[str, list[str]]()
    names = {path.stem for path in place.glob("*.npy")} - {_LABELS}
    names |= {path.parent.name for path in place.glob(f"*/{SEVERITIES[0]}")}
    for name in [*(name for name in CORRUPTIONS if name in names), *sorted(names)]:
        group = CORRUPTIONS[name].group if name in CORRUPTIONS else EXTRA
        found.setdefault(group, []).extend([name] if name not in found.get(group, ()) else [])
    if not found:
        raise UsageError(
            f"{folder}: expected NAME.npy and labels.npy (CIFAR-10-C), or folders "
            f"NAME/SEVERITY/CLASS (ImageNet-C), got neither (looked from {Path.cwd()})."
        )
    benchmark = [name for group, members in found.items() if group != EXTRA for name in members]
    return selected(selection or "all", {"all": benchmark or found[EXTRA], **found})


class _Place(NamedTuple):
    folder: str
    kind: str
    severity: int


def _source(folder: str, variant: Variant) -> Stored | ImageSet:
    """Open one file, or one folder of images: where the variant lies."""
    file = Path(folder) / f"{variant.kind}.npy"
    return _opened(_Place(folder, variant.kind, 0 if file.is_file() else variant.severity))


@lru_cache(maxsize=128)
def _opened(place: _Place) -> Stored | ImageSet:
    folder = Path(place.folder)
    if place.severity:
        inner = folder / place.kind / str(place.severity)
        return open_folder(place.kind, inner)
    found = npy(folder / f"{place.kind}.npy")
    if found.dtype != np.uint8 or len(found.shape) not in (3, 4) or len(found) % _LEAST:
        raise UsageError(
            f"{folder / place.kind}.npy: expected bytes [5 n, h, w, c], severity after severity, "
            f"got {found.dtype} {list(found.shape)}."
        )
    return found
