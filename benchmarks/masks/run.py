"""From masked models to rows: the reference attack, the points, the verdicts, the truth."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gauntlet.rows import Cell, Row, cell
from benchmarks.gauntlet.setting import Setting, deal, read_points
from benchmarks.gauntlet.truth import JUDGED, broken
from benchmarks.masks.mask import Mask, Masked
from robustkit.core.types import Images
from robustkit.data.dataset import select
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.record.adversarial import adversarial_inputs
from robustkit.record.record import Record, load

EXPERT = "expert"
SUITES = ("parity", "adaptive")
COLUMNS = (EXPERT, *SUITES)
# Of the reference: per form that an expert differentiates, {through} names it.
_REFERENCE = (
    "relay(first=100, probes=9, probe=20, legs=12, steps=100, near=1, decay=0.8{through})",
    "apgd(loss=margin, restarts=3{through})",
    "apgd(restarts=2{through})",
    "apgd(loss=targeted_dlr, targets=9, steps=50{through})",
)
_DRAWS = 8  # passes averaged at every query of a randomized form


def reference(mask: Mask, masked: Masked, x: Images) -> list[str]:
    """List the attacks of the expert: through each of the forms, then on the model itself.

    The model itself is left out where it has no gradient at inputs `x` [b, c, h, w], as in votes.
    """
    ways = [f", surrogate={name}" for name in masked.experts()]
    if masked(x.clone().requires_grad_()).requires_grad:
        ways.append(f", eot={_DRAWS}" if mask.random else "")
    return [spec.format(through=through) for through in ways for spec in _REFERENCE]


def attack(setting: Setting, mask: Mask, masked: Masked, column: str, controls: int | None) -> None:
    """Run the evaluation of `column` unless it is there, the expert's first, on all n points.

    The suites attack the points that the expert breaks, and a sample of those that it does not.

    Args:
        controls: how many points that the expert leaves are attacked by the suites; None: all.

    Raises:
        UsageError: when the folder holds another choice of points.
    """
    everything = select(setting.data, setting.n, setting.seed)
    specs = reference(mask, masked, setting.data.fetch(everything[:1])[0])
    told = WithSurrogates(masked, masked.experts())
    record = setting.evaluate(told, f"{mask.name}/{EXPERT}", everything.tolist(), attacks=specs)
    kept = [p for p, robust in record.outcomes.items() if robust]
    points = deal(setting.folder / mask.name / "points.json", record, kept, controls)
    if column in SUITES:
        setting.evaluate(masked, f"{mask.name}/{column}", points.chosen, suite=column)


def row(setting: Setting, mask: Mask, masked: Masked) -> Row | None:
    """Gather what has been found of one mask; None before the expert has finished."""
    path = setting.folder / mask.name / "points.json"
    if not path.exists():
        return None
    points = read_points(path)
    every = {column: _finished(setting.folder / mask.name / column) for column in COLUMNS}
    records = {column: record for column, record in every.items() if record is not None}
    truth = dict.fromkeys(points.chosen, True)
    for column in records:
        claims = adversarial_inputs(setting.folder / mask.name / column)
        claims = {p: z for p, z in claims.items() if p in truth}
        for point in broken(masked, setting, claims, JUDGED if mask.random else 1):
            truth[point] = False
    elsewhere = points.kept - len(points.controls)
    cells = {column: _cell(record, truth, elsewhere, setting.n)
             for column, record in records.items()}  # fmt: skip
    share = 100 * (elsewhere + sum(truth.values())) / setting.n
    return Row(mask.name, "", "at most", mask.random, share, cells)


def _cell(record: Record, truth: dict[int, bool], elsewhere: int, n: int) -> Cell:
    outcomes = {p: robust for p, robust in record.outcomes.items() if p in truth}
    found = cell(outcomes, truth, elsewhere, n)
    found.flags = [flag.name for flag in record.flags]
    found.verdict = record.reliability
    return found


def _finished(folder: Path) -> Record | None:
    path = folder / "record.json"
    return load(path) if path.exists() else None
