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

# A candidate is verified when it undercuts the last verified one by this share, and the closest
# one at the end: what the referee refuses then has cost a slot no more than that.
_STEP = 0.02


@dataclass
class MinimumNormEngine(Engine):
    """An engine whose referee hears of closer and closer candidates of the same task.

    The referee must keep the closest one. What a task finds depends on that task alone.
    """

    @classmethod
    def like(cls, engine: Engine, threat: Threat) -> MinimumNormEngine:
        """Return an engine that looks in `threat`, and else is as `engine`."""
        settings = {field.name: getattr(engine, field.name) for field in fields(engine)}
        return cls(**{**settings, "threat": threat})

    @property
    def floor(self) -> type[SlotPool]:
        """Slots that go on after a success."""
        return MinimumNormSlotPool


class MinimumNormSlotPool(SlotPool):
    """Slots that keep the closest candidate and run to the end of their budget."""

    def _catch(self, wrong: Mask) -> None:
        """Keep the queries that are misclassified, in the threat model and closer than before."""
        if self.engine.stride == 1 and not bool(wrong.any()):
            return
        query, x, threat = self.state.query, self.tasks.x, self.engine.threat
        distance = threat.distance(query, x)
        hit = wrong & threat.contains(query, x) & (distance < self.books.reach)
        kept = torch.where(per_point(hit, query), query, self.books.candidate)
        self.books.candidate.copy_(kept)
        self.books.reach.copy_(torch.where(hit, distance, self.books.reach))

    def _judge(self) -> None:
        """Ask the referee about the candidates that are much closer, or the last of their task."""
        books = self.books
        due = books.live & torch.where(
            self.state.done, books.reach < books.sure, books.reach < (1 - _STEP) * books.sure
        )
        rows = due.nonzero().flatten()
        if not len(rows):
            return
        work = [self.work[row] for row in rows.tolist()]
        x, y, z = self.tasks.x[rows], self.tasks.y[rows], books.candidate[rows]
        stands = torch.tensor(self.referee.confirm(work, z, x, y), device=rows.device)
        books.sure[rows] = torch.where(stands, books.reach[rows], books.sure[rows])
        books.reach[rows] = books.sure[rows]  # what does not stand is forgotten
