"""What `robustkit evaluate` says while it runs: what it resumes, and what came of each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustkit.cli.console import say, stderr
from robustkit.cli.evaluate.plan import Plan
from robustkit.cli.screen import StageCost
from robustkit.core.text import with_interval
from robustkit.evaluation.radii import ROUNDS
from robustkit.record.interval import robust_interval
from robustkit.record.record import Record

_USUAL = 300.0  # passes for a point of what does not say how many it takes
_CLASSES = 10  # that an attack is asked its runs for; few have more


def stage_costs(plan: Plan) -> list[StageCost]:
    """Return what the stages of a model take at most: clean, a certificate, the attacks."""
    settings, certify = plan.settings, plan.request.certify
    stages = [StageCost(1)]
    stages += [StageCost(1 if certify in ("quick", "ibp") else _USUAL)] * bool(certify)
    stages += [StageCost(1)] * bool(plan.request.replay)
    stages += [_cost(search, plan) for search in settings.line_up().searches]
    bisections = ROUNDS if plan.grid and certify else 0
    return [StageCost(1)] * bisections + stages * max(1, len(plan.grid))


def _cost(search: Any, plan: Plan) -> StageCost:
    """Estimate an attack by its options: queries, or steps that go back too."""
    asked = getattr(search, "queries", None) or getattr(search, "steps", None)
    if not isinstance(asked, int) or not hasattr(search, "jobs"):
        return StageCost(_USUAL)
    queries = float(asked * len(search.jobs(plan.settings.threat, _CLASSES)))
    return StageCost(queries * (3 if search.uses_gradient else 1), queries)


def say_what_resumes(plan: Plan) -> None:
    """Say that the folder holds a part of this evaluation, or all of it."""
    if plan.request.fresh or plan.request.quiet:
        return
    places = [(plan.folder(subject), plan.records(subject)) for subject in plan.subjects]
    done = sum(all(path.is_file() for path in records) for _, records in places)
    begun = sum(any(folder.rglob("ledger.sqlite")) for folder, _ in places) - done
    if not (done or begun):
        return
    told = f"{done} of {len(places)} models finished" if len(places) > 1 else "begun before"
    if done == len(places):
        told = "finished before"
    say(stderr(), "resumes", f"{plan.out}, {told}. --fresh starts over.", "bold yellow")


def finished_row(found: Sequence[tuple[Path, Record]]) -> str:
    """Say what came of a model, at each eps of a grid."""
    if len(found) > 1:
        cells = (f"{record.robust:.3f} at {record.threat.eps:.4g}" for _, record in found)
        return f"robust {', '.join(cells)}"
    ((_, record),) = found
    told = f"robust {with_interval(record.robust, *robust_interval(record))}"
    if record.certified is not None:
        told += f", certified {record.certified:.3f}"
    return told if record.reliability == "reliable" else f"{told}, {record.reliability}"
