"""Models that predict a number, as classifiers of its error: within a tolerance or beyond it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.certify.certifier import Bounds, build_certifier
from robustkit.core.criterion import Criterion
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset, Indices
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
    return Residuals(model, targets, tolerances).eval()


class WorstError(NamedTuple):
    """The largest error of each point [n] within the threat model, from below and from above.

    Attributes:
        found: at an input that an ascent found; the clean one at least.
        proved: what CROWN proves no input exceeds.
    """

    found: NDArray[np.float64]
    proved: NDArray[np.float64]


def worst_errors(
    model: nn.Module,
    data: Dataset,
    threat: Threat,
    points: Indices | None = None,
    *,
    steps: int = 40,
) -> WorstError:
    """Bracket the worst error of a regression model at each of some points.

    The ascent takes steps of eps / 4, shrinking linearly, toward a larger and toward a smaller
    answer (projected gradient). The proof is that of `--certify crown`, in float64 with float32's
    rounding added.

    Args:
        model: of one number a point, as it is; a layer is put before it where `data` has ranges.
        threat: with a norm; its criterion is not read.
        points: positions in `data`; all by default.

    Raises:
        UsageError: for data without targets, and networks that bounds are not known for.
    """
    from robustkit.models.normalization import in_units
    from robustkit.registry import read_criterion

    criterion = read_criterion("error>1")
    whole = for_targets(in_units(model.eval(), data), data, criterion)
    bounds = build_certifier(
        whole, data.shape, Threat(threat.norm, threat.eps, *threat.box, criterion), "crown"
    )
    if not isinstance(bounds, Bounds):
        raise UsageError("worst_errors needs a network, not one with certificates of its own.")
    chosen = np.arange(len(data)) if points is None else points
    x, y = data.fetch(chosen)
    target = torch.from_numpy(np.asarray(data.targets))[y].double()  # type: ignore[attr-defined]
    with torch.no_grad():
        found = (whole.model(x).flatten().double() - target).abs()
    for side in (1.0, -1.0):
        z = x
        for step in range(steps):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(side * whole.model(z).sum(), z)
            length = threat.eps / 4 * (1 - step / steps)
            z = threat.project(z.detach() + length * threat.steepest(gradient), x)
            with torch.no_grad():
                error = (whole.model(z).flatten().double() - target).abs()
            found = torch.where(threat.contains(z, x), torch.maximum(found, error), found)
    least = torch.cat(
        [bounds.crown(a, b)[1] for a, b in zip(x.split(16), y.split(16), strict=True)]
    )
    return WorstError(found.numpy(), (1.0 - least).detach().numpy())
