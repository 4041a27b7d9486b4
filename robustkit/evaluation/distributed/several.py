"""Several evaluations at once, each carried out by one worker of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from robustkit.core import files
from robustkit.errors import RobustkitError
from robustkit.evaluation.distributed.local_pool import LocalPool
from robustkit.evaluation.distributed.messages import (
    Evaluation,
    NoModel,
    Note,
    Result,
    Told,
)
from robustkit.evaluation.distributed.scheduler import TRIES, Scheduler, error_of
from robustkit.evaluation.watcher import Watcher, tell

_MOST = 4  # processes that are started unasked: each holds PyTorch and the data


def at_once(models: int) -> int:
    """Return how many evaluations run at once on a CPU, where nobody says.

    PyTorch has as many threads as there are cores for this process, unless it was told less.
    """
    return max(1, min(models, torch.get_num_threads(), _MOST))


@contextmanager
def start(workers: int, device: str, watcher: Watcher) -> Iterator[Scheduler]:
    """Start workers for whole evaluations; they end with the block.

    Each has its share of the threads of this process: idle threads of one evaluation spin, and
    would take the cores from the others. How a sum is rounded may depend on the number of threads.
    """
    threads = max(1, torch.get_num_threads() // workers)

    def pool() -> LocalPool:
        return LocalPool(NoModel("robustkit"), [device] * workers, threads)

    with Scheduler("robustkit", "", pool, watcher) as scheduler:
        scheduler.begin()
        yield scheduler


def carry_out(
    scheduler: Scheduler,
    evaluations: Sequence[Evaluation],
    watching: Callable[[str], Watcher],
    ended: Callable[[str, Any], None],
) -> dict[str, RobustkitError]:
    """Carry out evaluations, the first ones first; return the errors of those that failed.

    Args:
        watching: returns who hears what the evaluation of that name does.
        ended: is told the name of an evaluation that has ended, and what it returned, if anything.

    Raises:
        RobustkitError: when no worker can be had.
    """
    failures: dict[str, RobustkitError] = {}
    deaths = Counter[str]()

    def on_note(evaluation: Evaluation, note: Note) -> None:
        if isinstance(note, Told):
            tell(watching(evaluation.name), note.event, note.arguments)
        elif isinstance(note, Result):
            files.adopt(note.written)
            ended(evaluation.name, note.value)
            if note.failed is not None:
                failures[evaluation.name] = error_of(
                    note.failed,
                    f"{note.failed.message}. robustkit did not expect this; --debug shows where it "
                    "happened.",
                )

    def remaining(evaluation: Evaluation) -> Evaluation | None:
        """What its ledger holds is not done again; whoever dies each time is given up."""
        deaths[evaluation.name] += 1
        if deaths[evaluation.name] < TRIES:
            return evaluation
        failures[evaluation.name] = RobustkitError(
            f"its process died {TRIES} times. Code of the model may have ended it (os._exit), "
            "crashed, or used up the memory (--workers 1 evaluates one model at a time). What was "
            "found is kept: the same command goes on from there."
        )
        ended(evaluation.name, None)
        return None

    scheduler.run(evaluations, lambda evaluation: evaluation, on_note, remaining)
    return failures
