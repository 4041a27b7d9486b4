"""One evaluation in one folder: from settings and a line-up to a record, or what is left of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from math import prod
from pathlib import Path

from torch import nn

from robustkit.certify.certifier import Bounds, Certifier, build_certifier, share_of
from robustkit.certify.complete.verifier import Effort, build_verifier
from robustkit.certify.declared import Formula
from robustkit.core import files
from robustkit.core.attribution import blaming
from robustkit.core.finite import FiniteThreat
from robustkit.errors import some
from robustkit.evaluation.build_record import make_record
from robustkit.evaluation.carry_over import Carried, settled
from robustkit.evaluation.criterion import abstentions
from robustkit.evaluation.distributed.executor import DistributedExecutor
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.executor import LocalExecutor
from robustkit.evaluation.identity import folder_of, identity
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.resume import same_answers
from robustkit.evaluation.run import Run
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.settle_record import refuse_another_ledger, settle_record
from robustkit.evaluation.stages.audit import unaudited
from robustkit.evaluation.stages.complete import CompleteStage
from robustkit.evaluation.stages.first_look import FirstLook
from robustkit.evaluation.stages.proofs import ProofStage, build_proof_stage
from robustkit.evaluation.stages.replay import Examples, Replay, find_examples
from robustkit.evaluation.stages.stage import DeviceWorker
from robustkit.evaluation.tally import Pulse
from robustkit.evaluation.watcher import Watcher
from robustkit.record import provenance
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CLEAN, VERIFIED, Cost
from robustkit.record.record import Record
from robustkit.record.schema import Commit
from robustkit.search.suites import LineUp, rehearse
from robustkit.verify.diagnostics.probe import recheck

KEEP_BYTES = 2**30  # adversarial inputs are stored by default up to this size


def execute(
    settings: Settings,
    prepared: Prepared,
    line: LineUp,
    watcher: Watcher,
    *,
    scheduler: Scheduler | None = None,
    carried: Carried | None = None,
) -> Record:
    """Run a line-up in one folder, or finish it there; see `evaluate`.

    Args:
        settings: without a folder, the run goes into the default one.
        scheduler: of the workers; None: this process does it alone.
        carried: what a run at a larger eps has found.

    Raises:
        UsageError, RobustkitError: as `evaluate`.
    """
    name, data, threat = settings.name, settings.data, settings.threat
    rehearse(line, threat, data.shape, prepared.diagnosis.classes)
    prover = certifier_of(settings, prepared)
    examples = find_examples(settings.replay, data.shape) if settings.replay is not None else None
    if isinstance(threat, FiniteThreat):
        examples = None  # every variant is tried anyway; of a random model one vote decides
    watcher.model(name if carried is None else f"{name} at {threat}", len(prepared.points))
    asked = settings.certify or ""  # a first look tries what there is, and says nothing
    if prover is None and share_of(asked) is None and Effort.parse(asked).method == "auto":
        watcher.note(f"{name}: no certificate is known for a model of this kind.")
    if isinstance(prover, Formula):  # the model's own word, which attacks may contradict
        told = f"certified by {prover.name}, a formula of the model's own, which nothing checks"
        settings = replace(settings, attack_certified=True, notes=(*settings.notes, told))
    facts = identity(settings, prepared, line, prover, examples, carried)
    folder = settings.folder or folder_of(settings, prepared, str(threat), facts)
    path, commit = folder / "record.json", provenance.commit()
    proofs = build_proof_stage(settings, prepared, prover, folder)
    settings = replace(settings, save_adversarial=_keep(settings, prepared, watcher))
    if settings.minimum_norm:
        line = line._replace(scouts=len(line.specs))
    with Ledger(folder / "ledger.sqlite", facts, fresh=settings.fresh) as ledger:
        for place in ledger.aside:
            watcher.note(f"{ledger.path} could not be used: what was there is now {place}.")
        if settings.fresh:
            files.remove(path)
        ledger.check_run()
        prepared = prepared._replace(diagnosis=same_answers(ledger, settings, prepared))
        ledger.remember("shape", list(data.shape))
        if carried is not None:
            carried.settle(ledger)
        notes = [*settings.notes, *prepared.tuned.notes]
        notes += [scheduler.note] if scheduler is not None else []
        run = _run(settings, prepared, line, ledger, watcher, scheduler, prover, examples)
        run = replace(run, complete=_complete(run, proofs))
        record = _finish(run, path, notes, commit)
    if proofs is not None:
        _prove(proofs, record, watcher)
    watcher.kept(path)
    for flag in record.flags:
        told = f" Answered: {flag.answered}." if flag.answered else ""
        watcher.note(f"{name}: {flag.name}: {flag.message}{told}")
    return record


def _prove(proofs: ProofStage, record: Record, watcher: Watcher) -> None:
    """Store the proofs that are missing, and say of which points there are none."""
    points = record.points
    proved = [
        (point, label)
        for point, label, status in zip(points.index, points.label, points.status, strict=True)
        if status == "certified"
    ]
    watcher.stage("proofs", len(proved))
    missing = proofs.run([point for point, _ in proved], [label for _, label in proved], record)
    watcher.advance(len(proved), len(proved) - len(missing), len(proved))
    told = f"; none stored of points {some(missing)}" if missing else ""
    stored = f"{len(proved) - len(missing)} of {len(proved)}"
    watcher.note(
        f"{record.defense}: {stored} certified points have a proof in {proofs.folder}{told}."
    )


def certifier_of(settings: Settings, prepared: Prepared) -> Certifier | None:
    """Build the certificate that is asked for; None where none is, or none is known."""
    if not settings.certify:
        return None
    return build_certifier(
        prepared.model, settings.data.shape, settings.threat, settings.certify, settings.seed,
        randomized=prepared.diagnosis.randomized,
    )  # fmt: skip


def _run(
    settings: Settings,
    prepared: Prepared,
    line: LineUp,
    ledger: Ledger,
    watcher: Watcher,
    scheduler: Scheduler | None,
    prover: Certifier | None,
    examples: Examples | None,
) -> Run:
    """Put the parts of a run together."""
    data, threat = prepared.data, settings.threat
    worker = _worker(settings, prepared, Pulse(watcher))
    replay = None
    if examples is not None:
        keep = settings.save_adversarial is not False
        replay = Replay(examples, worker, data, threat, ledger, keep)
    executor = (
        LocalExecutor(worker, data, ledger, threat)
        if scheduler is None
        else DistributedExecutor(scheduler, data, ledger, threat, prepared.diagnosis.classes)
    )
    return Run(settings, prepared, line, ledger, executor, watcher, prover, None, replay,
               settled(ledger))  # fmt: skip


def _worker(
    settings: Settings, prepared: Prepared, pulse: Callable[[int], None] = lambda _: None
) -> DeviceWorker:
    tuned = prepared.tuned
    return DeviceWorker(settings.name, prepared.model, tuned, prepared.diagnosis, settings.seed,
                        settings.batch_size or tuned.slots, pulse)  # fmt: skip


def _complete(run: Run, proofs: ProofStage | None) -> CompleteStage | None:
    """Return branch and bound for what the certificate and the attacks leave, if asked for."""
    settings, prepared, prover = run.settings, run.prepared, run.certifier
    if not isinstance(prover, Bounds) or prover.effort is None:
        return None
    data, threat, model = prepared.data, settings.threat, prepared.model
    assert isinstance(model, nn.Module)  # `Bounds` are built for nothing else
    verifier = (
        build_verifier(model, settings.data.shape, threat, prover.threat)
        if proofs is None
        else proofs.verifier
    )
    if verifier is None:
        return None
    keep = settings.save_adversarial is not False
    first = None if prover.share is None else FirstLook(prover, prover.share, run.ledger)
    return CompleteStage(verifier, prover.effort, _worker(settings, prepared), data, threat,
                         run.ledger, keep, first, proofs)  # fmt: skip


def _finish(run: Run, path: Path, notes: Sequence[str], commit: Commit | None) -> Record:
    """Do what is left of a run, and settle its record at `path`."""
    ledger, line, name = run.ledger, run.line, run.settings.name
    started = _first_start(ledger)
    finished: list[int] = run.prepared.points.tolist()
    refuse_another_ledger(path, ledger)
    ends = [len(line.specs) - 1, *([] if run.complete is None else [VERIFIED])]
    if not all(ledger.costs().get(stage, Cost()).finished for stage in ends):
        files.remove(path)  # of fewer points, or of an earlier configuration
        with blaming(name):
            finished = run.all()
            _recheck(run)
        run.prepared.data.verify()
    notes = list(notes)
    if unaudited(line, ledger):
        told = "is not done: nothing bounds what its search may have missed"
        notes.append(f"the audit of {run.settings.suite} {told}")
        run.watcher.note(f"{name}: {notes[-1]}.")
    clean = [predicted for _, predicted in ledger.predicted(finished).values()]
    if abstains := abstentions(run.settings.threat.criterion, clean):
        notes.append(abstains)
        run.watcher.note(f"{name} {abstains}.")
    record = make_record(run, finished, notes, started, commit)
    return settle_record(record, path, ledger, run.watcher)


def _recheck(run: Run) -> None:
    """See whether the model still answers as before the attacks; the ledger keeps what is found.

    A run to which nothing was added since the last look needs none.
    """
    diagnosis, ledger = run.prepared.diagnosis, run.ledger
    if diagnosis.randomized or ledger.remembered("looked at") == run.forwards():
        return
    changed = recheck(run.prepared.model, diagnosis)
    ledger.write(CLEAN, [], [], Cost(forwards=len(diagnosis.sample)))
    ledger.remember("changed", changed)
    ledger.remember("looked at", run.forwards())


def _keep(settings: Settings, prepared: Prepared, watcher: Watcher) -> bool:
    """Decide whether adversarial inputs are stored."""
    size = 4 * len(prepared.points) * prod(settings.data.shape)
    if settings.save_adversarial is None and size > KEEP_BYTES:
        watcher.note(
            f"adversarial inputs are not stored: up to {size / 2**30:.1f} GiB, and the default "
            f"ends at {KEEP_BYTES / 2**30:.0f} GiB. Ask for them with --save-adversarial."
        )
        return False
    return settings.save_adversarial is not False


def _first_start(ledger: Ledger) -> str:
    """Return when the run began, in its first life."""
    started = ledger.remembered("started")
    if started is None:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        ledger.remember("started", started)
    return str(started)
