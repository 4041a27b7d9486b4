"""The engine of slots: continuous batching of attack tasks.

A fixed number of slots is kept full from a queue of tasks (point, job). Every step evaluates the
model once for all slots. A slot ends when its search has used up its budget, when one of its
queries fools the model and the referee confirms it, or when a sibling task took its point. Freed
slots are filled from the queue, so that no pass is spent on a fallen point and batches stay full.

The engine knows nothing of ledgers or suites: it asks a `CandidateJudge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Mask, Model, per_point
from robustkit.errors import RobustkitError, some
from robustkit.search.protocol import Reply, Search, Tasks, place, select, surrogate_of
from robustkit.search.query import ask, passes
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
    """

    model: Model
    threat: Threat
    slots: int
    stride: int = 1
    half: bool = False
    steps: int = 0
    evaluated: int = 0

    def run(
        self, search: Search[Any], queue: Iterator[Work], pending: int, referee: CandidateJudge
    ) -> None:
        """Work through `queue`, of which `pending` is an upper bound of the length.

        Raises:
            RobustkitError: when the model returns logits that are not finite, or when memory does
                not suffice for a single slot.
        """
        # Without a graph to keep for the way back, more points fit.
        room = self.slots if search.uses_gradient else 4 * self.slots
        floor = self.floor(self, search, queue, referee, max(1, min(room, pending)))
        floor.refill()
        while floor.work:
            for _ in range(self.stride):
                floor.advance()
            floor.harvest()
            floor.refill()

    @property
    def floor(self) -> type[SlotPool]:
        """What its slots do with a success."""
        return SlotPool

    def ask(self, search: Search[Any], state: Any) -> Reply:
        """Evaluate the model at `state.query`; see `robustkit.search.query.ask`."""
        self.steps += 1
        self.evaluated += len(state.query)
        return ask(self.model, search, state, half=self.half)


class SlotPool:
    """The slots of one run. Row i of every tensor belongs to `work[i]`."""

    def __init__(
        self,
        engine: Engine,
        search: Search[Any],
        queue: Iterator[Work],
        referee: CandidateJudge,
        slots: int,
    ) -> None:
        self.engine, self.search, self.queue, self.referee = engine, search, queue, referee
        self.slots, self.dry = slots, False
        self.retry: list[Work] = []
        self.work: list[Work] = []
        self.fallen: set[int] = set()
        self.tasks: Tasks
        self.state: Any
        self.books: SlotState

    def advance(self) -> None:
        """Evaluate the model at every slot's query and let the search step."""
        if not self.work:
            return
        books, state = self.books, self.state
        running = books.live & ~state.done & ~books.caught
        try:
            reply = self.engine.ask(self.search, state)
            following = self.search.step(state, reply, self.engine.threat)
        except RuntimeError as error:
            self._back_off(error)
            return
        forwards, backwards = passes(self.search, state)
        books.forwards.add_(running * forwards)
        books.backwards.add_(running * backwards)
        defined = reply.logits.isfinite().all(1)
        self._catch(running & defined & (reply.logits.argmax(1) != self.tasks.y))
        self.state = self._drop_undefined(running & ~defined, following)

    def harvest(self) -> None:
        """Judge the candidates, end what is over, hand the books to the referee."""
        if not self.work:
            return
        self._refuse_broken()
        self._judge()
        over = (self.books.live & (self.state.done | self.books.caught)).tolist()
        ended = [
            row
            for row, work in enumerate(self.work)
            if work is not FREE and (over[row] or work.point in self.fallen)
        ]
        if not ended:
            return
        self.referee.settle(self._outcomes(ended))
        for row in ended:
            self.work[row] = FREE
        index = torch.tensor(ended, device=self.books.live.device)
        self.books.live[index] = False
        self.books.caught[index] = False

    def refill(self) -> None:
        """Put waiting tasks into free slots, or close ranks when none is waiting."""
        free = [row for row, work in enumerate(self.work) if work is FREE]
        wanted = self.slots - (len(self.work) - len(free))
        if not self.dry and (wanted > self.slots // 16 or wanted == self.slots):
            fresh = self._draw(wanted)
            if fresh:
                self._seat(fresh, free)
                return
        if self.dry and len(free) > len(self.work) // 8:
            self._keep([row for row, work in enumerate(self.work) if work is not FREE])

    def _drop_undefined(self, undefined: Mask, following: Any) -> Any:
        """Note undefined logits inside the threat model; outside it, end the search there."""
        if self.engine.stride == 1 and not bool(undefined.any()):
            return following
        inside = undefined & self.engine.threat.contains(self.state.query, self.tasks.x)
        self.books.broken.logical_or_(inside)
        return following._replace(done=following.done | undefined)

    def _catch(self, wrong: Mask) -> None:
        """Keep the queries that are misclassified and inside the threat model as candidates."""
        if self.engine.stride == 1 and not bool(wrong.any()):
            return
        query = self.state.query
        # A search that claims to stay inside is taken at its word here; the referee checks it.
        inside = self.search.stays_inside or self.engine.threat.contains(query, self.tasks.x)
        hit = wrong & inside
        self.books.candidate.copy_(torch.where(per_point(hit, query), query, self.books.candidate))
        self.books.caught.logical_or_(hit)

    def _judge(self) -> None:
        """Ask the referee about the candidates; where one does not stand, the search goes on."""
        rows = self.books.caught.nonzero().flatten()
        if not len(rows):
            return
        work = [self.work[row] for row in rows.tolist()]
        x, y, z = self.tasks.x[rows], self.tasks.y[rows], self.books.candidate[rows]
        stands = self.referee.confirm(work, z, x, y)
        self.books.caught[rows] = torch.tensor(stands, device=rows.device)
        self.fallen.update(item.point for item, ok in zip(work, stands, strict=True) if ok)

    def _outcomes(self, rows: list[int]) -> list[Outcome]:
        index = torch.tensor(rows, device=self.books.live.device)
        counts = torch.stack([self.books.forwards[index], self.books.backwards[index]], 1).tolist()
        done, known = self.state.done[index].tolist(), getattr(self.state, "closest", None)
        if surrogate_of(self.search):  # near for the stand-in says little of the model
            known = None
        closest = [None] * len(rows) if known is None else known[index].tolist()
        return [
            Outcome(
                self.work[row],
                spent and self.work[row].point not in self.fallen,
                passes[0],
                passes[1],
                near,
            )
            for row, spent, passes, near in zip(rows, done, counts, closest, strict=True)
        ]

    def _draw(self, wanted: int) -> list[Work]:
        fresh: list[Work] = []
        while len(fresh) < wanted:
            item = self.retry.pop() if self.retry else next(self.queue, None)
            if item is None:
                self.dry = True
                break
            if item.point not in self.fallen:
                fresh.append(item)
        return fresh

    def _seat(self, fresh: list[Work], free: list[int]) -> None:
        """Start tasks in the free slots; the first call opens the floor."""
        tasks = self.referee.tasks(fresh)
        state, books = self.search.start(tasks, self.engine.threat), SlotState.open(tasks.x)
        if len(fresh) > len(free):
            self._keep([row for row, work in enumerate(self.work) if work is not FREE])
            free = []
        if not self.work:
            self.work, self.tasks, self.state, self.books = fresh, tasks, state, books
        elif not free:
            pairs = zip((self.tasks, self.state, self.books), (tasks, state, books), strict=True)
            joined = [type(a)(*map(torch.cat, zip(a, b, strict=True))) for a, b in pairs]
            self.work, (self.tasks, self.state, self.books) = self.work + fresh, joined
        else:
            rows = torch.tensor(free[: len(fresh)], device=tasks.x.device)
            self.tasks = place(self.tasks, rows, tasks)
            self.state = place(self.state, rows, state)
            self.books = place(self.books, rows, books)
            for row, item in zip(free, fresh, strict=False):
                self.work[row] = item

    def _keep(self, rows: list[int]) -> None:
        """Drop all slots but `rows`."""
        self.work = [self.work[row] for row in rows]
        if rows:
            index = torch.tensor(rows, device=self.books.live.device)
            self.tasks = select(self.tasks, index)
            self.state = select(self.state, index)
            self.books = select(self.books, index)

    def _refuse_broken(self) -> None:
        if not bool(self.books.broken.any()):
            return
        rows = self.books.broken.nonzero().flatten().tolist()
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
        self.slots = self.engine.slots = len(self.work) // 2
        self.retry += [self.work[row] for row in occupied[self.slots :]]
        self.dry = False
        self._keep(occupied[: self.slots])
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Tell an allocation that failed, on any device, from other errors."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
