"""When the attacks of a run have answered a flag, so that it weighs less in the verdict.

A flag says why robust accuracy may be too high. It is answered when attacks that were meant for
its cause ran on every point, or on samples as far as they broke any, and what ran after them found
nothing more:

- flags of masked gradients, and `transfer`: attacks through a surrogate with the decisions of the
  model, whose own gradient passes the probes (`Findings.true`) or, for `transfer`, through the
  surrogates that broke points;
- `randomized`: gradients averaged over as many draws as the noise needs;
- `scores_only`, whatever the suite: every point is proved robust or broken;
- `black_box`: longer attacks without gradients on a sample of the survivors, without a success.

"Nothing more" is a quiet audit: no more of its sample broken than the threshold allows, or the
next nearest attacked until a block of them held. Where the audit went on to every survivor, its
last attacks, with gradients and without, must have broken none of them. Nor may the reserve have
broken any, where it ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from robustkit.evaluation.run import Run
from robustkit.evaluation.stages.audit import follows_gradients, held, unaudited
from robustkit.record.ledger_schema import Cost
from robustkit.search.protocol import draws, surrogate_of
from robustkit.verify.flags import Flag


def answered(run: Run, flags: Sequence[Flag]) -> list[Flag]:
    """Mark the flags that the attacks of `run` have answered, with how."""
    answers = _answers(run) if run.line.findings is not None and _quiet(run) else {}
    if any(flag.name == "scores_only" for flag in flags) and _decided(run):
        answers["scores_only"] = "every point is proved or broken"
    return [flag.model_copy(update={"answered": answers.get(flag.name)}) for flag in flags]


def _answers(run: Run) -> dict[str, str]:
    """Return how each flag was answered that was, given that the audit is quiet."""
    line, found, on_all = run.line, run.line.findings, run.line.searches[: run.line.audited]
    assert found is not None
    answers = {}
    if line.answers:
        through = f"attacked through {', '.join(found.true)}; the audit is quiet"
        answers = dict.fromkeys(line.answers, through)
    broke = {one.stage for one in run.ledger.broken().values()}
    finders = [surrogate_of(search) for stage, search in enumerate(on_all) if stage in broke]
    if named := ", ".join(dict.fromkeys(filter(None, finders))):
        answers["transfer"] = f"attacked through {named}; the audit is quiet"
    averaged = [stage for stage, search in enumerate(on_all) if draws(search) >= found.eot]
    if found.eot > 1 and any(_ran(run, [stage]) for stage in averaged):
        answers["randomized"] = f"gradients averaged over {found.eot} draws; the audit is quiet"
    if _ran(run, [s for s in line.reserved if not follows_gradients(line.searches[s])]):
        answers["black_box"] = "longer attacks without gradients broke none of a sample"
    return answers


def _decided(run: Run) -> bool:
    """Tell whether no point that is classified rightly was left without a proof or a success."""
    ledger = run.ledger
    right = {point for point, (label, guess) in ledger.predicted().items() if label == guess}
    proved = {point for point, holds in ledger.certified().items() if holds}
    return right <= proved | ledger.broken().keys()


def _quiet(run: Run) -> bool:
    """Tell whether the audit came to its end and its last attacks found nothing."""
    line, ledger = run.line, run.ledger
    broke = {found.stage for found in ledger.broken().values()}
    if unaudited(line, ledger) or broke & set(line.reserved):
        return False
    if not ledger.remembered("escalated"):
        return held(ledger)
    last = max(broke, default=-1)
    after = [line.searches[s] for s in line.auditing if s > last and _ran(run, [s])]
    return any(map(follows_gradients, after)) and not all(map(follows_gradients, after))


def _ran(run: Run, stages: Sequence[int]) -> bool:
    """Tell whether each of these attacks was given points."""
    costs = run.ledger.costs()
    return bool(stages) and all(costs.get(stage, Cost()).entered for stage in stages)
