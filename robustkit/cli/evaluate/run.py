"""What `robustkit evaluate` does with a checked request."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.evaluate.curves import tables
from robustkit.cli.evaluate.plan import Plan, claim, make
from robustkit.cli.evaluate.request import Request
from robustkit.cli.options import use_threads
from robustkit.cli.program import fail
from robustkit.cli.progress import Screen
from robustkit.core import files
from robustkit.errors import RobustkitError
from robustkit.evaluation.eps_grid import evaluate_grid_settings
from robustkit.evaluation.evaluate import evaluate_settings
from robustkit.evaluation.prepare import first_look
from robustkit.leaderboard import curves, formats, rows
from robustkit.leaderboard.rows import robust_interval
from robustkit.models.load import Subject
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
    with contextlib.redirect_stdout(sys.stderr):  # a user's code may print; results stay alone
        plan = make(request)
        looks = _look(plan)
        claim(plan)
        found, failures = _evaluate_all(plan, looks)
    if found:
        _report(plan, found)
        if not request.quiet:
            _say_how_far(found)
    codes = {fail(error, debug=debug, prefix=f"{name}: ") for name, error in failures}
    if not failures:
        return 0
    return codes.pop() if not found and len(codes) == 1 else RobustkitError.exit_code


def _look(plan: Plan) -> dict[str, Diagnosis]:
    """Refuse what cannot be evaluated before anything is written; keep what is found by name."""
    return {subject.name: first_look(plan.settings_of(subject)) for subject in plan.subjects}


def _evaluate_all(plan: Plan, looks: dict[str, Diagnosis]) -> tuple[_Found, _Failures]:
    """Evaluate one model after the other; the failure of one of several does not stop the rest."""
    found: _Found = []
    failures: _Failures = []
    runs = len(plan.subjects) * max(1, len(plan.grid))
    with Screen(runs, quiet=plan.request.quiet) as screen:
        for subject in plan.subjects:
            try:
                found += evaluate_one(plan, subject, screen, looks[subject.name])
            except Exception as error:
                if len(plan.subjects) == 1:
                    raise
                failures.append((subject.name, error))
    return found, failures


def evaluate_one(
    plan: Plan, subject: Subject, screen: Screen, diagnosis: Diagnosis | None = None
) -> _Found:
    """Evaluate one model as planned; return its records and where they lie.

    Args:
        diagnosis: of the model, if it was looked at before.
    """
    settings = plan.settings_of(subject)
    if plan.grid:
        records = evaluate_grid_settings(settings, plan.grid, screen, diagnosis=diagnosis)
        return list(zip(plan.records(subject), records[::-1], strict=True))
    record = evaluate_settings(settings, screen, diagnosis=diagnosis)
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
        for line in [*_remarks(plan), *_next_steps(plan, frame)]:
            console.out(line, highlight=False)


def _remarks(plan: Plan) -> Iterator[str]:
    """Say what the numbers are not."""
    if plan.settings.suite == "quick":
        yield "quick is an upper bound, a first look: defend a claim by --suite fast or parity."
    if plan.grid:
        yield (
            "A point that was robust at one eps is carried to the smaller ones without another "
            "attack; records and curve.csv say which."
        )
    if plan.request.minimum_norm:
        yield "Every distance is that of a verified adversarial input: an upper bound."


def _next_steps(plan: Plan, frame: pd.DataFrame) -> Iterator[str]:
    """Say what follows the first look at the bundled models; who names models knows."""
    request = plan.request
    if request.models or request.minimum_norm or plan.grid:
        return
    best = shlex.quote(str(frame["defense"].iloc[0]))
    asked = {"--data": request.data if request.data != Request.data else None,
             "--threat": request.threat}  # fmt: skip
    given = "".join(f" {key} {shlex.quote(text)}" for key, text in asked.items() if text)
    yield "Next:"
    yield f"  robustkit evaluate {best}{given} --suite fast    # a number to defend"
    yield f"  robustkit report {shlex.quote(str(plan.out))}    # the evidence as a page"
    yield "  robustkit evaluate path/to/model.py:make --data npz:points.npz --threat linf:8/255"
