"""The truth of a wrapper: known by construction, and sharpened by whatever anybody finds.

A wrapper that decides as the bare model does keeps exactly the points that the bare model keeps:
an adversarial input of the one is one of the other. For a wrapper that moves its inputs, the truth
is an upper bound: what is left after the adversarial inputs of the bare model, judged on the
wrapped one, and after attacks through the smooth form that an expert would write down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gauntlet.setting import Points, Setting
from benchmarks.gauntlet.wrapper import Entry, Wrapper
from robustkit.core.types import Images, Model
from robustkit.record.adversarial import adversarial_inputs
from robustkit.verify.candidates import predict

JUDGED = 100  # draws behind the truth of a random wrapper
Positions: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
EXPERT = ("relay(surrogate=smooth)", "apgd(loss=margin, restarts=2, surrogate=smooth)")


class Report(nn.Module):
    """A wrapped model that declares its smooth form."""

    def __init__(self, wrapped: Wrapper) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.wrapped(x)
        return logits

    def surrogates(self) -> dict[str, Model]:
        """The smooth form."""
        return {"smooth": self.wrapped.smooth}


class Truth:
    """The verdicts on the chosen points of every wrapper.

    Attributes:
        standing: of the bare model, on the chosen points.
    """

    def __init__(self, setting: Setting, points: Points) -> None:
        self.setting, self.points = setting, points
        self.standing = {p: p in points.controls for p in points.chosen}

    def sharpen(self, found: Sequence[Mapping[int, Images]]) -> None:
        """Take in adversarial inputs found on wrappers that decide as the bare model does."""
        for claims in found:
            for point in broken(self.setting.bare, self.setting, claims):
                self.standing[point] = False

    def of(
        self, entry: Entry, wrapped: Wrapper, found: Sequence[Mapping[int, Images]]
    ) -> dict[int, bool]:
        """Return which points a wrapper keeps.

        Args:
            found: adversarial inputs that any evaluation claims for this wrapper.
        """
        if entry.truth == "equal":
            return dict(self.standing)
        place, told = f"{entry.name}/truth", Report(wrapped)
        record = self.setting.evaluate(told, place, self.points.chosen, attacks=EXPERT,
                                       replay=self.setting.folder / "bare")  # fmt: skip
        status = dict(zip(record.points.index, record.points.status, strict=True))
        standing = {p: status[p] != "misclassified" for p in self.points.chosen}
        mine = adversarial_inputs(self.setting.folder / place)
        for claims in (mine, *found):
            for point in broken(wrapped, self.setting, claims, JUDGED if entry.random else 1):
                standing[point] = False
        return standing


def points_array(points: Sequence[int]) -> Positions:
    """Return positions as the data set takes them."""
    return np.asarray(points, dtype=np.int64)


def broken(
    model: nn.Module, setting: Setting, found: Mapping[int, Images], draws: int = 1
) -> list[int]:
    """Return the points whose claimed adversarial input lies in the ball and fools `model`.

    A randomized model answers `draws` times, the same ones whenever it is asked.
    """
    if not found:
        return []
    points = sorted(found)
    x, y = setting.data.fetch(points_array(points))
    z = torch.stack([torch.as_tensor(found[point]).reshape(x.shape[1:]) for point in points])
    fine = setting.threat.contains(z, x) & z.isfinite().flatten(1).all(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        wrong = predict(model, z.nan_to_num(), draws).predicted != y
    return [p for p, ok in zip(points, (fine & wrong).tolist(), strict=True) if ok]
