"""NRTK's perturbers as a threat model of corruptions, whose verdict is exact: all are tried.

NRTK (https://github.com/Kitware/nrtk, tried: 1.1.0) simulates what sensors, weather and optics do.
Common corruptions as a test: Hendrycks and Dietterich (2019, arXiv:1903.12261).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustkit.core import arguments
from robustkit.core.imports import failure
from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.types import Images
from robustkit.data.dataset import Dataset, digest
from robustkit.errors import RobustkitError, UsageError, some

if TYPE_CHECKING:
    import pandas as pd

_SEEDS = 1 << 31


class Corruptions:
    """A finite threat model: what the perturbers make of an image, each `draws` times.

    A perturber with a `seed` in its configuration is made anew for each image, its seed drawn from
    `seed`, its name, the point and the draw: batches and order change nothing. One without is used
    as it is, once, and must do the same each time.

    Args:
        perturbers: of NRTK (`PerturbImage`), by the name in results; they get uint8, [h, w] or
            [h, w, c], and answer with the same shape and type.
        draws: so many for each perturber that draws.
        seed: every random draw follows from it.

    Raises:
        UsageError: without perturbers, and for what has no `perturb`.
    """

    def __init__(self, perturbers: Mapping[str, Any], *, draws: int = 1, seed: int = 0) -> None:
        if not perturbers:
            raise UsageError("expected perturbers of NRTK by name, got none.")
        for name, perturber in perturbers.items():
            if not callable(getattr(perturber, "perturb", None)) or isinstance(perturber, type):
                raise UsageError(
                    f"{name}: expected a perturber of NRTK, with a method perturb, got "
                    f"{arguments.shown(perturber)}."
                )
        self.perturbers = dict(perturbers)
        self.draws = arguments.whole("draws", draws, 1)
        self.seed = arguments.whole("seed", seed, 0, arguments.SEEDS)
        self._drawn = {name: _seeded(p) for name, p in self.perturbers.items()}

    @property
    def variants(self) -> list[tuple[str, int]]:
        """What an image may become: name and draw."""
        return [
            (name, draw)
            for name in self.perturbers
            for draw in range(self.draws if self._drawn[name] else 1)
        ]

    def apply(self, variant: tuple[str, int], x: Images, points: Sequence[int]) -> Images:
        """Return images [b, c, h, w] in [0, 1] after one variant; they are rounded to bytes first.

        Args:
            points: identity of each image [b].

        Raises:
            RobustkitError: when a perturber fails, or answers with another shape or type.
        """
        images = (x.numpy(force=True) * 255).round().astype(np.uint8)
        made = [self._one(variant, image, p) for image, p in zip(images, points, strict=True)]
        return torch.from_numpy(np.stack(made)).to(x) / 255

    def refuse_unrepeatable(self, x: Images, points: Sequence[int]) -> None:
        """Refuse perturbers that answer otherwise the second time (a UsageError)."""
        for variant in self.variants:
            if not torch.equal(self.apply(variant, x, points), self.apply(variant, x, points)):
                raise UsageError(
                    f"{variant[0]}: two passes over one image differ, and its configuration names "
                    "no seed: a verdict could not be repeated. Give it a seed in get_config."
                )

    def _one(self, variant: tuple[str, int], image: NDArray[Any], point: int) -> NDArray[Any]:
        name, draw = variant
        given = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        try:
            perturber = self.perturbers[name]
            if self._drawn[name]:
                perturber = _reseeded(perturber, f"{self.seed} {name} {point} {draw}")
            found, _ = perturber.perturb(image=given.copy())
        except Exception as error:
            raise RobustkitError(f"{name} fails on point {point}: {failure(error)}.") from error
        found = np.asarray(found)
        if found.shape != given.shape or found.dtype != np.uint8:
            raise RobustkitError(
                f"{name}: expected uint8 {list(given.shape)} as it was given, got {found.dtype} "
                f"{list(found.shape)} on point {point}. Resize inside the perturber."
            )
        return found[None] if len(image) == 1 else found.transpose(2, 0, 1)


@dataclass(frozen=True)
class CorruptionResult:
    """What a model makes of every variant of every point.

    Attributes:
        points: positions in the data set [n].
        variants: name and draw of each column.
        clean: whether each point is classified correctly as it is [n].
        right: whether it is after each variant [n, m].
        digest: SHA-256 of the points, as in a record.
    """

    points: list[int]
    variants: list[tuple[str, int]]
    clean: NDArray[np.bool_]
    right: NDArray[np.bool_]
    digest: str

    @property
    def robust(self) -> float:
        """Share of the points that are right as they are and after every variant: exact."""
        return float((self.clean & self.right.all(1)).mean())

    @property
    def robust_interval(self) -> tuple[float, float]:
        """95% interval of `robust` for the population of the points (Clopper and Pearson)."""
        return self._interval(self.clean & self.right.all(1))

    @property
    def mean(self) -> float:
        """Mean accuracy over corruptions, each with the mean of its draws."""
        return float(np.mean([self._of(name).mean() for name, _ in self._names()]))

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each corruption, worst first.

        Columns: accuracy (mean over points and draws), worst (share of the points that are right
        after all of its draws), worst_low and worst_high, its 95% interval.
        """
        import pandas as pd

        rows = {}
        for name, _ in self._names():
            worst: NDArray[np.bool_] = np.all(self._of(name), axis=1)
            low, high = self._interval(worst)
            rows[name] = {"accuracy": float(self._of(name).mean()), "worst": float(worst.mean()),
                          "worst_low": low, "worst_high": high}  # fmt: skip
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("corruption")
        return frame.sort_values(["accuracy", "worst"], kind="stable")

    def verdicts(self) -> dict[int, str]:
        """Return by position "misclassified", "robust", or the first corruption that breaks it."""
        return {
            point: "misclassified" if not clean
            else next((self.variants[k][0] for k in np.flatnonzero(~row)), "robust")
            for point, clean, row in zip(self.points, self.clean, self.right, strict=True)
        }  # fmt: skip

    def _names(self) -> Iterator[tuple[str, int]]:
        return (variant for variant in self.variants if variant[1] == 0)

    def _of(self, name: str) -> NDArray[np.bool_]:
        return self.right[:, [k for k, (other, _) in enumerate(self.variants) if other == name]]

    def _interval(self, right: NDArray[np.bool_]) -> tuple[float, float]:
        return tuple(clopper_pearson(int(right.sum()), len(right)))  # type: ignore[return-value]


def evaluate_corruptions(
    model: nn.Module,
    data: Dataset,
    corruptions: Corruptions,
    *,
    points: Sequence[int] | None = None,
    batch_size: int = 128,
) -> CorruptionResult:
    """Classify every variant of every point: nothing is searched, so that the verdict is exact.

    Args:
        model: images [b, c, h, w] in [0, 1] to logits [b, k], in evaluation mode, where it is.
        points: positions; by default all.
        batch_size: of a pass.

    Raises:
        UsageError: for a model in training mode, no points, and perturbers that cannot be repeated.
        RobustkitError: when a perturber fails, or the model returns NaN or infinite logits.
    """
    chosen = list(range(len(data)) if points is None else points)
    if not chosen:
        raise UsageError("points: expected at least one, got none.")
    if any(part.training for part in model.modules()):
        raise UsageError("the model is in training mode: call model.eval() first.")
    batch_size = arguments.whole("batch_size", batch_size, 1)
    where = next(model.parameters(), torch.empty(0)).device
    corruptions.refuse_unrepeatable(data.fetch(chosen[:1])[0], chosen[:1])
    variants = corruptions.variants
    clean, right = [], []
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        x, y = data.fetch(part)
        columns = [corruptions.apply(variant, x, part) for variant in variants]
        answers = [_answers(model, z.to(where), part) == y.numpy() for z in (x, *columns)]
        clean.append(answers[0])
        right.append(np.stack(answers[1:], axis=1))
    return CorruptionResult(
        chosen, variants, np.concatenate(clean), np.concatenate(right), digest(data, chosen)
    )


def _answers(model: nn.Module, x: Images, points: Sequence[int]) -> NDArray[np.int64]:
    with torch.no_grad():
        logits = model(x)
    finite = logits.isfinite().all(1)
    if not bool(finite.all()):
        wrong = [p for p, good in zip(points, finite.tolist(), strict=True) if not good]
        raise RobustkitError(f"the model returned NaN or infinite logits on points {some(wrong)}.")
    found: NDArray[np.int64] = logits.argmax(1).numpy(force=True)
    return found


def _seeded(perturber: Any) -> bool:
    """Whether a perturber, or one that it is composed of, has a seed."""
    parts = getattr(perturber, "perturbers", None)
    return any(map(_seeded, parts)) if isinstance(parts, list) else "seed" in perturber.get_config()


def _reseeded(perturber: Any, key: str) -> Any:
    """Return a perturber, and those it is composed of, with seeds of their own."""
    parts = getattr(perturber, "perturbers", None)
    if isinstance(parts, list):  # its from_config would look for all classes there are: slow
        made = [_reseeded(part, f"{key} {place}") for place, part in enumerate(parts)]
        return type(perturber)(perturbers=made)
    if not _seeded(perturber):
        return perturber
    return type(perturber).from_config({**perturber.get_config(), "seed": _draw(key)})


def _draw(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _SEEDS
