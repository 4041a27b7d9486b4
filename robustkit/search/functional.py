"""An attack as a plain function: the engine without a ledger and without verification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.core import arguments
from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model
from robustkit.errors import RobustkitError, some
from robustkit.registry import attacks, read_threat
from robustkit.search.engine import Engine
from robustkit.search.minimum_norm import MinimumNormEngine
from robustkit.search.protocol import Job, Search, Tasks, enumerates, suits
from robustkit.search.tasks import Outcome, Work, fresh_tasks


def attack(
    model: Model,
    x: Images,
    y: Labels,
    search: Search[Any] | str,
    threat: Threat | str,
    *,
    seed: int = 0,
    slots: int = 128,
    nearest: bool = False,
) -> Images:
    """Run a search on a batch as a plain function: no ledger, no verification.

    Args:
        model: callable from [b, *f] to logits [b, k]; used as it is.
        x: clean inputs [b, *f] in [0, 1]. Points that are misclassified come back unchanged, and
            those that the criterion of the threat model does not ask about.
        y: labels [b].
        search, threat: also in words: "pgd(steps=20)", "linf:8/255".
        nearest: use up the budget and return the closest success; else the first one ends it.

    Returns:
        One input per point [b, *f]: an adversarial one inside the threat model, else the clean one.

    Raises:
        RobustkitError: when the model returns NaN or infinite logits.
        UsageError: when the search does not support the threat model, or is not known.
    """
    return attack_points(model, x, y, search, threat, Draws(seed), slots=slots, nearest=nearest)


class Draws(NamedTuple):
    """What random draws depend on.

    Attributes:
        points: identity of each input [b], from 0 to 2³¹ − 1; by default its position in the batch.
    """

    seed: int = 0
    points: Sequence[int] | None = None


def attack_points(
    model: Model,
    x: Images,
    y: Labels,
    search: Search[Any] | str,
    threat: Threat | str,
    draws: Draws,
    *,
    slots: int = 128,
    nearest: bool = False,
) -> Images:
    """Run a search on inputs that have an identity, whatever the batch they come in; see `attack`.

    Raises:
        RobustkitError, UsageError: as `attack`.
    """
    search = attacks.build(search) if isinstance(search, str) else search
    threat = read_threat(threat) if isinstance(threat, str) else threat
    _refuse(model, x, y, search, threat)
    arguments.whole("seed", draws.seed, 0, arguments.SEEDS)
    slots = arguments.whole("slots", slots, 1)
    x = x.detach()
    with torch.no_grad():
        logits = model(x)
    if not bool(logits.isfinite().all()):
        rows = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        raise RobustkitError(
            f"the model returned NaN or infinite logits on the clean points {some(rows)}"
        )
    criterion = threat.criterion
    criterion.check(logits.shape[1])
    asked = torch.from_numpy(criterion.asked(y.numpy(force=True))).to(y.device)
    correct = asked & (criterion.clean(logits, y).argmax(1) == y)
    right = correct.nonzero().flatten().tolist()
    jobs = search.jobs(threat, criterion.classes(logits.shape[1]))
    ranked = criterion(logits, y).scatter(1, y[:, None], torch.inf).argsort(1, descending=True)
    judge = TrustingJudge(
        x, y, ranked, jobs, type(search).__name__, draws.seed, threat, draws.points
    )
    queue = (Work(point, job) for job in range(len(jobs)) for point in right)
    engine = (MinimumNormEngine if nearest else Engine)(model, threat, slots)
    engine.run(search, queue, len(right) * len(jobs), judge)
    return judge.found


def _refuse(model: Any, x: Any, y: Any, search: Any, threat: Any) -> None:
    """Refuse what cannot be attacked, before the model is asked."""
    if isinstance(model, type) or not callable(model):
        raise arguments.refused("model", "an nn.Module, or a function of images", model)
    if not isinstance(threat, Threat):
        raise arguments.refused("threat", "a robustkit.Threat", threat)
    if isinstance(search, type) or not hasattr(search, "jobs"):
        raise arguments.refused("search", "an attack, as registry.attacks.build makes it", search)
    if isinstance(threat, NamedThreat) and (enumerates(search) or not suits(search, threat)):
        raise threat.refusal("robustkit.attack")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise arguments.refused("x", "floating-point inputs [b, *f]", x)
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise arguments.refused("y", f"int64 labels [{len(x)}]", y)


class TrustingJudge:
    """Confirms every candidate, and keeps the closest one of each point."""

    def __init__(
        self,
        x: Images,
        y: Labels,
        ranked: Labels,
        jobs: Sequence[Job],
        name: str,
        seed: int,
        threat: Threat,
        points: Sequence[int] | None = None,
    ) -> None:
        self.x, self.y, self.ranked, self.jobs = x, y, ranked, jobs
        self.name, self.seed, self.threat, self.found = name, seed, threat, x.clone()
        known = range(len(x)) if points is None else points
        self.points = torch.tensor(list(known), dtype=torch.int64, device=x.device)
        self.distance = [float("inf")] * len(x)

    def tasks(self, work: Sequence[Work]) -> Tasks:
        index = torch.tensor([item.point for item in work], device=self.x.device)
        chosen = [self.jobs[item.job] for item in work]
        return fresh_tasks(
            self.x[index], self.y[index], self.ranked[index], self.points[index], chosen,
            self.name, self.seed,
        )  # fmt: skip

    def confirm(self, work: Sequence[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        distance = self.threat.distance(z, x).tolist()
        for row, (item, length) in enumerate(zip(work, distance, strict=True)):
            if length < self.distance[item.point]:
                self.distance[item.point], self.found[item.point] = length, z[row]
        return [True] * len(work)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        pass
