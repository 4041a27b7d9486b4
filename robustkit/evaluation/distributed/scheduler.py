"""The driver's side: hands parts of a stage to workers, and again where a worker has died."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.distributed.local_pool import Pool
from robustkit.evaluation.distributed.messages import Done, Failed, Lost, Note, Ready, Task
from robustkit.evaluation.watcher import Watcher

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
_PATIENCE = 300.0  # seconds without any worker: a cluster that adds a node takes minutes
# Deaths in a row that bring nothing. One can be a node that was taken away; three in a row are the
# work itself (too little memory, a crash in the model), and more tries would only repeat it.
TRIES = 3
_LOOK = 1.0  # seconds: Ctrl-C and budgets must not wait longer for a silent worker


@dataclass
class _Assignment(Generic[T]):
    """A part with a worker; so many in a row have died of it before it sent a note."""

    part: T
    deaths: int = 0


class Scheduler:
    """Workers that are started when there is work for them, and end with the `with` block.

    Args:
        name: of the model, for messages.
        note: what the record says of them.
        start: starts them.
    """

    def __init__(self, name: str, note: str, start: Callable[[], Pool], watcher: Watcher) -> None:
        self.note = note
        self._name, self._start, self._watcher = name, start, watcher
        self._pool: Pool | None = None
        self._idle: set[int] = set()
        self._slots = 0
        self._deaths = Counter[int]()  # of a place, since the last note from there
        self._told = set[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def begin(self) -> Pool:
        """Start the workers, if they are not; whoever has other work need not wait for them."""
        if self._pool is None:
            self._pool = self._start()
        return self._pool

    def part(self, points: int, unit: int = 1) -> int:
        """Return how many points to hand out at once, of so many in all.

        Two parts a worker even out that points differ in cost; more than two batches would only
        make a part longer.

        Args:
            unit: the number is a multiple of it.
        """
        pool = self._ready()
        # Small enough that the last worker does not run on alone, large enough to fill its slots.
        size = max(1, min(2 * self._slots, math.ceil(points / (2 * pool.size))))
        return unit * math.ceil(size / unit)

    def run(
        self,
        parts: Iterable[T],
        load: Callable[[T], Task],
        on_note: Callable[[T, Note], None],
        remaining: Callable[[T], T | None],
    ) -> None:
        """Have every part worked on; return when all are done.

        Args:
            load: makes the order of a part, when a worker is free for it.
            on_note: gets every note of the work.
            remaining: what is left of a part whose worker has died, after the notes it sent.

        Raises:
            RobustkitError: what a worker raised; also when no worker can be had, or one after the
                other dies without a result.
        """
        pool, waiting = self._ready(), deque(_Assignment(part) for part in parts)
        busy: dict[int, _Assignment[T]] = {}
        while waiting or busy:
            for place in sorted(self._idle)[: len(waiting)]:
                self._idle.remove(place)
                busy[place] = waiting.popleft()
                pool.submit(place, load(busy[place].part))
            for place, note in self._listen(pool):
                if isinstance(note, Lost):
                    # First in the queue again: the end of the stage waits for the oldest part.
                    waiting.extendleft(self._left(busy.pop(place, None), remaining, note))
                elif isinstance(note, Done):
                    del busy[place]
                    self._idle.add(place)
                else:
                    busy[place].deaths = self._deaths[place] = 0
                    on_note(busy[place].part, note)

    def _left(
        self, assignment: _Assignment[T] | None, remaining: Callable[[T], T | None], note: Lost
    ) -> list[_Assignment[T]]:
        """Return what another worker must do of what the dead one had."""
        left = None if assignment is None else remaining(assignment.part)
        if assignment is None or left is None:
            return []
        if assignment.deaths + 1 >= TRIES:
            raise _hopeless(self._name, note)
        return [_Assignment(left, assignment.deaths + 1)]

    def _ready(self) -> Pool:
        """Start the workers if they are not, and wait for the first."""
        pool, since = self.begin(), time.monotonic()
        while not self._slots:
            self._listen(pool)
            if time.monotonic() - since > _PATIENCE:
                raise RobustkitError(
                    f"none of {pool.size} workers was ready within {_PATIENCE:.0f} s. Are "
                    "the devices of the cluster in use? What was found is kept; the same command "
                    "goes on from there."
                )
        return pool

    def _listen(self, pool: Pool) -> list[tuple[int, Note]]:
        """Return notes of work; take care of those who come, go, and fail."""
        left: list[tuple[int, Note]] = []
        for place, note in pool.wait(_LOOK):
            if isinstance(note, Ready):
                self._admit(place, note)
            elif isinstance(note, Failed):
                raise error_of(note, f"{self._name}: a worker failed: {note.message}")
            else:
                if isinstance(note, Lost):
                    self._lose(place, note)
                left.append((place, note))
        return left

    def _admit(self, place: int, note: Ready) -> None:
        self._idle.add(place)
        self._slots = max(self._slots, note.slots)
        if note.torch != torch.__version__:
            self._say(f"a worker has PyTorch {note.torch}, this machine {torch.__version__}")

    def _lose(self, place: int, note: Lost) -> None:
        self._idle.discard(place)
        self._deaths[place] += 1
        if self._deaths[place] >= TRIES:
            raise _hopeless(self._name, note)
        self._say(f"a worker was lost ({note.reason}); its points go to another")

    def _say(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._watcher.note(f"{self._name}: {message}")


class _Remote(Exception):
    """The traceback of a worker."""


def error_of(note: Failed, unexpected: str) -> RobustkitError:
    """Return the error that one machine would raise, with the worker's traceback as its cause.

    Args:
        unexpected: what is said of an error that is not ours.
    """
    if note.code == UsageError.exit_code:
        error: RobustkitError = UsageError(note.message)
    elif note.code is not None:
        error = RobustkitError(note.message)
    else:
        error = RobustkitError(unexpected)
    error.__cause__ = _Remote(note.trace)
    return error


def _hopeless(name: str, note: Lost) -> RobustkitError:
    return RobustkitError(
        f"{name}: workers died {TRIES} times in a row without a result (the last: {note.reason}). "
        "Too little memory? A script that evaluates on several devices must do so under "
        '`if __name__ == "__main__":`. What was found is kept; the same command goes on from '
        "there, with one device if need be."
    )
