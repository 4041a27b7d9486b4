"""A sample of the points that a record calls robust, attacked again as the record says."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from robustkit.core import files
from robustkit.core.spec import Spec
from robustkit.core.stats import clopper_pearson
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.prepare import SAMPLE
from robustkit.gate.baseline import Baseline
from robustkit.record.points import ROBUST
from robustkit.record.record import Record
from robustkit.search.suites import line_up

SHARE = 0.1  # of the passes of the run, at most, for all that is asked again


class Reattack(NamedTuple):
    """What became of it.

    Attributes:
        sample: the points that were attacked.
        broken: those of them that fell, as `robustkit.verify` judges it.
        claimed: how many points the record calls robust, with a proof or without.
        passes: forward and backward ones.
        dropped: attacks of the record that could not be run again.
    """

    sample: Sequence[int]
    broken: Sequence[int]
    claimed: int
    passes: int
    dropped: Sequence[str]

    def left(self) -> str:
        """Say what is not known of the points that were not attacked; "" where there are none."""
        left = self.claimed - len(self.sample)
        if not left:
            return ""
        told = f"{left} of {self.claimed} points that it calls robust were not attacked again"
        if not self.sample:
            return f"{told}: a tenth of the run's cost pays for none (--sample N)"
        # Half of the error is below a fraction that cannot be: one side of a 90% interval is 95%.
        high = clopper_pearson(len(self.broken), len(self.sample), 0.9).high
        return f"{told}: with 95% confidence at most {high:.1%} of all fall to these attacks"


def reattack(
    baseline: Baseline,
    model: Model | nn.Module,
    data: Dataset,
    device: str,
    *,
    points: int | None,
    seed: int,
    spent: int,
) -> Reattack:
    """Attack a random sample of the points that a record calls robust, proved ones included.

    Attacks, seed and threat model are the record's: what an attack finds at a point depends on
    these alone, so that an honest record is repeated. The sample is drawn by a seed that its author
    cannot know.

    Args:
        points: how many; None: as many as SHARE of the run's passes pays for.
        spent: passes that the other checks have taken of that share.
    """
    record = baseline.record
    pairs = zip(record.points.index, record.points.status, strict=True)
    claimed = [point for point, status in pairs if status in ROBUST]
    specs, dropped = _attacks(baseline, model)
    if points is None:
        points = _affordable(record, specs, spent)
    sample = sorted(random.Random(seed).sample(claimed, min(points, len(claimed))))
    if not sample or not specs:
        return Reattack([], [], len(claimed), 0, dropped)
    # Its record goes with the folder: nobody is to look for it when the command has ended.
    with files.digesting(), tempfile.TemporaryDirectory() as folder:
        found = evaluate(
            model, name=record.defense, data=data, threat=baseline.threat, folder=Path(folder),
            attacks=specs, points=sample, seed=record.seed, device=device, save_adversarial=False,
        )  # fmt: skip
    columns = zip(found.points.index, found.points.status, strict=True)
    broken = [point for point, status in columns if status == "broken"]
    return Reattack(sample, broken, len(claimed), found.forwards + found.backwards, dropped)


def _attacks(baseline: Baseline, model: Model | nn.Module) -> tuple[list[Spec], list[str]]:
    """Return the attacks of the record's search, and those that this model cannot be given."""
    record = baseline.record
    audits = record.audit.attacks if record.audit else ()  # only a sample went through them
    specs, dropped = list[Spec](), list[str]()
    for text in record.attacks:
        if text in audits:
            continue
        spec = Spec.parse(text)
        try:
            line_up(None, [spec], baseline.threat, model)
        except UsageError:  # such as one through a surrogate that the run made for the model
            dropped.append(text)
        else:
            specs.append(spec)
    return specs, dropped


def _affordable(record: Record, specs: Sequence[Spec], spent: int) -> int:
    """Return how many points the share pays for, by what each attack has cost a point."""
    names = {str(spec) for spec in specs}
    passes = [stage.forwards + stage.backwards for stage in record.stages]
    # A point that stays costs more than one that falls: as if those that fell had cost nothing.
    each = sum(
        cost / max(1, stage.entered - stage.broken)
        for stage, cost in zip(record.stages, passes, strict=True)
        if stage.attack in names
    )
    if not each:
        return 0
    whole = record.forwards + record.backwards
    room = SHARE * whole - spent
    look = max(0, whole - sum(passes) - record.n)  # at the model, before any attack: taken again
    few = int(room / (each + look / SAMPLE))
    return max(0, few if few <= SAMPLE else int((room - look) / each))
