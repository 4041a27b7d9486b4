"""An attack as a plain function: what falls out of the engine when nobody keeps books."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from robustkit.engine import Engine
from robustkit.errors import RobustkitError, some
from robustkit.search import Job, Search, Tasks
from robustkit.slots import Outcome, Work, fresh_tasks
from robustkit.threat import Threat
from robustkit.types import Images, Labels, Model


def attack(
    model: Model,
    x: Images,
    y: Labels,
    search: Search[Any],
    threat: Threat,
    *,
    seed: int = 0,
    slots: int = 128,
) -> Images:
    """Run a search on a batch as a plain function: no ledger, no verification.

    Args:
        model: callable from [b, *f] to logits [b, k]; used as it is.
        x: clean inputs [b, *f] in [0, 1]. Points that are misclassified come back unchanged.
        y: labels [b].

    Returns:
        One input per point [b, *f]: an adversarial one inside the threat model, else the clean one.

    Raises:
        RobustkitError: when the model returns NaN or infinite logits.
        UsageError: when the search does not support the threat model.
    """
    x = x.detach()
    with torch.no_grad():
        logits = model(x)
    if not bool(logits.isfinite().all()):
        rows = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise RobustkitError(
            f"the model returned NaN or infinite logits on the clean points {some(rows)}"
        )
    right = (logits.argmax(1) == y).nonzero().flatten().tolist()
    jobs = search.jobs(threat, logits.shape[1])
    ranked = logits.scatter(1, y[:, None], torch.inf).argsort(1, descending=True)
    referee = _Plain(x, y, ranked, jobs, type(search).__name__, seed)
    queue = (Work(point, job) for job in range(len(jobs)) for point in right)
    Engine(model, threat, slots).run(search, queue, len(right) * len(jobs), referee)
    return referee.found


class _Plain:
    """A referee that believes every candidate."""

    def __init__(
        self, x: Images, y: Labels, ranked: Labels, jobs: Sequence[Job], name: str, seed: int
    ) -> None:
        self.x, self.y, self.ranked, self.jobs = x, y, ranked, jobs
        self.name, self.seed, self.found = name, seed, x.clone()

    def tasks(self, work: Sequence[Work]) -> Tasks:
        index = torch.tensor([item.point for item in work], device=self.x.device)
        chosen = [self.jobs[item.job] for item in work]
        return fresh_tasks(
            self.x[index], self.y[index], self.ranked[index], index, chosen, self.name, self.seed
        )

    def confirm(self, work: Sequence[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        self.found[torch.tensor([item.point for item in work], device=z.device)] = z
        return [True] * len(work)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        pass
