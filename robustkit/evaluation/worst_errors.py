"""The worst error of a regression model within a threat model, from below and from above."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustkit.certify.certifier import Bounds, build_certifier
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, Indices
from robustkit.errors import UsageError
from robustkit.models.normalization import in_units
from robustkit.models.regression import for_targets
from robustkit.registry import read_criterion


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
