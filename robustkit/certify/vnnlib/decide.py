"""Whether a property has a counterexample: bounds, a search, and boxes cut in halves."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.certify.vnnlib.query import Array, Query
from robustkit.certify.vnnlib.specification import CUBE, Group, Specification, grouped
from robustkit.core.rng import generator
from robustkit.errors import UsageError
from robustkit.models.adversarial_training import perturb
from robustkit.models.readiness import frozen

Verdict = Literal["sat", "unsat", "unknown", "timeout"]
_HALVED = 50  # inputs that may vary: with more of them halving boxes leads nowhere
_RESTARTS, _TRIED = 16, 4
_MET = 1e9  # how far a disjunct without constraints is met
_ROUNDS = (10, 50, 100)  # steps of the searches


class Answer(NamedTuple):
    """sat: x [n] is a counterexample, y [k] what the runtime answers. unsat: there is none."""

    verdict: Verdict
    x: Array | None = None
    y: Array | None = None
    reason: str = ""


class Runs(Protocol):
    """The network as its runtime computes it: one input [n] -> its outputs [k]."""

    def answer(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...


class Refutes(Protocol):
    """Tells whether every disjunct of a group is refuted over the box of its specification.

    Or returns an input [n] that is believed to meet one: the runtime decides. `spec` computes in
    float32, `graph` is it in float64; its inputs are those of `CUBE` around 0.
    """

    def __call__(
        self, spec: Specification, graph: Graph, group: Group, seconds: float
    ) -> bool | Tensor: ...


def by_bounds(
    spec: Specification,
    graph: Graph,
    group: Group,
    seconds: float,
    *,
    iterations: tuple[int, ...] = (0, 20),
) -> bool:
    """Try intervals, CROWN and alpha-CROWN, in order of cost, until one refutes the group."""
    end = time.monotonic() + seconds
    x = torch.zeros(1, *graph.nodes[0].shape, dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.long)
    boxes = intervals(graph, input_box(x, CUBE), rounding=True)
    if group.refuted(_margins(margins_of(graph, boxes, y, rounding=True))):
        return True
    for count in iterations:
        if time.monotonic() > end:
            return False
        lower = crown_margins(
            graph, x, y, CUBE, intermediate="crown", rounding=True, iterations=count
        )
        if group.refuted(_margins(lower)):
            return True
    return False


def decide(
    network: nn.Module,
    runtime: Runs,
    query: Query,
    seconds: float,
    *,
    seed: int = 0,
    refuters: Sequence[Refutes] = (by_bounds,),
) -> Answer:
    """Answer a property within about `seconds`.

    A counterexample counts only as the runtime answers it, inside the box as it is written and with
    every constraint met exactly; "unsat" rests on bounds in float64 that hold for a float32
    evaluation too.

    Args:
        network: [b, n] -> [b, k], what `runtime` computes.
        refuters: the first before the longer search, the others behind it; a complete verifier
            goes there.

    Raises:
        UsageError: for an input without bounds, or shapes that are not the network's.
    """
    deadline = time.monotonic() + seconds
    _refuse_unbounded(query)
    reason, late = "", False
    for group in grouped(query.disjuncts):
        one = _Search(network, runtime, group, refuters, deadline, seed)
        found = one.run()
        if found.verdict == "sat":
            return found
        reason = reason or found.reason
        late = late or found.verdict == "timeout"
        if found.verdict == "unknown" and not reason:
            reason = "the bounds are too loose"
    if reason:
        return Answer("timeout" if late else "unknown", reason=reason)
    return Answer("unsat")


class _Search:
    """The search over one group of disjuncts."""

    def __init__(
        self,
        network: nn.Module,
        runtime: Runs,
        group: Group,
        refuters: Sequence[Refutes],
        deadline: float,
        seed: int,
    ) -> None:
        self.runtime, self.group, self.refuters = runtime, group, refuters
        self.deadline, self.seed, self.draws = deadline, seed, 0
        rows, limits, n = group.rows, group.limits, len(group.low)
        self.spec = Specification(network, rows, limits, n)
        self.exact = copy.deepcopy(self.spec).double()
        for one in (self.spec, self.exact):
            frozen(one)
        # Class 0 is a constraint of none.
        self.members = torch.from_numpy(np.pad(group.members, ((0, 0), (1, 0))))

    def run(self) -> Answer:
        """Search, bound, and then halve the box as long as time allows."""
        low, high = self.group.low, self.group.high
        self._place(low, high)
        if found := self._attack(low, high, _ROUNDS[0]):
            return found
        try:
            graph = trace(self.exact, low.shape)
        except UsageError as error:
            return self._searched(low, high) or Answer("unknown", reason=str(error))
        for number, refutes in enumerate(self.refuters):
            told = refutes(self.spec, graph, self.group, self._left())
            if told is True:
                return Answer("unsat")
            u = told.double().numpy() if isinstance(told, Tensor) else None
            if u is not None and (found := self._replayed(_at(u, low, high))):
                return found
            if not number and (found := self._searched(low, high)):
                return found
        if int((high > low).sum()) > _HALVED:
            late = time.monotonic() > self.deadline
            return Answer("timeout" if late else "unknown", reason="the bounds are too loose")
        return self._halve(graph, low, high)

    def _halve(self, graph: Graph, low: Array, high: Array) -> Answer:
        """Cut the box in two along the input that matters most, depth first."""
        boxes = self._halves(low, high)
        while boxes:
            if time.monotonic() > self.deadline:
                return Answer("timeout", reason="the time was up")
            low, high = boxes.pop()
            self._place(low, high)
            if found := self._attack(low, high, 1, restarts=1):
                return found
            # A second half costs less than the slopes of alpha-CROWN.
            if by_bounds(self.spec, graph, self.group, self._left(), iterations=(0,)):
                continue
            if float((high - low).max()) < 1e-7:  # below what float32 tells apart
                return Answer("unknown", reason="a constraint holds with equality")
            boxes += self._halves(low, high)
        return Answer("unsat")

    def _halves(self, low: Array, high: Array) -> list[tuple[Array, Array]]:
        u = torch.zeros(1, len(low), dtype=torch.float64, requires_grad=True)
        # In units of half the box, so that width and slope count together.
        (slope,) = torch.autograd.grad(self._worst(self.exact(u)).sum(), u)
        weight = slope[0].abs().numpy() + 1e-6 * (high - low)
        axis = int(np.where(high > low, weight + 1e-300, -1.0).argmax())
        left, right = high.copy(), low.copy()
        left[axis] = right[axis] = (low[axis] + high[axis]) / 2
        return [(low, left), (right, high)]

    def _worst(self, logits: Tensor) -> Tensor:
        """Return how far each disjunct is met by its worst constraint [b, d]."""
        return logits[:, None].masked_fill(~self.members, _MET).amin(2)

    def _searched(self, low: Array, high: Array) -> Answer | None:
        """Search longer, with several restarts."""
        for steps in _ROUNDS[1:]:
            if time.monotonic() > self.deadline:
                return None
            if found := self._attack(low, high, steps):
                return found
        return None

    def _attack(
        self, low: Array, high: Array, steps: int, restarts: int = _RESTARTS
    ) -> Answer | None:
        """Ascend the worst constraint of every disjunct, from the middle and from random points."""
        count = len(self.group.disjuncts)
        chosen = torch.arange(count).repeat(restarts)
        middle = torch.zeros(count * restarts, len(low))

        def loss(logits: Tensor) -> Tensor:
            return self._worst(logits).gather(1, chosen[:, None]).sum()

        self.draws += 1
        draw = generator(self.seed, 5, self.draws)
        ends = perturb(self.spec, middle, loss, CUBE, steps=steps, generator=draw)
        points = torch.cat([middle[:1], ends])
        with torch.no_grad():
            logits = self.spec(points)
            scores = self._worst(logits).amax(1)
        # The runtime may round otherwise; what is farther off it need not be asked about.
        near = -1e-3 * (1 + float(logits.abs().amax()))
        for place in scores.argsort(descending=True)[:_TRIED].tolist():
            if float(scores[place]) < near:
                break
            u = points[place].double().numpy()
            if found := self._replayed(_at(u, low, high)):
                return found
        return None

    def _replayed(self, x: Array) -> Answer | None:
        """Return the answer if the runtime confirms the counterexample.

        What is written down lies in the box as written; the runtime is given its float32 value.
        """
        nearest = x.astype(np.float32).astype(np.float64)
        x = np.clip(nearest, self.group.low, self.group.high)
        y = self.runtime.answer(x.astype(np.float32)).astype(np.float64)
        if np.isfinite(y).all() and any(one.holds(x, y) for one in self.group.disjuncts):
            return Answer("sat", x, y)
        return None

    def _place(self, low: Array, high: Array) -> None:
        self.spec.place(low, high)
        self.exact.place(low, high)

    def _left(self) -> float:
        return self.deadline - time.monotonic()


def _at(u: Array, low: Array, high: Array) -> Array:
    """Return the input of a box at a place of `CUBE`."""
    return (low + high) / 2 + u * (high - low) / 2


def _margins(lower: Tensor) -> Array:
    """Return the margins of class 0 over the others [m]."""
    return np.asarray(lower[0, 1:].detach().cpu().numpy(), dtype=np.float64)


def _refuse_unbounded(query: Query) -> None:
    n = query.input.size
    for one in query.disjuncts:
        for side, bound in (("lower", one.low), ("upper", one.high)):
            if not np.isfinite(bound).all():
                name = query.labels[int(np.isinf(bound).argmax())]
                raise UsageError(
                    f"expected a bounded input, got no {side} bound of {name} in one of the "
                    f"alternatives: assert one for each of the {n} inputs."
                )
