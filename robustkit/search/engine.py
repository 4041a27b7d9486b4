"""The engine of slots: continuous batching of attack tasks.

A fixed number of slots is kept full from a queue of tasks (point, job). Every step evaluates the
model once for all slots. A slot ends when its search has used up its budget, when one of its
queries fools the model and the judge confirms it, or when another task broke its point. Freed slots
are filled from the queue, so that no pass is spent on a broken point and batches stay full.

The engine knows nothing of ledgers or suites: it asks a `CandidateJudge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from robustkit.core.device import out_of_memory
from robustkit.core.threat import Threat
from robustkit.core.types import Labels, Mask, Model, per_point
from robustkit.errors import RobustkitError, some
from robustkit.search.patience import hopeless, patience_of
from robustkit.search.protocol import Reply, Search, Tasks, place, select, surrogate_of
from robustkit.search.query import Goal, ask, passes
from robustkit.search.tasks import FREE, CandidateJudge, Outcome, SlotState, Work


@dataclass
class Engine:
    """Runs searches over queues of tasks.

    Attributes:
        model: callable from [s, *f] to logits [s, k]; must treat the rows of a batch independently.
        slots: how many tasks run at once; halved when memory runs out.
        stride: steps between two looks at the results; 1 on the CPU, more where a look stalls the
            device.
        half: the model computes in 16 bits, so that small gradients vanish unless they are scaled.
        steps, evaluated: batches and rows evaluated so far, free slots included.
        pulse: told `evaluated` between two looks at the results.
    """

    model: Model
    threat: Threat
    slots: int
    stride: int = 1
    half: bool = False
    steps: int = 0
    evaluated: int = 0
    pulse: Callable[[int], None] = lambda _: None

    def run(
        self, search: Search[Any], queue: Iterator[Work], pending: int, judge: CandidateJudge
    ) -> None:
        """Work through `queue`, of which `pending` is an upper bound of the length.

        Raises:
            RobustkitError: when the model returns logits that are not finite, or when memory does
                not suffice for a single slot.
        """
        # Without a graph to keep for the way back, more points fit.
        room = self.slots if search.uses_gradient else 4 * self.slots
        pool = self.slot_pool(self, search, queue, judge, max(1, min(room, pending)))
        pool.refill()
        while pool.work:
            # A GPU must be waited for whenever a result is read. AutoAttack's APGD does so two to
            # three times an iteration (counted: 2.3 nonzero() and 0.3 item()); here it is once in
            # `stride` steps, at the price of at most `stride` - 1 steps of a slot that is over.
            for _ in range(self.stride):
                pool.advance()
            pool.harvest()
            self.pulse(self.evaluated)
            pool.refill()

    @property
    def slot_pool(self) -> type[SlotPool]:
        """The kind of slots: what they do with a success."""
        return SlotPool

    def ask(self, search: Search[Any], state: Any, y: Labels) -> Reply:
        """Evaluate the model at `state.query`; see `robustkit.search.query.ask`."""
        self.steps += 1
        self.evaluated += len(state.query)
        return ask(self.model, search, state, Goal(self.threat.criterion, y), half=self.half)


class SlotPool:
    """The slots of one run. Row i of every tensor belongs to `work[i]`."""

    def __init__(
        self,
        engine: Engine,
        search: Search[Any],
        queue: Iterator[Work],
        judge: CandidateJudge,
        slots: int,
    ) -> None:
        self.engine, self.search, self.queue, self.judge = engine, search, queue, judge
        self.slots, self.queue_empty = slots, False
        self.retry: list[Work] = []
        self.work: list[Work] = []
        self.broken_points: set[int] = set()
        self.tasks: Tasks
        self.state: Any
        self.slot_state: SlotState

    def advance(self) -> None:
        """Evaluate the model at every slot's query and let the search step."""
        if not self.work:
            return
        slots, state, threat = self.slot_state, self.state, self.engine.threat
        # A candidate that waits for its verdict is not overwritten: the first one is judged, as
        # with a stride of 1.
        running = slots.live & ~state.done & ~slots.has_candidate
        try:
            reply = self.engine.ask(self.search, state, self.tasks.y)
            following = self.search.step(state, reply, threat)
        except RuntimeError as error:
            self._back_off(error)
            return
        forwards, backwards = passes(self.engine.model, self.search, state)
        # Counted per slot and on the device: free slots and those that wait cost their task none.
        slots.forwards.add_(running * forwards)
        if self.search.uses_gradient:
            slots.backwards.add_(running * backwards)
        defined = reply.logits.isfinite().all(1)
        self._keep_candidates(running & defined & (reply.logits.argmax(1) != self.tasks.y))
        if patience_of(self.search):
            over = hopeless(self.search, state, reply, self.tasks, slots, threat, running)
            following = following._replace(done=following.done | over)
        self.state = self._drop_undefined(running & ~defined, following)

    def harvest(self) -> None:
        """Judge the candidates, end what is over, and report it to the judge."""
        if not self.work or self._uneventful():
            return
        self._refuse_undefined()
        self._judge_candidates()
        slots = self.slot_state
        over = (slots.live & (self.state.done | slots.has_candidate)).tolist()
        ended = [
            row
            for row, work in enumerate(self.work)
            if work is not FREE and (over[row] or work.point in self.broken_points)
        ]
        if not ended:
            return
        self.judge.settle(self._outcomes(ended))
        for row in ended:
            self.work[row] = FREE
        index = torch.tensor(ended, device=slots.live.device)
        slots.live[index] = slots.has_candidate[index] = False

    def refill(self) -> None:
        """Put waiting tasks into free slots, or drop the free slots when none is waiting."""
        free = [row for row, work in enumerate(self.work) if work is FREE]
        wanted = self.slots - (len(self.work) - len(free))
        # A refill copies every tensor of the state, however few tasks it brings: up to one free
        # slot in 16 waits for more.
        if not self.queue_empty and (wanted > self.slots // 16 or wanted == self.slots):
            fresh = self._next_tasks(wanted)
            if fresh:
                self._start(fresh, free)
                return
        # Each new batch size lets the backend choose its kernels anew: shrink by an eighth or more.
        if self.queue_empty and len(free) > len(self.work) // 8:
            self._keep_rows([row for row, work in enumerate(self.work) if work is not FREE])

    def _uneventful(self) -> bool:
        """Whether no slot is over, has a candidate or undefined logits: nearly every step."""
        slots = self.slot_state
        over = slots.live & (self.state.done | slots.has_candidate)
        return not bool((over | slots.undefined).any())

    def _drop_undefined(self, undefined: Mask, following: Any) -> Any:
        """Note undefined logits inside the threat model; outside it, end the search there."""
        # Where a look is free (stride 1), nearly every step ends here. Elsewhere the masks are
        # computed unseen: `any()` would make the host wait for the device.
        if self.engine.stride == 1 and not bool(undefined.any()):
            return following
        inside = undefined & self.engine.threat.contains(self.state.query, self.tasks.x)
        self.slot_state.undefined.logical_or_(inside)
        return following._replace(done=following.done | undefined)

    def _keep_candidates(self, wrong: Mask) -> None:
        """Keep the queries that are misclassified and inside the threat model as candidates."""
        if self.engine.stride == 1 and not bool(wrong.any()):
            return
        slots, query = self.slot_state, self.state.query
        # A search that claims to stay inside is taken at its word here; the judge checks it.
        inside = self.search.stays_inside or self.engine.threat.contains(query, self.tasks.x)
        hit = wrong & inside
        if self.engine.stride == 1 and not bool(hit.any()):
            return
        slots.candidate.copy_(torch.where(per_point(hit, query), query, slots.candidate))
        slots.has_candidate.logical_or_(hit)

    def _judge_candidates(self) -> None:
        """Ask the judge about the candidates; where one is refused, the search goes on."""
        slots = self.slot_state
        rows = slots.has_candidate.nonzero().flatten()
        if not len(rows):
            return
        work, z = [self.work[row] for row in rows.tolist()], slots.candidate[rows]
        confirmed = self.judge.confirm(work, z, self.tasks.x[rows], self.tasks.y[rows])
        slots.has_candidate[rows] = torch.tensor(confirmed, device=rows.device)
        self.broken_points |= {w.point for w, ok in zip(work, confirmed, strict=True) if ok}

    def _outcomes(self, rows: list[int]) -> list[Outcome]:
        slots, index = self.slot_state, torch.tensor(rows, device=self.slot_state.live.device)
        counts = torch.stack([slots.forwards[index], slots.backwards[index]], 1).tolist()
        done, known = self.state.done[index].tolist(), getattr(self.state, "closest", None)
        if surrogate_of(self.search):  # near for the surrogate says little of the model
            known = None
        closest = [None] * len(rows) if known is None else known[index].tolist()
        return [
            Outcome(
                self.work[row],
                spent and self.work[row].point not in self.broken_points,
                passes[0],
                passes[1],
                near,
            )
            for row, spent, passes, near in zip(rows, done, counts, closest, strict=True)
        ]

    def _next_tasks(self, wanted: int) -> list[Work]:
        """Take up to so many tasks from the queue, without those of points that are broken.

        What this saves depends on the model. AutoAttack spends 10,666 passes on a point that stays
        robust and about 205 on one that APGD breaks at once, so that broken points are 1% of its
        work on a model with 60% robust accuracy, and nearly all of it on an undefended one.
        """
        fresh: list[Work] = []
        while len(fresh) < wanted:
            item = self.retry.pop() if self.retry else next(self.queue, None)
            if item is None:
                self.queue_empty = True
                break
            if item.point not in self.broken_points:
                fresh.append(item)
        return fresh

    def _start(self, fresh: list[Work], free: list[int]) -> None:
        """Start tasks in the free slots; the first call makes the slots."""
        tasks = self.judge.tasks(fresh)
        state, slots = self.search.start(tasks, self.engine.threat), SlotState.open(tasks.x)
        if len(fresh) > len(free):
            self._keep_rows([row for row, work in enumerate(self.work) if work is not FREE])
            free = []
        if not self.work:
            self.work, self.tasks, self.state, self.slot_state = fresh, tasks, state, slots
        elif not free:
            mine = self.tasks, self.state, self.slot_state
            pairs = zip(mine, (tasks, state, slots), strict=True)
            joined = [type(a)(*map(torch.cat, zip(a, b, strict=True))) for a, b in pairs]
            self.work, (self.tasks, self.state, self.slot_state) = self.work + fresh, joined
        else:  # the batch keeps its shape: fewer tasks than free slots leave some of them empty
            rows = torch.tensor(free[: len(fresh)], device=tasks.x.device)
            self.tasks = place(self.tasks, rows, tasks)
            self.state = place(self.state, rows, state)
            self.slot_state = place(self.slot_state, rows, slots)
            for row, item in zip(free, fresh, strict=False):
                self.work[row] = item

    def _keep_rows(self, rows: list[int]) -> None:
        """Drop all slots but `rows`."""
        self.work = [self.work[row] for row in rows]
        if rows:
            index = torch.tensor(rows, device=self.slot_state.live.device)
            self.tasks = select(self.tasks, index)
            self.state = select(self.state, index)
            self.slot_state = select(self.slot_state, index)

    def _refuse_undefined(self) -> None:
        if not (rows := self.slot_state.undefined.nonzero().flatten().tolist()):
            return
        points = sorted({self.work[row].point for row in rows})
        raise RobustkitError(
            f"the model returned NaN or infinite logits inside the threat model of points "
            f"{some(points)}. A verdict on such points is not defined; mend the model "
            "(overflow in half precision, the logarithm of zero, a division by zero?)."
        )

    def _back_off(self, error: RuntimeError) -> None:
        """Halve the slots when memory runs out; the tasks that lose their slot start again."""
        if not out_of_memory(error):
            raise error
        occupied = [row for row, work in enumerate(self.work) if work is not FREE]
        if len(self.work) <= 1:
            raise RobustkitError(
                "out of memory with a single point in flight; use a device with more memory"
            ) from error
        # The engine keeps the smaller number, or the next attack would run out again.
        self.slots = self.engine.slots = len(self.work) // 2
        # A task started anew finds the same: its random stream depends on seed, point and job.
        self.retry += [self.work[row] for row in occupied[self.slots :]]
        self.queue_empty = False
        self._keep_rows(occupied[: self.slots])
        torch.cuda.empty_cache()  # does nothing where there is none
