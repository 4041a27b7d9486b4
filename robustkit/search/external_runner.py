"""The small path beside the engine: an attack of another library, batch by batch.

Batches are cut from the open points in order, and each is written in one transaction: a run
that was killed goes on at the next batch, and its verdicts are those of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from robustkit.core.rng import task_key
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.search.external import Batch, ExternalAttack, candidates
from robustkit.search.pass_counter import PassCounter
from robustkit.search.tasks import Outcome, QueuedJudge, Work


def run_external(
    attack: ExternalAttack, model: Model, threat: Threat, classes: int, judge: QueuedJudge
) -> None:
    """Attack every open point; `judge` decides what the candidates are worth.

    Passes are counted inside the model: inputs forward, and inputs that a gradient reached.

    Raises:
        RobustkitError: when the library fails, or a point with a certificate is broken.
    """
    queue = judge.queue()
    counted = PassCounter(model).eval()
    while work := list(islice(queue, attack.batch_size)):
        before = counted.forwards, counted.backwards
        tasks = judge.tasks(work)
        seed = task_key(f"{judge.name}/{judge.seed}/{work[0].point}")
        batch = Batch(tasks.x, tasks.y, seed, classes)
        found = candidates(attack, counted, batch, threat, judge.name)
        moved = (found != tasks.x).flatten(1).any(1)
        inside = threat.contains(found, tasks.x)
        if attack.bounded(threat):
            judge.stray(int(moved.sum()), int((moved & ~inside).sum()))
        rows = (moved & inside).nonzero().flatten()
        claims = [work[row] for row in rows.tolist()]
        broken = set()
        if claims:
            confirmed = judge.confirm(claims, found[rows], tasks.x[rows], tasks.y[rows])
            broken = {item.point for item, ok in zip(claims, confirmed, strict=True) if ok}
        passes = counted.forwards - before[0], counted.backwards - before[1]
        judge.settle(_outcomes(work, broken, passes))


def _outcomes(work: Sequence[Work], broken: set[int], passes: tuple[int, int]) -> list[Outcome]:
    """Close the tasks of a batch. Its passes cannot be told apart: the first task carries them."""
    return [
        Outcome(item, item.point not in broken, *(passes if row == 0 else (0, 0)))
        for row, item in enumerate(work)
    ]
