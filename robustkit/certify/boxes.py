"""The certificate of a union of boxes, such as a patch that may lie anywhere: bounds on each.

Chiang et al., "Certified Defenses for Adversarial Patches", ICLR 2020 (arXiv:2003.06693), bound a
network by intervals at every place of the patch; a point is proved if each of them is. Differs from
the paper: what intervals leave open is bounded by CROWN.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.certify.agreement import refuse_less_precision
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import Box, intervals, margins_of
from robustkit.certify.smoothing import Smoothed
from robustkit.core.boxed import BoxedThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.legible import legible
from robustkit.models.mixture import Mixed, proved_by_margins
from robustkit.models.readiness import frozen

_METHODS = ("auto", "ibp", "crown")
_ANY = Threat("linf", 1.0, -1e6, 1e6)  # bounds read the norm alone where boxes are given


@dataclass(frozen=True)
class BoxBounds:
    """Bounds in float64 over every box, widened by what a float32 evaluation rounds.

    A point is given up at the first box that is not proved, and before any bound where the model
    errs at an end of one.
    """

    graph: Graph
    threat: BoxedThreat
    method: str
    mixture: Mixed | None = None

    batch = 1

    @property
    def name(self) -> str:
        """The method: it has no options."""
        return self.method

    def at(self, threat: Threat) -> BoxBounds:
        """Return the same bounds for another threat model of the kind."""
        assert isinstance(threat, BoxedThreat)
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points every box is proved [b]."""
        rows = range(len(x))
        found = [self._prove(x[row : row + 1], y[row : row + 1]) for row in rows]
        return torch.tensor(found, dtype=torch.bool, device=x.device)

    def _prove(self, x: Images, y: Labels) -> bool:
        against = y
        if self.threat.criterion.suffix and self.mixture is None:
            against = self.threat.criterion.reference(self.graph.values(x.double())[-1], y)
        for low, high in self.threat.boxes(x):
            box = Box(low.double(), high.double())
            label, other = y.expand(len(low)), against.expand(len(low))
            if any(self._errs(end, label) for end in box):
                return False
            if not bool(self._hold(box, label, other).all()):
                return False
        return True

    def _errs(self, z: Tensor, y: Labels) -> bool:
        """Whether the model errs at one of some inputs [m, *f]: no bound can prove the point."""
        if self.mixture is not None:  # the graph is of a part of it
            return False
        judged = self.threat.criterion(self.graph.values(z)[-1], y)
        return bool((judged.argmax(1) != y).any())

    def _hold(self, box: Box, y: Labels, against: Labels) -> Mask:
        """Return which boxes a bound proves [m]: CROWN on what intervals leave."""
        boxes = intervals(self.graph, box, rounding=True)
        lower = margins_of(self.graph, boxes, against, rounding=True)
        holds = self._proved(lower, y, against)
        rows = (~holds).nonzero().flatten()
        if len(rows) and self.method != "ibp":
            known = [Box(low[rows], high[rows]) for low, high in boxes]
            middle = (known[0].low + known[0].high) / 2
            found = crown_margins(
                self.graph, middle, against[rows], _ANY, rounding=True, boxes=known
            )
            found = torch.maximum(found, lower[rows])
            holds[rows] = self._proved(found, y[rows], against[rows])
        return holds

    def _proved(self, lower: Tensor, y: Labels, against: Labels) -> Mask:
        if self.mixture is None:
            lower = self.threat.criterion.bounds(lower, y)
        return proved_by_margins(lower, against, self.mixture)


def box_bounds(
    model: Any,
    shape: tuple[int, ...],
    threat: BoxedThreat,
    method: str,
    *,
    randomized: bool = False,
) -> BoxBounds | None:
    """Return the certificate of a network, or of a mixture by its robust part.

    None where a first look asks for it ("quick": there are hundreds of boxes a point), or where
    `method` is "auto" and none is known.

    Args:
        method: "auto" and "crown", which bound by intervals first, or "ibp", by intervals alone.

    Raises:
        UsageError: for other methods, and for a model that "ibp" or "crown" cannot bound.
    """
    if method == "quick":
        return None
    if method not in _METHODS:
        raise UsageError(
            f"{threat}: expected --certify {', '.join(_METHODS[:-1])} or {_METHODS[-1]}, which "
            f"bound every place of it, got {method}."
        )
    mixture = model if isinstance(model, Mixed) else None
    base = mixture.certificate_parts()[0] if mixture else model
    known = isinstance(base, nn.Module) and not isinstance(base, Smoothed)
    if not known or (randomized and mixture is None):
        if method == "auto":
            return None
        raise UsageError(
            f"{threat}: --certify {method} bounds deterministic networks, got "
            f"{type(base).__name__}: leave --certify out."
        )
    try:
        refuse_less_precision(base, shape)
        graph = trace(frozen(legible(duplicate(base)).double()), shape)
    except UsageError:
        if method == "auto":
            return None
        raise
    return BoxBounds(graph, threat, method, mixture)
