"""The worker's side: a model on one device, orders in, notes out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from robustkit.certify.certifier import build_certifier
from robustkit.core import files
from robustkit.core.device import pick_device
from robustkit.core.imports import failure
from robustkit.core.types import Model
from robustkit.data.dataset import ImageSet
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.distributed.messages import (
    Attack,
    AttackResults,
    Classified,
    Classify,
    Done,
    Ended,
    Evaluation,
    Facts,
    Failed,
    Message,
    ModelSetup,
    Named,
    NoModel,
    Note,
    Order,
    PointData,
    Prove,
    Proved,
    Ready,
    Result,
    Told,
)
from robustkit.evaluation.stages.attack import run_attack
from robustkit.evaluation.stages.clean_and_certify import classify, prove
from robustkit.evaluation.stages.stage import DeviceWorker, Report
from robustkit.evaluation.watcher import Relay
from robustkit.models.agreement import OTHER_MACHINE, logit_distance
from robustkit.models.guard import guarded, habits
from robustkit.models.load import load_model
from robustkit.models.readiness import frozen
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.models.tuning import tune
from robustkit.record import provenance
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.verify.candidates import predict
from robustkit.verify.diagnostics.probe import Diagnosis


def serve(
    receive: Callable[[], Message], send: Callable[[Note], None], device: str, threads: int | None
) -> None:
    """Work until `receive` raises EOFError: the driver is gone, or has no more work.

    Errors of the work are sent to the driver as notes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    worker: DeviceWorker | None = None
    while True:
        try:
            message = receive()
            if isinstance(message, ModelSetup):
                worker = _open(message, pick_device(device))
                where = provenance.device_name(worker.device)
                send(Ready(where, worker.slots, str(torch.__version__)))
            elif isinstance(message, NoModel):
                send(Ready(device, 1, str(torch.__version__)))
            elif isinstance(message, Evaluation):
                send(_evaluated(message, send))
                send(Done())
            elif worker is not None:
                _work(worker, message, send)
                send(Done())
        except (EOFError, OSError):
            return
        except (Exception, SystemExit) as error:
            send(_failed(error))


def _failed(error: BaseException) -> Failed:
    code = error.exit_code if isinstance(error, RobustkitError) else None
    reason = str(error) if code is not None else failure(error)
    return Failed(code, reason, traceback.format_exc())


def _evaluated(evaluation: Evaluation, send: Callable[[Note], None]) -> Result:
    """Carry out a whole evaluation; its failure is a result, as that of one of several models."""
    send(Ended(0))  # a death from now on is the evaluation's, not of a worker that cannot start
    watcher = Relay(lambda event, given: send(Told(event, given)))
    with files.digesting() as written:
        try:
            return Result(evaluation.run(watcher), None, written)
        except (Exception, SystemExit) as error:
            return Result(None, _failed(error), written)


def _open(setup: ModelSetup, device: torch.device) -> DeviceWorker:
    """Load the model, and check that it is the driver's."""
    here = provenance.versions()["robustkit"]
    if here != setup.version:
        raise UsageError(
            f"a worker has robustkit {here}, and this machine {setup.version}: install the same "
            "version on every node."
        )
    model = _load(setup)
    if isinstance(model, nn.Module):
        digest = provenance.weights_digest(model)[0]
        if digest != setup.digest:
            raise UsageError(
                f"a worker has other weights for {setup.name} than this machine: their digest "
                f"is {digest[:12]}, expected {setup.digest[:12]}. Give every node the same file."
            )
    model, diagnosis = guarded(_placed(model, device)), setup.diagnosis.to(str(device))
    habits(model, diagnosis.habits)
    if not diagnosis.randomized:
        _same_answers(model, diagnosis, setup.name)
    tuned = tune(model, diagnosis.sample, setup.tuning, randomized=diagnosis.randomized)
    if setup.surrogates:
        added = {name: _placed(other, device) for name, other in setup.surrogates.items()}
        tuned = tuned._replace(model=WithSurrogates(tuned.model, added))
    slots = setup.batch_size or tuned.slots
    return DeviceWorker(setup.name, model, tuned, diagnosis, setup.seed, slots)


def _placed(model: Model, device: torch.device) -> Model:
    if isinstance(model, nn.Module):
        return frozen(model.to(device))
    return model


def _load(setup: ModelSetup) -> Model:
    given = setup.model
    if not isinstance(given, Named):
        return given
    data = _without_images(setup.data)
    return load_model(
        given.text, data=data, weights=given.weights, mean=given.mean, std=given.std,
        trust_code=given.trust_code,
    ).model  # fmt: skip


def _same_answers(model: Model, diagnosis: Diagnosis, name: str) -> None:
    """Refuse a model with the same weights that answers otherwise: its code differs."""
    logits, then = predict(model, diagnosis.sample)[1], diagnosis.answers
    worst = logit_distance(logits, then)
    if not worst <= OTHER_MACHINE:
        raise UsageError(
            f"{name} answers otherwise on a worker than on this machine (by {worst:.2g} of the "
            "largest logit): the nodes have different code, or other versions of a library."
        )


def _without_images(facts: Facts) -> ImageSet:
    none = np.empty((0, *facts.shape), dtype=np.float32)
    labels = np.empty(0, dtype=np.int64)
    name, family, shape, classes, ranges = facts
    return ImageSet(name, family, shape, classes, labels, lambda _: none, ranges=ranges)


def _work(worker: DeviceWorker, order: Order, send: Callable[[Note], None]) -> None:
    """Carry out one order; every batch and every harvest is sent when it is there."""
    work, points, writer = order.work, order.points, MessageWriter(send)
    if isinstance(work, Classify):
        classify(worker, work.points, points, writer, work.ranked, _unheard, work.criterion)
    elif isinstance(work, Prove):
        _prove(worker, work, points, writer)
    elif isinstance(work, Attack):
        run_attack(worker, work.stage, work.open, points, writer, _counter(send))


def _prove(worker: DeviceWorker, work: Prove, points: PointData, writer: MessageWriter) -> None:
    shape = points.x.shape[1:]
    prover = build_certifier(worker.model, shape, work.threat, work.method, worker.seed,
                             randomized=worker.diagnosis.randomized)  # fmt: skip
    if prover is None:
        raise UsageError(f"a worker knows no certificate {work.method} for {worker.name}.")
    prove(prover, work.points, work.broken, points, writer, worker.device, work.threat, _unheard)


def _counter(send: Callable[[Note], None]) -> Report:
    """Return a report that sends how many tasks have ended since the last one."""
    before = 0

    def report(done: int, _: int) -> None:
        nonlocal before
        send(Ended(done - before))
        before = done

    return report


def _unheard(_: int, __: int) -> None:
    """The driver counts what is written."""


@dataclass(frozen=True)
class MessageWriter:
    """Writes to the driver, who holds the ledger; the driver's clock counts."""

    send: Callable[[Note], None]

    def write_clean(
        self,
        rows: Iterable[tuple[int, int, int, list[int]]],
        forwards: int,
        seconds: float,
        errors: Mapping[int, float] | None = None,
    ) -> None:
        """Send a clean batch."""
        self.send(Classified(list(rows), forwards, dict(errors or {})))

    def write_certified(self, rows: Iterable[tuple[int, bool]], seconds: float) -> None:
        """Send what a certificate came to."""
        self.send(Proved(list(rows)))

    def write(
        self,
        stage: int,
        spent: Iterable[tuple[int, int]],
        broken: Iterable[BrokenPoint],
        cost: Cost,
        closest: Mapping[int, float] | None = None,
        refused: Mapping[int, RefusedCandidate] | None = None,
    ) -> None:
        """Send a harvest."""
        pairs = [(point, job) for point, job in spent]
        self.send(
            AttackResults(pairs, list(broken), cost, dict(closest or {}), dict(refused or {}))
        )
