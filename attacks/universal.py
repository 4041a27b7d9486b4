"""One perturbation for all images as a threat model: trained on one split, judged on another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.core.types import Images
from robustkit.errors import UsageError, some
from robustkit.registry import threats
from robustkit.search.universal import digests, open_universal


@threats.register("universal", cites="arXiv:1610.08401")
@dataclass(frozen=True)
class Universal(FiniteThreat):
    """One perturbation, the same for all images: x' = clip(x + v), v read from a file.

    Moosavi-Dezfooli et al. 2017. `universal:FILE.npz` is what `train_universal` of
    `robustkit.search.universal` wrote: v with its bound, and digests of the images that it was
    trained on. Robust accuracy is that under this one perturbation: exact, and no claim about
    others. Images that it was trained on are refused: a perturbation is judged on others. The
    digest of the file is in the record.
    """

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `universal:`."""
        open_universal(text)
        return cls(f"universal:{text}", 1.0)  # type: ignore[arg-type]

    @property
    def _file(self) -> str:
        return self.norm.partition(":")[2]

    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(Path(self._file).read_bytes()).hexdigest()

    @property
    def variants(self) -> Sequence[Variant]:
        """One, called by the bound of the perturbation."""
        return (Variant(open_universal(self._file).bound, 1),)

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse images of another shape."""
        if list(open_universal(self._file).delta.shape) != list(shape):
            raise UsageError(
                f"{self}: expected inputs {list(open_universal(self._file).delta.shape)}, like the "
                f"perturbation, got {list(shape)}."
            )

    def images(self, x: Images, points: Sequence[int], variant: Variant) -> Images:
        """Add the perturbation, and clip.

        Raises:
            UsageError: for images that it was trained on.
        """
        stored, clean = open_universal(self._file), x.detach().cpu()
        known = [p for p, key in zip(points, digests(clean), strict=True) if key in stored.seen]
        if known:
            raise UsageError(
                f"{self} was trained on points {some(known)}: judge it on others, which its "
                "training has not seen (another split, or points=...)."
            )
        return (clean + stored.delta).clamp_(0, 1)
