"""What a first look may spend on proofs: a share of the time that the run itself has taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from robustkit.certify.certifier import Bounds
from robustkit.certify.complete.search import Budget
from robustkit.core.threat import Threat
from robustkit.evaluation.stages.judge import refuse_refuted_certificates
from robustkit.evaluation.stages.stage import PointSource
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import BY_BOUNDS, VERIFIED, Cost

_AT_ONCE = 4  # a point may take a quarter of what is left: the first ones are nearest to a proof


@dataclass
class FirstLook:
    """One allowance for all points together: CROWN first, then branch and bound, until it is over.

    It is `share` of the seconds that the stages before have taken, in all lives of the run, less
    what proofs have taken. A batch that has begun is finished.
    """

    bounds: Bounds
    share: float
    ledger: Ledger
    end: float = field(default=0.0, init=False)

    def order(
        self,
        points: Sequence[int],
        broken: set[int],
        data: PointSource,
        device: torch.device,
        threat: Threat,
    ) -> list[int]:
        """Try CROWN on the points; return those left open, the nearest to a proof first.

        Args:
            broken: points that an attack has broken.

        Raises:
            RobustkitError: when one of `broken` is proved robust.
        """
        costs = self.ledger.costs()
        taken = {stage: cost.seconds for stage, cost in costs.items()}
        used = taken.pop(VERIFIED, 0.0)
        self.end = time.monotonic() + self.share * sum(taken.values()) - used
        todo, open_ = list(points), list[tuple[float, int]]()
        while todo and self._left() > 0:
            # The first alone: where it is dear, no whole batch of them begins.
            size = self.bounds.batch if len(todo) < len(points) else 1
            batch, todo, clock = todo[:size], todo[size:], time.monotonic()
            x, y = (part.to(device) for part in data.fetch(batch))
            holds, least = self.bounds.crown(x, y)
            proved = [point for point, ok in zip(batch, holds.tolist(), strict=True) if ok]
            refuse_refuted_certificates("an attack", [p for p in proved if p in broken], threat)
            self.ledger.write(VERIFIED, [], [], Cost(seconds=time.monotonic() - clock))
            self.ledger.write_certified([(point, BY_BOUNDS) for point in proved], 0.0)
            rows = zip(least.tolist(), batch, holds.tolist(), strict=True)
            open_ += [(bound, point) for bound, point, ok in rows if not ok]
        return [point for _, point in sorted(open_, reverse=True)] + todo

    def budget(self, left: int) -> Budget | None:
        """Return what the next of `left` open points may take; None: nothing is left."""
        seconds = self._left()
        effort = self.bounds.effort
        most = float("inf") if effort is None else effort.seconds
        return Budget(min(most, seconds / min(left, _AT_ONCE))) if seconds > 0 else None

    def _left(self) -> float:
        return self.end - time.monotonic()
