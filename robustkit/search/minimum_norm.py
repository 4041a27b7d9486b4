"""The engine in search of the nearest success: a slot that fools the model goes on.

A slot ends only when its search has used up its budget. The radius that counts as success is the
slot's own: it shrinks with every closer candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Mask, per_point
from robustkit.search.engine import Engine, SlotPool

# A candidate is judged when it is closer than the last confirmed one by this share, and the closest
# one at the end. A minimum-norm search may come closer at every step, and a judgment is a pass of
# its own: at 2%, each halving of the distance costs at most ln 2 / -ln 0.98 = 34 of them. What the
# judge refuses at the end has cost a slot no more than this share.
_STEP = 0.02


@dataclass
class MinimumNormEngine(Engine):
    """An engine whose judge is shown closer and closer candidates of the same task.

    The judge must keep the closest one. What a task finds depends on that task alone.
    """

    @classmethod
    def like(cls, engine: Engine, threat: Threat) -> MinimumNormEngine:
        """Return an engine that looks in `threat`, and else is as `engine`."""
        settings = {field.name: getattr(engine, field.name) for field in fields(engine)}
        return cls(**{**settings, "threat": threat})

    @property
    def slot_pool(self) -> type[SlotPool]:
        """Slots that go on after a success."""
        return MinimumNormSlotPool


class MinimumNormSlotPool(SlotPool):
    """Slots that keep the closest candidate and run to the end of their budget."""

    def _keep_candidates(self, wrong: Mask) -> None:
        """Keep the queries that are misclassified, in the threat model and closer than before."""
        if self.engine.stride == 1 and not bool(wrong.any()):
            return
        slots, threat = self.slot_state, self.engine.threat
        query, x = self.state.query, self.tasks.x
        distance = threat.distance(query, x)
        hit = wrong & threat.contains(query, x) & (distance < slots.distance)
        slots.candidate.copy_(torch.where(per_point(hit, query), query, slots.candidate))
        slots.distance.copy_(torch.where(hit, distance, slots.distance))

    def _uneventful(self) -> bool:
        """Never: a candidate does not end its slot here, and is due by its distance."""
        return False

    def _judge_candidates(self) -> None:
        """Ask the judge about the candidates that are much closer, or the last of their task."""
        slots = self.slot_state
        before = slots.confirmed_distance
        due = slots.live & torch.where(
            self.state.done, slots.distance < before, slots.distance < (1 - _STEP) * before
        )
        rows = due.nonzero().flatten()
        if not len(rows):
            return
        work = [self.work[row] for row in rows.tolist()]
        x, y, z = self.tasks.x[rows], self.tasks.y[rows], slots.candidate[rows]
        confirmed = torch.tensor(self.judge.confirm(work, z, x, y), device=rows.device)
        slots.confirmed_distance[rows] = torch.where(confirmed, slots.distance[rows], before[rows])
        # What is refused is dropped, so that the next closer candidate is judged and not this one
        # again. `has_candidate` stays False: a success does not end the slot.
        slots.distance[rows] = slots.confirmed_distance[rows]
