"""Models that predict a number, as classifiers of its error: within a tolerance or beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.core.criterion import Criterion
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError


class Residuals(nn.Module):
    """Logits [b, 3k] of a model of one number, for k targets: 0, f − t − tol, and t − tol − f.

    For a point of target t the margin of logit t to the two others of t is tol − |f − t|: it is
    positive exactly where the error is within the tolerance, up to one rounding of float32. The
    last layer is linear, so that bounds of the network go through it.
    """

    def __init__(
        self, model: nn.Module, targets: NDArray[np.float32], tolerances: NDArray[np.float64]
    ) -> None:
        super().__init__()
        count = len(targets)
        self.model, self.last = model, nn.Linear(1, 3 * count)
        one, t = torch.ones(count), targets.astype(np.float64)
        self.last.weight.data = torch.cat([0 * one, one, -one])[:, None]
        ends = np.concatenate([np.zeros(count), -t - tolerances, t - tolerances])
        self.last.bias.data = torch.from_numpy(ends).float()
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, 3k]."""
        answer: Tensor = self.last(self.model(x).reshape(-1, 1))
        return answer


class Pair(nn.Module):
    """Two outputs of a model, which probes take for those of two classes."""

    def __init__(self, model: Model, pair: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.pair = model, list(pair)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, 2]."""
        return self.model(x)[:, self.pair]


def for_targets(model: Any, data: Dataset, criterion: Criterion) -> Any:
    """Return `model` as its criterion judges it: with `Residuals` where y are numbers.

    Raises:
        UsageError: where data and criterion do not fit, and for what is no module.
    """
    targets: NDArray[np.float32] | None = getattr(data, "targets", None)
    tolerances = criterion.tolerances(targets)
    if tolerances is None or targets is None or model is None:
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"criterion {criterion} needs an nn.Module, got {type(model).__name__}.")
    if isinstance(model, Residuals):  # one that was judged so may come back, to be attacked
        model = model.model
    return Residuals(model, targets, tolerances).eval()
