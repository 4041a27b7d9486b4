"""The gate itself: evaluate a candidate on its baseline's points until the answer is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustkit.certify.certifier import share_of
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset, shuffled
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget, Interim, StoppingRule
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.gate.baseline import Baseline, attacks_of, audit_only, searched, stored_examples
from robustkit.gate.criteria import Terms
from robustkit.gate.decision import GateJudge
from robustkit.gate.verdict import ChangedPoint, GateVerdict, overall
from robustkit.record.points import ROBUST
from robustkit.record.record import REPLAY, Record
from robustkit.verify.flags import OUTCOME

_ALL, _CERTAIN = "all points were evaluated", "the answer was certain"


@dataclass(frozen=True)
class Candidate:
    """A model, the name it has in reports, and what to remember of it.

    Attributes:
        notes: what a reader of its record must know.
        arguments: what the user asked for.
        file: the file to which a report of a failure points.
    """

    name: str
    model: Model | nn.Module
    notes: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""


@dataclass
class _StopWhenDecided(StoppingRule):
    """Ends a run as soon as every metric is decided, or one has regressed."""

    judge: GateJudge | None = None

    def enough(self, progress: Interim) -> str | None:
        """Ask the judge."""
        assert self.judge is not None
        answers = self.judge.answers(progress.points, progress.status)
        if self.judge.objections(progress.flags):
            answers.append("regressed")
        if "regressed" in answers or "undecided" not in answers:
            return _CERTAIN
        return None


def check(
    candidate: Candidate,
    baseline: Baseline,
    data: Dataset,
    folder: Path,
    *,
    terms: Terms | None = None,
    budget: Budget | None = None,
    replay: bool = True,
    watcher: Watcher | None = None,
    **how: Any,
) -> GateVerdict:
    """Evaluate the candidate under the baseline's threat model, attacks and seed, and compare.

    Points are taken in a random order fixed by the seed. After each part of them the gate asks
    whether the answer is certain: then it stops, and the probability that it errs is at most
    1 − confidence all the same. A run that was killed goes on where it was. Flags that speak of the
    outcome on all points (`verify.flags.OUTCOME`) count only where all were evaluated. The audit
    of a suite is left out: what only the baseline's broke counts as robust.

    Args:
        data: holds the baseline's points, see `open_points`.
        folder: of the candidate's ledger and record.
        replay: try the adversarial inputs that are stored beside the baseline first.
        how: keywords of `robustkit.evaluate` that change no verdict: device, batch_size, fresh.

    Raises:
        UsageError: when baseline and candidate cannot be compared.
        RobustkitError: when the evaluation cannot go on.
    """
    terms, watcher, record = terms or Terms(), watcher or Watcher(), baseline.record
    _refuse(baseline, terms)
    suite, attacks, note = attacks_of(baseline, candidate.model)
    if note:
        watcher.note(note)
    spared = audit_only(baseline)
    judge = GateJudge(searched(baseline), terms)
    rule = _StopWhenDecided(budget or Budget(), audits=False, judge=judge)
    if record.audit is not None:
        watcher.note(
            f"{baseline.path} was audited; the gate compares one search with another, and "
            f"{len(spared)} points that only the audit broke count as robust."
        )
    found = evaluate(
        candidate.model,
        name=candidate.name,
        data=data,
        threat=baseline.threat,
        folder=folder,
        suite=suite,
        attacks=attacks,
        certify=_certificate(record, terms),
        attack_certified=bool(record.arguments.get("attack_certified")),
        points=record.points.index,
        replay=stored_examples(baseline, data.shape) if replay and not spared else None,
        budget=rule,
        seed=record.seed,
        arguments=candidate.arguments,
        notes=[*candidate.notes, f"checked against {baseline.path}"],
        watcher=watcher,
        **how,
    )
    return _verdict(judge, baseline, found, candidate, folder / "record.json", rule.reason)


def compare(
    baseline: Baseline, candidate: Baseline, terms: Terms | None = None, file: str = ""
) -> GateVerdict:
    """Compare two records on the same points, without a run.

    What only the audit of a suite broke counts as robust, unless both audits went on to every
    point.

    Raises:
        UsageError: when they differ in points, threat model or attacks.
    """
    terms, a, b = terms or Terms(), baseline.record, candidate.record
    _refuse(baseline, terms)
    _refuse_carried(candidate)
    for what, was, now in (
        ("threat model", str(baseline.threat), str(candidate.threat)),
        ("seed", a.seed, b.seed),
        ("attacks", _plain(a), _plain(b)),
        ("certificate", a.certify, b.certify),
    ):
        # A proof says what no attack can change: it matters to the metric certified alone.
        if was != now and (what != "certificate" or "certified" in terms.tolerances):
            raise UsageError(
                f"{candidate.path} cannot be compared with {baseline.path}: the {what} was {was}, "
                f"now {now}. Evaluate both alike, or let `robustkit check` do it."
            )
    order = shuffled(a.points.index, a.seed)[: b.n]
    if set(order) != set(b.points.index) or (b.n == a.n and a.data.digest != b.data.digest):
        raise UsageError(
            f"{candidate.path} cannot be compared with {baseline.path}: it is about other points. "
            "Evaluate the candidate with `robustkit check`."
        )
    subject = Candidate(b.defense, nn.Identity(), file=file)
    reason = None if b.n == a.n else "the candidate's run ended early"
    if not all(r.audit is not None and r.audit.escalated for r in (a, b)):
        a, b = searched(baseline), searched(candidate)
    return _verdict(GateJudge(a, terms), baseline, b, subject, candidate.path, reason)


def _certificate(record: Record, terms: Terms) -> str | None:
    """Return the baseline's certificate; one that nobody asked for is no demand on a candidate."""
    asked = str(record.arguments.get("certify"))
    first_look = asked == "quick" or share_of(asked) is not None
    if first_look and "certified" not in terms.tolerances:
        return "quick"
    name = record.certify and record.certify.partition("(")[0]
    # Of branch and bound the rest is its budget; of smoothing, what every one has.
    return record.certify if name in ("auto", "complete") else name


def _refuse_carried(found: Baseline) -> None:
    """Refuse a record of `--eps-grid` whose points are robust by what happened at a larger eps."""
    points = found.record.points
    pairs = zip(points.carried or (), points.status, strict=False)
    if count := sum(eps is not None and status == "robust" for eps, status in pairs):
        raise UsageError(
            f"{found.path} cannot be gated: it is part of a curve, and {count} of its points are "
            "robust because they were so at a larger eps; nothing attacked them here. Evaluate at "
            "this eps alone (--threat), or take the record of the largest eps."
        )


def _refuse(baseline: Baseline, terms: Terms) -> None:
    _refuse_carried(baseline)
    if "certified" in terms.tolerances and baseline.record.certify is None:
        raise UsageError(
            f"the baseline {baseline.path} has no certified points to compare with: record one "
            "with `robustkit baseline update --certify auto`, or leave out the metric certified."
        )


def _plain(record: Record) -> list[str]:
    """Return the attacks, less those through surrogates, which belong to one model."""
    return [text for text in record.attacks if "surrogate=" not in text]


def _verdict(
    judge: GateJudge,
    baseline: Baseline,
    found: Record,
    candidate: Candidate,
    path: Path,
    reason: str | None,
) -> GateVerdict:
    before, terms = baseline.record, judge.terms
    status = dict(zip(found.points.index, found.points.status, strict=True))
    order = [p for p in shuffled(before.points.index, before.seed) if p in status]
    # Of a part of the points these flags would speak of chance, where the baseline's are of all.
    early = found.n < before.n
    flags = [flag.name for flag in found.flags if not (early and flag.name in OUTCOME)]
    findings = judge.findings(order, status, flags, fixed=found.n == before.n)
    weakest = [(found.class_name(c.label), c.accuracy) for c in found.tail[:3]]
    commit = before.commit
    return GateVerdict(
        answer=overall(findings),
        candidate=candidate.name,
        baseline=before.defense,
        data=before.data.name,
        threat=str(baseline.threat),
        suite=before.suite or ", ".join(before.attacks),
        confidence=terms.confidence,
        claim=terms.claim,
        findings=tuple(findings),
        n=found.n,
        total=before.n,
        ended=_ALL if found.n == before.n else reason or _CERTAIN,
        seconds=found.seconds,
        forwards=found.forwards,
        replayed=found.points.attack.count(REPLAY),
        weakest=tuple(weakest),
        record=path.as_posix(),
        baseline_record=baseline.path.as_posix(),
        baseline_commit=commit.hash + ("-dirty" if commit.dirty else "") if commit else "",
        model_file=candidate.file,
        changed=_changed(judge.baseline, found),
    )


def _changed(before: Record, now: Record) -> tuple[ChangedPoint, ...]:
    """List the points of the candidate that only one of both is robust on, lost ones first."""
    was = dict(zip(before.points.index, before.points.status, strict=True))
    points = now.points
    columns = zip(points.index, points.label, points.status, points.attack, strict=True)
    found = [
        ChangedPoint(point, now.class_name(label), was[point], status, attack or "")
        for point, label, status, attack in columns
        if point in was and (was[point] in ROBUST) != (status in ROBUST)
    ]
    return tuple(sorted(found, key=lambda change: (not change.lost, change.point)))
