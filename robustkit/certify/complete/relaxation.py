"""The backward pass of branch and bound: one linear objective per row, every row its own domain.

The same bound as linear_bounds.py, for another shape of work: hundreds of rows that differ in boxes
and multipliers, dozens of passes each. ReLUs lie side by side in one flat tensor [b, width], and
the gradient comes from one forward pass of the relaxed network (`ascend`), not from autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.affine import AverageOp, ConvOp, LinearOp, ScaleOp
from robustkit.certify.complete.cuts import Cuts
from robustkit.certify.complete.transposed import Transposed
from robustkit.certify.graph import Graph
from robustkit.certify.operations import Input, Join, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images

_WATER = 12  # steps that let features reach the box, in l2
_LINEAR = (Input, Sum, Join, LinearOp, ConvOp, ScaleOp, AverageOp)


class Domain(NamedTuple):
    """Where the objectives of some rows are bounded; one row may stand for all of them (b = 1).

    Attributes:
        low, high: intervals of all inputs of ReLUs [b, width].
        x_low, x_high: box of the inputs [b, *f].
        x: clean points [b, *f], the center of l1 and l2 balls.
        slack: by node, how much a unit of |coefficient| of its value loses to rounding [b, *shape];
            empty where the bound need not hold for a float32 evaluation.
        cuts: what the signs of ReLUs fulfil at the inputs that matter.
    """

    low: Tensor
    high: Tensor
    x_low: Tensor
    x_high: Tensor
    x: Images
    slack: dict[int, Tensor]
    cuts: Cuts | None = None

    def to(self, dtype: torch.dtype) -> Domain:
        """Return the domains in another precision, without slack."""
        return Domain(self.low.to(dtype), self.high.to(dtype), self.x_low.to(dtype),
                      self.x_high.to(dtype), self.x.to(dtype), {})  # fmt: skip


class Lines(NamedTuple):
    """chord · v + intercept above a ReLU; α · v below it, floor ≤ α ≤ ceiling [b, width]."""

    chord: Tensor
    intercept: Tensor
    floor: Tensor
    ceiling: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> Lines:
        """Return the lines over [low, high]; both are exact where the sign is known."""
        # sign and clamp in place of comparisons: masks of bool cost several times as much.
        floor = low.sign().add_(1).clamp_(0, 1)
        ceiling = torch.maximum(high.sign().clamp_(0, 1), floor)
        open_ = ceiling - floor
        chord = floor + open_ * (high / (high - low).clamp_min(1e-30)).clamp(0, 1)
        return cls(chord, -open_ * chord * low, floor, ceiling)

    def clamp(self, alpha: Tensor) -> Tensor:
        """Return the slopes nearest to `alpha` that are sound."""
        return torch.maximum(torch.minimum(alpha, self.ceiling), self.floor)


class Pass(NamedTuple):
    """What a backward pass leaves: `bound` [b], the minimizer, and coefficients by ReLU node."""

    bound: Tensor
    minimizer: Tensor
    at_input: Tensor
    through: dict[int, tuple[Tensor, Tensor, Tensor]]


class Ascent(NamedTuple):
    """Inputs and outputs of ReLUs in the relaxed network: the derivatives by what is added there.

    `slopes`: the derivatives by α [b, width]; `output`: the value of the node that was bounded.
    """

    inputs: Tensor
    outputs: Tensor
    slopes: Tensor
    output: Tensor


class Relaxation:
    """A network of affine operations, sums, concatenations and ReLUs, read for many passes."""

    def __init__(self, graph: Graph, threat: Threat) -> None:
        self.graph, self.threat, self.last = graph, threat, len(graph.nodes) - 1
        self.spans: dict[int, slice] = {}
        self.width = 0
        for index in sorted(set(graph.relu_inputs())):
            size = graph.nodes[index].shape
            units = int(torch.Size(size).numel())
            self.spans[index] = slice(self.width, self.width + units)
            self.width += units
        # The ReLU of each input: several may share one, and cuts count it once.
        self.outlets = {
            node.inputs[0]: at
            for at, node in enumerate(graph.nodes)
            if isinstance(node.op, Activation)
        }
        self._pulls = [self._pull(node.op) for node in graph.nodes]

    @staticmethod
    def obstacle(graph: Graph) -> str | None:
        """Return the name of an operation that is neither affine nor a ReLU, if there is one."""
        names = (
            op.name if isinstance(op, Activation) else type(op).__name__
            for op, _, _ in graph.nodes
            if not isinstance(op, _LINEAR)
        )
        return next((name for name in names if name != "relu"), None)

    def _pull(self, op: object) -> Callable[[Tensor], Tensor]:
        if isinstance(op, ConvOp) and Transposed.applies(op):
            return Transposed(op)
        return lambda a: op.pull(a[:, None])[:, 0]  # type: ignore[attr-defined]

    def descend(
        self,
        domain: Domain,
        lines: Lines,
        alpha: Tensor,
        start: int,
        wanted: Tensor,
        added: Tensor | None = None,
        after: Tensor | None = None,
    ) -> Pass:
        """Bound `wanted` · (value of node `start`) + `added` · (inputs of ReLUs) from below.

        Args:
            wanted: [b, *shape of the node].
            added: [b, width]: multipliers of splits, or further parts of the objective.
            after: [b, width]: the same for the outputs of ReLUs.
        """
        carried, total = {start: wanted}, wanted.new_zeros(len(wanted))
        through: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for at in range(start, 0, -1):
            a, (op, inputs, shape) = carried.pop(at, None), self.graph.nodes[at]
            outlet = after is not None and inputs and self.outlets.get(inputs[0]) == at
            if a is None and outlet:  # nothing behind it, but cuts
                a = wanted.new_zeros(len(wanted), *shape)
            if a is None:
                continue
            if added is not None and at in self.spans and at < start:
                a = a + added[:, self.spans[at]].view_as(a)
            if at in domain.slack:
                total = total - (a.abs() * domain.slack[at]).flatten(1).sum(1)
            if isinstance(op, Activation):
                flat, span = a.flatten(1), self.spans[inputs[0]]
                if after is not None and outlet:
                    flat = flat + after[:, span]
                up = flat.clamp_min(0)
                mask = up.sign()
                slope = torch.lerp(lines.chord[:, span], alpha[:, span], mask)
                total = total + ((flat - up) * lines.intercept[:, span]).sum(1)
                through[at] = (flat, up, mask)
                parts = [slope.mul_(flat).view_as(a)]
            elif isinstance(op, Sum):
                parts = [a, op.sign * a]
            elif isinstance(op, Join):
                sizes = [self.graph.nodes[i].shape[op.axis - 1] for i in inputs]
                parts = list(a.split(sizes, dim=op.axis))
            else:
                total = total + op.offset(a[:, None])[:, 0]  # type: ignore[union-attr]
                parts = [self._pulls[at](a)]
            for source, part in zip(inputs, parts, strict=True):
                carried[source] = carried[source] + part if source in carried else part
        a = carried[0]
        least, minimizer = self._least(domain, a)
        return Pass(total + least, minimizer, a, through)

    def _least(self, domain: Domain, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum of a · x over ball and box together, and where it is.

        linear_bounds.py takes the better of ball and box; a tree over ReLUs ends in linear
        programs, and closes only where their minima are those of the intersection.
        """
        flat, x = a.flatten(1), domain.x.flatten(1)
        size, down = flat.abs(), (flat.sign() + 1).clamp_(0, 1)
        # How far every feature can go against its coefficient.
        room = torch.lerp(domain.x_high.flatten(1) - x, x - domain.x_low.flatten(1), down)
        spare: Tensor | float = 0.0
        if self.threat.norm == "linf":
            step = room
        elif self.threat.norm == "l1":
            step = _largest_first(size, room, self.threat.eps)
        else:
            step, spare = _in_proportion(size, room, self.threat.eps)
        least = (flat * x).sum(1) - (size * step).sum(1) - spare
        return least, (x - flat.sign() * step).view_as(a)

    def ascend(self, run: Pass, lines: Lines, alpha: Tensor, start: int) -> Ascent:
        """Evaluate the relaxed network at the minimizer, for the derivatives of the bound."""
        values: dict[int, Tensor] = {}
        inputs = alpha.new_zeros(len(run.bound), alpha.shape[1])
        slopes, outputs = torch.zeros_like(inputs), torch.zeros_like(inputs)
        for at, (op, sources, _) in enumerate(self.graph.nodes[: start + 1]):
            if isinstance(op, Input):
                values[at] = run.minimizer
            elif isinstance(op, Activation):
                if at not in run.through:
                    continue
                v, span = values[sources[0]], self.spans[sources[0]]
                (_, up, mask), flat = run.through[at], v.flatten(1)
                slopes[:, span].addcmul_(up, flat)
                upper = torch.addcmul(lines.intercept[:, span], lines.chord[:, span], flat)
                values[at] = upper.lerp_(alpha[:, span] * flat, mask).view_as(v)
                if self.outlets[sources[0]] == at:
                    outputs[:, span] = values[at].flatten(1)
            elif all(i in values for i in sources):
                if isinstance(op, Sum):
                    values[at] = values[sources[0]] + op.sign * values[sources[1]]
                elif isinstance(op, Join):
                    values[at] = torch.cat([values[i] for i in sources], op.axis)
                else:
                    values[at] = op.forward(values[sources[0]])  # type: ignore[union-attr]
            span_here = self.spans.get(at)
            if span_here is not None and at in values and span_here.stop <= alpha.shape[1]:
                inputs[:, span_here] = values[at].flatten(1)
        return Ascent(inputs, outputs, slopes, values[start])


def _largest_first(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Maximize size · step over 0 ≤ step ≤ room with sum at most eps [b, d]: greedily."""
    order = size.argsort(dim=1, descending=True)
    room = room.expand_as(size).gather(1, order)
    before = room.cumsum(1) - room
    return torch.zeros_like(size).scatter(1, order, torch.minimum(eps - before, room).clamp_min(0))


def _in_proportion(size: Tensor, room: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Maximize size · step over 0 ≤ step ≤ room with ‖step‖₂ at most eps [b, d].

    The step is min(room, μ size). Any μ > 0 gives an upper bound of the maximum by duality, size ·
    step + (eps² − ‖step‖²) / 2μ; returned is the second term too. μ grows to its fixed point.
    """
    mu = eps / size.norm(dim=1, keepdim=True).clamp_min(1e-20)
    for _ in range(_WATER):
        full = (mu * size >= room).to(size.dtype)
        left = (eps**2 - (full * room).square().sum(1, keepdim=True)).clamp_min(0)
        free = ((1 - full) * size).square().sum(1, keepdim=True).clamp_min(1e-30)
        mu = torch.maximum(mu, (left / free).sqrt())
    step = torch.minimum(room, mu * size)
    return step, ((eps**2 - step.square().sum(1, keepdim=True)) / (2 * mu))[:, 0]
