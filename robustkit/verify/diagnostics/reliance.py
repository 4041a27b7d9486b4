"""What a model's answers hang on: accuracy where a part of the input is another point's.

Shah et al. 2020 (arXiv:2006.07710): one permutation of the points; the block S of point i is
replaced by that of point perm(i), all of S together, so that what is inside S stays consistent and
tells nothing of the label. Reliance is (A − A_S) / (A − chance): 0 where S is ignored, 1 where
everything hangs on it. On natural images a block of another point is off-distribution: a drop is
evidence of use only beside another block without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core.rng import generator, task_key
from robustkit.core.stats.intervals import mean_interval
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.verify.diagnostics.blocks import Block

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

_BATCH = 250  # fixed: what a randomized model answers may depend on it
SAME, ALL = 0.95, 0.9  # above both, diversity is not seen: ours
Right = NDArray[np.bool_]
Progress = Callable[[str], None]


class Row(NamedTuple):
    """One block of one member.

    Attributes:
        accuracy: A_S, the mean over permutations.
        reliance, low, high: with its 95% interval, paired over points.
    """

    member: str
    block: str
    accuracy: float
    reliance: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliance:
    """What was measured.

    Attributes:
        names: of the models and members that were asked.
        members: those of them that are compared.
        clean: whether each classifies each point rightly [m, n].
        swapped: by block the share of permutations that it does under [m, n].
        chance: accuracy of guessing, 1 / classes.
    """

    names: Sequence[str]
    members: Sequence[str]
    blocks: Sequence[str]
    clean: Right
    swapped: Mapping[str, NDArray[np.float64]]
    chance: float

    @property
    def accuracy(self) -> list[float]:
        """Of everyone that was asked."""
        return [float(mean) for mean in self.clean.mean(1)]

    @cached_property
    def rows(self) -> list[Row]:
        """Every block of everyone that was asked."""
        return [self._row(k, block) for k in range(len(self.names)) for block in self.blocks]

    def _row(self, number: int, block: str) -> Row:
        right, now = self.clean[number].astype(float), self.swapped[block][number]
        above = right.mean() - self.chance
        # Differences of one point lie in [−1, 1]: Student's interval of their mean.
        _, (low, high) = mean_interval(((right - now + 1) / 2).tolist())
        ends = ((2 * end - 1) / above for end in (low, high))
        drop = float((right - now).mean() / above)
        return Row(self.names[number], block, float(now.mean()), drop, *map(float, ends))

    @cached_property
    def similarity(self) -> dict[tuple[str, str], float]:
        """Cosine of the reliance vectors of every pair of members."""
        vectors = {m: np.array([r.reliance for r in self.rows if r.member == m])
                   for m in self.members}  # fmt: skip
        return {
            (a, b): float(vectors[a] @ vectors[b] / max(_length(vectors[a], vectors[b]), 1e-12))
            for a, b in combinations(self.members, 2)
        }

    @cached_property
    def common_errors(self) -> dict[tuple[str, str], float]:
        """Of the points that either of two members gets wrong, the share that both do."""
        wrong = dict(zip(self.names, ~self.clean, strict=True))
        return {
            (a, b): float((wrong[a] & wrong[b]).sum() / max(1, (wrong[a] | wrong[b]).sum()))
            for a, b in combinations(self.members, 2)
        }

    @property
    def verdict(self) -> str | None:
        """What an ensemble's blocks say of its diversity; None for a single model.

        Not seen: the mean cosine is above 0.95, and each member has a block above 0.9.
        """
        if len(self.members) < 2:
            return None
        most = [max(r.reliance for r in self.rows if r.member == m) for m in self.members]
        mean = float(np.mean(list(self.similarity.values())))
        if mean > SAME and min(most) > ALL:
            return "diversity not seen"
        return "members agree on the blocks" if mean > SAME else "members differ on the blocks"


def _length(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(a) * np.linalg.norm(b))


class Asked(NamedTuple):
    """Whom to ask: models by name, and the model whose members are asked too.

    Attributes:
        ensemble: has a method `predictors`: [b, *f] -> the raw logits of every member [b, m, k].
    """

    models: Mapping[str, Model]
    ensemble: nn.Module | None = None
    size: int = 0

    @classmethod
    def of(cls, models: Mapping[str, Model], x: Tensor) -> Asked:
        """Find the members of a single model; `x` [b, *f] are a few inputs.

        A model whose pieces have no such method can be asked with them named beside it.
        """
        (first,) = models.values() if len(models) == 1 else (None,)
        if not isinstance(first, nn.Module) or not hasattr(first, "predictors"):
            return cls(models)
        with torch.no_grad():
            parts: Any = duplicate(first)
            return cls(models, first, parts.predictors(x).shape[1])

    @property
    def names(self) -> list[str]:
        """The models, then the members."""
        return [*self.models, *(f"member {number + 1}" for number in range(self.size))]

    @property
    def members(self) -> list[str]:
        """Those that are compared with each other: an ensemble is not one of its members."""
        names = self.names
        return names[len(self.models) :] if self.size else names

    def fresh(self) -> Callable[[Tensor], Tensor]:
        """Return [b, *f] -> logits [m, b, k] of copies: what numbers its passes begins anew."""
        copies = [_copied(model) for model in self.models.values()]
        parts: Any = None if self.ensemble is None else duplicate(self.ensemble)

        def ask(x: Tensor) -> Tensor:
            logits = torch.stack([model(x) for model in copies])
            if parts is None:
                return logits
            return torch.cat([logits, parts.predictors(x).transpose(0, 1)])

        return ask


def _copied(model: Model) -> Model:
    return duplicate(model) if isinstance(model, nn.Module) else model


def measure_reliance(
    asked: Asked,
    data: Dataset,
    points: Sequence[int],
    blocks: Sequence[Block],
    *,
    permutations: int = 5,
    seed: int = 0,
    known: dict[str, list[str]] | None = None,
    progress: Progress = lambda _: None,
) -> Reliance:
    """Measure every block on `points`; the answer depends on seed and points alone.

    Args:
        permutations: of the points, the same for every block.
        known: what an earlier call has measured, by `block/permutation`; each result is added.
        progress: told the block after each pass over the points.

    Raises:
        UsageError: for fewer than two points, two blocks of one name, or an accuracy that is not
            above guessing.
    """
    names = [block.name for block in blocks]
    if len(points) < 2 or len(set(names)) < len(names):
        raise UsageError(
            f"reliance: expected two points or more and blocks of different names, got "
            f"{len(points)} points and {', '.join(names)}."
        )
    store = {} if known is None else known
    units = [("", 0), *((name, k) for name in names for k in range(permutations))]
    by_name = {block.name: block for block in blocks}
    for name, number in units:
        key = f"{name}/{number}"
        if key not in store:
            block = by_name.get(name)
            store[key] = _signs(asked, data, points, block, (seed, number))
        progress(name)
    found = {key: _bits(value) for key, value in store.items()}
    for name, accuracy in zip(asked.names, found["/0"].mean(1).tolist(), strict=True):
        if accuracy <= 1 / data.classes:
            raise UsageError(
                f"{name} is right on {accuracy:.3f} of the points, and guessing on "
                f"{1 / data.classes:.3f}: there is no accuracy that could hang on a block."
            )
    swapped = {
        name: np.mean([found[f"{name}/{k}"] for k in range(permutations)], axis=0) for name in names
    }
    return Reliance(asked.names, asked.members, names, found["/0"], swapped, 1 / data.classes)


def _signs(
    asked: Asked, data: Dataset, points: Sequence[int], block: Block | None, key: tuple[int, int]
) -> list[str]:
    """Return for every member one sign per point: 1 right, 0 wrong."""
    order = torch.randperm(len(points), generator=generator(key[0], task_key("reliance"), key[1]))
    parts, ask = [], asked.fresh()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(key[1])
        for start in range(0, len(points), _BATCH):
            x, y = data.fetch(points[start : start + _BATCH])
            if block is not None:
                others = [points[k] for k in order[start : start + _BATCH].tolist()]
                x = block.swap(x, data.fetch(others)[0])
            parts.append(ask(x).argmax(-1).cpu() == y)
    return ["".join("01"[bit] for bit in row) for row in torch.cat(parts, 1).int().tolist()]


def _bits(signs: Sequence[str]) -> Right:
    return np.array([[sign == "1" for sign in row] for row in signs])
