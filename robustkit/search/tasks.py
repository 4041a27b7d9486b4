"""What the engine of slots and the judge of its candidates say to each other; a slot's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch

from robustkit.core.types import Images, Integers, Labels, Mask, Scalars
from robustkit.search.protocol import Job, Tasks


class Work(NamedTuple):
    """One task: a job of the search on a point of the data set."""

    point: int
    job: int


FREE = Work(-1, -1)


class Outcome(NamedTuple):
    """How a task ended, and what it cost in passes of one point through the model.

    `spent`: the budget was used up without success. Otherwise the point was broken, by this task or
    another. `closest`: how near it came, where the search can tell; higher is nearer.
    """

    work: Work
    spent: bool
    forwards: int
    backwards: int
    closest: float | None = None


class CandidateJudge(Protocol):
    """Decides whether a candidate breaks its point, and writes down how tasks ended."""

    def tasks(self, work: Sequence[Work]) -> Tasks:
        """Return the inputs of fresh slots, on the engine's device."""
        ...

    def confirm(self, work: Sequence[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        """Say which candidates are confirmed; the others are dropped, and their search goes on."""
        ...

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write down the tasks that ended, and with them the candidates that were confirmed."""
        ...


class QueuedJudge(CandidateJudge, Protocol):
    """One that also holds the queue, and what keys the random streams of other libraries.

    Attributes:
        name: canonical spec of the attack.
        seed: of the run.
    """

    name: str
    seed: int

    def queue(self) -> Iterator[Work]:
        """Yield every open task."""
        ...

    def stray(self, moved: int, outside: int) -> None:
        """Note how many candidates there were, and how many of them lie outside."""
        ...


class SlotState(NamedTuple):
    """What the engine keeps per slot, beside the tasks and the search's own state.

    Attributes:
        live: the slot holds a task.
        has_candidate: `candidate` fools the search's model and lies in the threat model.
        undefined: the model answered with NaN or infinite logits inside the threat model.
        forwards, backwards: passes spent on the task.
        distance, confirmed_distance: of `candidate`, and of the closest one that the judge
            confirmed; kept where the nearest success is sought.
        answered, start, best: of a search with `patience`, queries so far, and how near to a
            success they had come at the first look, and by now.
        looked: queries at the first look.
    """

    candidate: Images
    live: Mask
    has_candidate: Mask
    undefined: Mask
    forwards: Integers
    backwards: Integers
    distance: Scalars
    confirmed_distance: Scalars
    answered: Integers
    start: Scalars
    best: Scalars
    looked: Integers

    @classmethod
    def open(cls, x: Images) -> SlotState:
        """Return the state of fresh slots at the clean points `x`."""
        no = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        zero = torch.zeros(len(x), dtype=torch.long, device=x.device)
        far = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        return cls(x.clone(), ~no, no, no.clone(), zero, zero.clone(), far, far.clone(),
                   zero.clone(), -far, -far, zero.clone())  # fmt: skip


def fresh_tasks(
    x: Images,
    y: Labels,
    ranked: Labels,
    point: Labels,
    jobs: Sequence[Job],
    name: str,
    seed: int,
) -> Tasks:
    """Make the tasks of one job per point.

    Args:
        ranked: classes by falling clean logit, one row per point [b, m].
        point: identity of each point in its data set [b].
        name: of the attack; with the job it names the random stream.
    """
    rank = torch.tensor([job.rank for job in jobs], device=x.device)
    target = ranked.gather(1, rank[:, None]).squeeze(1)
    task = torch.tensor([job.key(name) for job in jobs], device=x.device)
    seeds = torch.full_like(task, seed)
    aimed = torch.where(rank > 0, target, -1)
    return Tasks(x, y, ranked, aimed, seeds, point.to(x.device), task)
