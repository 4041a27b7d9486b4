"""What `robustkit evaluate` does with a checked request."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from robustkit.certify.certifier import share_of
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.evaluate import side_by_side
from robustkit.cli.evaluate.curves import tables
from robustkit.cli.evaluate.plan import Plan, claim, make
from robustkit.cli.evaluate.request import Request
from robustkit.cli.evaluate.told import finished_row, say_what_resumes, stage_costs
from robustkit.cli.options import use_threads
from robustkit.cli.program import fail
from robustkit.cli.screen import Screen
from robustkit.core import files
from robustkit.core.device import pick_devices
from robustkit.core.packages import install_command
from robustkit.core.types import Images, Model
from robustkit.errors import RobustkitError
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.eps_grid import evaluate_grid_settings
from robustkit.evaluation.evaluate import evaluate_settings
from robustkit.evaluation.prepare import first_look, looked_at
from robustkit.evaluation.watcher import Watcher
from robustkit.leaderboard import curves, formats, rows
from robustkit.leaderboard.radii import radii
from robustkit.leaderboard.rows import robust_interval
from robustkit.models.load import Subject
from robustkit.models.readiness import private_copy
from robustkit.record.radii import Radii, read
from robustkit.record.record import Record
from robustkit.verify.diagnostics.probe import Diagnosis

__all__ = ["Request", "run"]

_Found = list[tuple[Path, Record]]
_Failures = list[tuple[str, Exception]]


def run(request: Request, *, debug: bool) -> int:
    """Evaluate every model, write and print the leaderboard; return the exit code.

    Raises:
        UsageError: when the request is refused; nothing was written then.
        RobustkitError: when the only model cannot be finished.
    """
    use_threads(request.threads)
    plan, by_name = None, dict[str, _Found]()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a user's code may print; results stay alone
            plan = make(request)
            failures = _run(plan, by_name)
    except KeyboardInterrupt:  # what is finished is shown before the program says that it stops
        if plan is not None:
            _conclude(plan, by_name)
        raise
    found = _conclude(plan, by_name)
    codes = {fail(error, debug=debug, prefix=f"{name}: ") for name, error in failures}
    if not failures:
        return 0
    return codes.pop() if not found and len(codes) == 1 else RobustkitError.exit_code


def _run(plan: Plan, found: dict[str, _Found]) -> _Failures:
    """Evaluate the models of a plan, whose records go into `found`; return what failed."""
    quiet = plan.request.quiet
    screen = Screen(len(plan.subjects), quiet=quiet, stages=stage_costs(plan))
    with screen, side_by_side.workers(plan, screen) as scheduler:
        # Of models that nobody named nothing is to be refused: their workers look at them.
        apart = scheduler is not None and not plan.request.models
        looks = _glance(plan, screen) if apart else _look(plan, screen)
        say_what_resumes(plan)
        claim(plan)
        return _evaluate_all(plan, looks, screen, scheduler, found)


def _conclude(plan: Plan, by_name: dict[str, _Found]) -> _Found:
    """Write and print the leaderboard of what is finished, in the order of the command."""
    found = [pair for subject in plan.subjects for pair in by_name.get(subject.name, ())]
    if found:
        _report(plan, found)
        if not plan.request.quiet:
            _say_how_far(found)
    return found


_Looks = dict[str, Diagnosis | None]


def _look(plan: Plan, screen: Screen) -> _Looks:
    """Refuse what cannot be evaluated before anything is written; keep what is found by name.

    What takes longest to look at comes first: it would be waited for at the end.
    """
    found: dict[str, Diagnosis] = {}
    took: dict[str, float] = {}
    for subject in plan.subjects:
        screen.say(f"a first look at {subject.name}")
        began = time.monotonic()
        found[subject.name] = first_look(plan.settings_of(subject))
        took[subject.name] = time.monotonic() - began
    screen.weigh(took)
    return {name: found[name] for name in _longest_first(took)}


def _glance(plan: Plan, screen: Screen) -> _Looks:
    """Time a few passes of each model, which tell the order; the looks are left to the workers."""
    took, device = {}, pick_devices(plan.settings.device)[0]
    sample = looked_at(plan.settings, device)  # the same points for every model
    for subject in plan.subjects:
        private = private_copy(subject.model, device, subject.name)
        with torch.no_grad():
            private(sample)
            # The workers import meanwhile: the fastest pass is the one that was disturbed least.
            took[subject.name] = min(_seconds(private, sample) for _ in range(3))
    screen.weigh(took)
    return dict.fromkeys(_longest_first(took))


def _seconds(model: Model, x: Images) -> float:
    began = time.monotonic()
    model(x)
    return time.monotonic() - began


def _longest_first(took: dict[str, float]) -> list[str]:
    return sorted(took, key=took.__getitem__, reverse=True)


def _evaluate_all(
    plan: Plan,
    looks: _Looks,
    screen: Screen,
    scheduler: Scheduler | None,
    found: dict[str, _Found],
) -> _Failures:
    """Evaluate every model; the failure of one of several does not stop the rest."""
    failures: dict[str, Exception] = {}
    if scheduler is not None:
        failures |= side_by_side.evaluate_all(plan, scheduler, looks, screen, evaluate_one, found)
    for subject in plan.subjects:
        name = subject.name
        if name in found or name in failures:
            continue
        try:
            found[name] = evaluate_one(plan, subject, screen.lane(name), looks[name])
            row = finished_row(found[name])
        except Exception as error:
            if len(plan.subjects) == 1:
                raise
            failures[name], row = error, "could not be finished"
        screen.end(name, row)
    names = [subject.name for subject in plan.subjects]
    return [(name, failures[name]) for name in names if name in failures]


def evaluate_one(
    plan: Plan, subject: Subject, watcher: Watcher, diagnosis: Diagnosis | None = None
) -> _Found:
    """Evaluate one model as planned; return its records and where they lie.

    Args:
        diagnosis: of the model, if it was looked at before.
    """
    settings = plan.settings_of(subject)
    if plan.grid:
        records = evaluate_grid_settings(settings, plan.grid, watcher, diagnosis=diagnosis)
        return list(zip(plan.records(subject), records[::-1], strict=True))
    record = evaluate_settings(settings, watcher, diagnosis=diagnosis)
    return [(path, record) for path in plan.records(subject)]


def _say_how_far(found: _Found) -> None:
    """Say of each model that a budget stopped how far it came."""
    for _, record in found:
        if record.data.planned is not None:
            low, high = robust_interval(record)
            say(
                stderr(),
                "budget",
                f"{record.defense}: {record.n} of {record.data.planned} points, in a random order; "
                f"robust {record.robust:.3f} [{low:.3f}, {high:.3f}], a 95% interval that holds "
                "whenever one stops. The same command goes on from there.",
                "bold yellow",
            )


def _report(plan: Plan, found: Sequence[tuple[Path, Record]]) -> None:
    frame, csv = rows.table(found), plan.out / "leaderboard.csv"
    more: dict[str, pd.DataFrame] = {}
    if plan.grid or plan.request.minimum_norm:
        more["curve"] = curves.curve(found)
    if brackets := _radii(plan, found):
        more["radii"] = radii(brackets)
    if plan.request.minimum_norm:
        more["distances"] = curves.distances(found)
    for name, table in {"leaderboard": frame, **more}.items():
        files.write(formats.to_csv(table).encode(), plan.out / f"{name}.csv")
    if plan.request.as_json:
        result(formats.to_json(frame, **more))
    elif not plan.request.quiet:
        console = stdout()
        for shown in tables(more) or [formats.to_rich(frame)]:
            console.print(shown)
        tables_at = ", ".join(str(csv.with_name(f"{name}.csv")) for name in ["leaderboard", *more])
        anywhere = os.sep.join(["*"] * (2 if plan.grid else 1))
        console.out(f"CSV: {tables_at}", highlight=False)
        console.out(f"Records: {plan.out}{os.sep}{anywhere}{os.sep}record.json", highlight=False)
        for line in [*_remarks(plan, frame), *_next_steps(plan, frame)]:
            console.out(line, highlight=False)


def _radii(plan: Plan, found: Sequence[tuple[Path, Record]]) -> list[tuple[Record, Radii]]:
    """Return what the models of a grid know of every point, each with its record of largest eps."""
    folders: dict[Path, Record] = {}
    for path, record in found if plan.grid else ():
        folder = path.parent.parent
        if folder not in folders or folders[folder].threat.eps < record.threat.eps:
            folders[folder] = record
    pairs = [(record, read(folder)) for folder, record in folders.items()]
    return [(record, of) for record, of in pairs if of is not None and record.certify is not None]


def _remarks(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    """Say what the numbers are not, and what was allowed for them."""
    if plan.settings.suite == "quick":
        yield "quick is an upper bound, a first look: defend a claim by --suite fast or parity."
    share = share_of(plan.settings.certify or "")
    if share is not None and bool((frame["undecided"] > 0).any()):
        yield (
            f"certified within {share:.0%} of the run's time, the rest undecided: "
            "see --certify auto."
        )
    if plan.grid:
        yield (
            "A point that was robust at one eps is carried to the smaller ones without another "
            "attack; records and curve.csv say which."
        )
    if plan.request.minimum_norm:
        yield "Every distance is that of a verified adversarial input: an upper bound."


def _next_steps(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    """Say what follows: the page of the evidence, and more after a first look at bundled models."""
    request = plan.request
    install = "" if find_spec("jinja2") else f" ({install_command('report')})"
    page = f"  robustkit report {shlex.quote(str(plan.out))}    # the evidence as a page{install}"
    if request.models or request.minimum_norm or plan.grid:
        yield from ("Next:", page)
        return
    best = shlex.quote(str(frame["defense"].iloc[0]))
    asked = {"--data": request.data if request.data != Request.data else None,
             "--threat": request.threat}  # fmt: skip
    given = "".join(f" {key} {shlex.quote(text)}" for key, text in asked.items() if text)
    yield "Next:"
    yield f"  robustkit evaluate {best}{given} --suite fast    # a number to defend"
    yield page
    yield "  robustkit evaluate path/to/model.py:make --data npz:points.npz --threat linf:8/255"
