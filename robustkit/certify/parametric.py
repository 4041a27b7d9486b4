"""The certificate of a threat model with few parameters: bounds over boxes of parameters, split.

x' = clip(x + Σ θ_i B_i(x)) is a linear layer in θ with weights that depend on x, and clipping is
two ReLUs: θ -> logits is an ordinary network of p inputs. Where its bounds over a box prove nothing
the box is halved, so that with 2 parameters little is left open.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.certify.affine import LinearOp
from robustkit.certify.agreement import refuse_less_precision
from robustkit.certify.complete.verifier import Effort
from robustkit.certify.crown import crown_margins
from robustkit.certify.forward import forward_bounds
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import Box
from robustkit.certify.linear_bounds import bound_in_chunks
from robustkit.certify.linearized import Problem
from robustkit.certify.smoothing import Smoothed
from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.mixture import Mixed, proved_by_margins
from robustkit.models.readiness import frozen

_BOXES = 2**10  # at most so many leaves for a point
_TOGETHER, _LOOKS = 16, 17
_SPARE = 1e-9  # relative: the box is widened by it, far more than float64 rounds θ by
_ANY = Threat("linf", 1.0, -1e6, 1e6)  # bounds read the norm alone where boxes are given


class _OfParameters(nn.Module):
    """θ [b, p] -> logits [b, k] of a model on one image, moved."""

    def __init__(self, model: nn.Module, parameters: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.move, self.model, self.shape = nn.Linear(parameters, prod(shape)), model, shape

    def forward(self, theta: Tensor) -> Tensor:
        logits: Tensor = self.model(self.move(theta).view(-1, *self.shape).clamp(0.0, 1.0))
        return logits


@dataclass(frozen=True)
class ParameterBounds:
    """CROWN over boxes of parameters in float64, widened by what a float32 evaluation rounds.

    A point is proved if every leaf is: at most `boxes` of them. It is given up as soon as the model
    errs on a lattice that is looked at first, or at the middle of a box.
    """

    graph: Graph
    move: nn.Linear
    shape: tuple[int, ...]
    threat: ParametricThreat
    boxes: int = _BOXES
    mixture: Mixed | None = None

    batch = 1
    method = "auto"

    @property
    def name(self) -> str:
        """With the number of boxes, where it is not the usual one."""
        return "auto" if self.boxes == _BOXES else f"auto(nodes={self.boxes})"

    def at(self, threat: Threat) -> ParameterBounds:
        """Return the same bounds for another threat model of the kind."""
        assert isinstance(threat, ParametricThreat)
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points every box of parameters is proved [b]."""
        rows = range(len(x))
        found = [self._prove(x[row : row + 1], y[row : row + 1]) for row in rows]
        return torch.tensor(found, device=x.device)

    def _prove(self, x: Images, y: Labels) -> bool:
        weight = self.threat.directions(x)[0].flatten(1).T
        with torch.no_grad():
            self.move.weight.copy_(weight)
            self.move.bias.copy_(x.double().flatten())
        whole = self._whole(x)
        if self._errs(_lattice(whole), y):
            return False
        scale, todo, leaves = whole.high - whole.low, whole, 1
        while len(todo.low):
            now = Box(*(part[:_TOGETHER] for part in todo))
            rest = Box(*(part[_TOGETHER:] for part in todo))
            label = y.expand(len(now.low))
            if self._errs((now.low + now.high) / 2, y):
                return False
            left = (~self._hold(now, label)).nonzero().flatten()
            leaves += len(left)
            if leaves > self.boxes:
                return False
            halves = _halved(Box(now.low[left], now.high[left]), scale)
            # The newest first: boxes that are hard to prove are where the model errs, if it does.
            todo = Box(*(torch.cat(pair) for pair in zip(halves, rest, strict=True)))
        return True

    def _whole(self, x: Images) -> Box:
        ends = torch.full((1, self.threat.size(x.shape[1:])), STEPS, device=x.device)
        low, high = self.threat.values(-ends), self.threat.values(ends)
        return Box(low - _SPARE * low.abs(), high + _SPARE * high.abs())

    def _errs(self, theta: Tensor, y: Labels) -> bool:
        """Whether the model errs at one of some parameters [b, p]: no bound can prove the point."""
        if self.mixture is not None:  # the graph is of a part of it
            return False
        return any(
            bool((self.graph.values(part)[-1].argmax(1) != y).any())
            for part in theta.split(4 * _TOGETHER)
        )

    def _hold(self, box: Box, y: Labels) -> Mask:
        lower, boxes = forward_bounds(self.graph, box, y)
        holds = proved_by_margins(lower, y, self.mixture)
        rows = (~holds).nonzero().flatten()
        if len(rows):
            known = [Box(low[rows], high[rows]) for low, high in boxes]
            found = torch.maximum(self._crown(known, y[rows], lower[rows]), lower[rows])
            holds[rows] = proved_by_margins(found, y[rows], self.mixture)
        return holds

    def _crown(self, boxes: list[Box], y: Labels, lower: Tensor) -> Tensor:
        """Bound by a backward pass the margins to the classes that are open in any of the boxes."""
        middle = (boxes[0].low + boxes[0].high) / 2
        if not isinstance(self.graph.nodes[-1].op, LinearOp) or self.mixture is not None:
            return crown_margins(self.graph, middle, y, _ANY, rounding=True, boxes=boxes)
        others = torch.arange(lower.shape[1], device=y.device) != y[:, None]
        open_ = ((lower <= 0) & others).any(0).nonzero().flatten()
        eye = torch.eye(lower.shape[1], dtype=lower.dtype, device=y.device)
        problem = Problem(self.graph, boxes, middle, _ANY, True, {})
        # In float32, whose rounding the bound accounts for, at half the time.
        wanted = (eye[y][:, None] - eye[open_][None]).float()
        found = bound_in_chunks(problem, len(boxes) - 1, wanted)
        return lower.index_copy(1, open_, found).where(others, 0.0)


def _lattice(box: Box) -> Tensor:
    """Return points of one box [1, p]: 17 values of each of two parameters, else the corners."""
    count = _LOOKS if box.low.shape[1] <= 2 else 2
    line = torch.linspace(0, 1, count, dtype=box.low.dtype, device=box.low.device)
    shares = torch.cartesian_prod(*[line] * box.low.shape[1]).view(-1, box.low.shape[1])
    return box.low + shares * (box.high - box.low)


def _halved(box: Box, scale: Tensor) -> Box:
    """Halve every box at its widest side, in shares of the whole: [b, p] -> [2 b, p]."""
    side = ((box.high - box.low) / scale).argmax(1, keepdim=True)
    middle = (box.low + box.high) / 2
    cut = torch.zeros_like(middle, dtype=torch.bool).scatter(1, side, True)
    below = Box(box.low, torch.where(cut, middle, box.high))
    above = Box(torch.where(cut, middle, box.low), box.high)
    return Box(*(torch.cat(pair) for pair in zip(below, above, strict=True)))


def parameter_bounds(
    model: Any,
    shape: tuple[int, ...],
    threat: ParametricThreat,
    method: str,
    *,
    randomized: bool = False,
) -> ParameterBounds | None:
    """Return the certificate of a network, or of a mixture by its robust part.

    None where a first look asks for it ("quick"), or where `method` is "auto" and none is known.

    Args:
        method: "auto", or `auto(nodes=N)` with the most boxes of a point.

    Raises:
        UsageError: for other methods.
    """
    effort = Effort.parse(method)
    if method == "quick":
        return None
    if effort.method != "auto":
        raise threat.refusal(f"a certificate (--certify {method})")
    if "seconds" in method:
        raise UsageError(
            f"{threat}: --certify {method} counts seconds, and this certificate counts boxes of "
            "parameters: give --certify auto(nodes=1024)."
        )
    mixture = model if isinstance(model, Mixed) else None
    base = mixture.certificate_parts()[0] if mixture else model
    known = isinstance(base, nn.Module) and not isinstance(base, Smoothed)
    if not known or (randomized and mixture is None):
        return None
    try:
        refuse_less_precision(base, shape)
        moved = _OfParameters(frozen(duplicate(base)), threat.size(shape), shape).double()
        graph = trace(moved, (threat.size(shape),))
    except UsageError:
        return None
    boxes = int(min(effort.nodes, 2**20)) if "nodes" in method else _BOXES
    return ParameterBounds(graph, moved.move, shape, threat, boxes, mixture)
