"""What a run at one eps tells about smaller ones: one direction is proof, the other is carried."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import LedgerReader, open_readonly
from robustkit.record.ledger_schema import CARRIED, CLEAN, BrokenPoint, Cost


class Carried(NamedTuple):
    """The verdicts that a run at a larger eps of a grid leaves to a smaller one.

    An adversarial input within the smaller eps counts there too, and a certificate holds in every
    smaller ball. That a point which was robust at the larger eps is robust at the smaller one is
    true of the model, not of the attacks: another run at the smaller eps alone may find what this
    one missed. Those points are therefore marked as carried.

    Attributes:
        grid: all radii of the run; part of what a ledger is checked for.
        clean: point -> (label, predicted, classes by falling clean logit).
        attacks: which attack broke the points of `broken`.
        survived, proved: the eps at which a point was robust, or certified.
        errors: of a randomized model, the share of passes that err at the clean points.
    """

    grid: tuple[float, ...]
    clean: dict[int, tuple[int, int, list[int]]]
    broken: tuple[BrokenPoint, ...]
    attacks: dict[int, str]
    survived: dict[int, float]
    proved: dict[int, float]
    errors: dict[int, float]

    @classmethod
    def nothing(cls, grid: tuple[float, ...]) -> Carried:
        """Return what is known at the largest eps."""
        return cls(grid, {}, (), {}, {}, {}, {})

    def settle(self, ledger: Ledger) -> None:
        """Write into a ledger what is known before its run begins; once, whenever it was killed."""
        if not self.clean or ledger.remembered("carried") is not None:
            return
        rows = [(point, *known) for point, known in self.clean.items()]
        ledger.write_clean(rows, 0, 0.0, self.errors)
        ledger.write(CARRIED, [], [f._replace(stage=CARRIED) for f in self.broken], Cost())
        ledger.write_certified(((point, True) for point in self.proved), 0.0)
        note = {"survived": self.survived, "proved": self.proved, "attacks": self.attacks}
        ledger.remember("carried", note)


def settled(ledger: LedgerReader) -> dict[str, dict[int, Any]]:
    """Return what was settled in a ledger, each by point; empty where nothing was.

    `survived` and `proved` say at which eps, `attacks` by which attack a point was broken.
    """
    note = ledger.remembered("carried") or {}
    return {key: {int(p): what for p, what in by.items()} for key, by in note.items()}


def collect(
    grid: tuple[float, ...], folder: Path, specs: Sequence[Spec], threat: Threat, smaller: Threat
) -> Carried:
    """Read from the finished run at `threat` in `folder` what counts at a smaller eps.

    Args:
        specs: the line-up of that run.
    """
    with open_readonly(folder / "ledger.sqlite") as ledger:
        shape = ledger.shape()
        assert shape is not None, "a run that has finished has told its shape"
        clean, broken, certified = ledger.clean(), ledger.broken(), ledger.certified()
        examples, shares = ledger.examples(shape), ledger.errors()
        before = settled(ledger) or {"survived": {}, "proved": {}, "attacks": {}}
    limit = smaller.limit(prod(shape))
    inside = [
        found._replace(
            example=examples[point].numpy() if point in examples else None,
            errors=shares.get((point, found.stage)),
        )
        for point, found in broken.items()
        if found.distance <= limit
    ]
    proved = {point for point, holds in certified.items() if holds}
    robust = [p for p, (y, guess, _) in clean.items() if y == guess and p not in broken]
    return Carried(
        grid=grid,
        clean=clean,
        broken=tuple(inside),
        attacks={f.point: before["attacks"].get(f.point) or str(specs[f.stage]) for f in inside},
        survived={p: before["survived"].get(p, threat.eps) for p in robust},
        proved={p: before["proved"].get(p, threat.eps) for p in sorted(proved)},
        errors={p: share for (p, stage), share in shares.items() if stage == CLEAN},
    )
