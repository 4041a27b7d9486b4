"""The worker's side: a model on one device, orders in, notes out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from robustkit.certify.certifier import build_certifier
from robustkit.core.device import pick_device, stride
from robustkit.core.imports import failure
from robustkit.core.threat import Threat
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
    Facts,
    Failed,
    Message,
    ModelSetup,
    Named,
    Note,
    Order,
    PointData,
    Prove,
    Proved,
    Ready,
)
from robustkit.evaluation.stages.attack import DeviceWorker
from robustkit.evaluation.stages.clean_and_certify import Report, prove
from robustkit.models.load import load_model
from robustkit.models.surrogates.resolve import WithSurrogates
from robustkit.models.tuning import tune
from robustkit.record import provenance
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.search.engine import Engine
from robustkit.verify.candidates import predict

_AGREE = 1e-2  # of the largest logit: devices differ in the last bits, other code by more
_ANY = Threat("linf", 1.0)  # until an order names one


def serve(
    receive: Callable[[], Message], send: Callable[[Note], None], device: str, threads: int | None
) -> None:
    """Work until `receive` raises EOFError: the driver is gone, or has no more work.

    Errors of the work are sent to the driver as notes.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bench: DeviceWorker | None = None
    while True:
        try:
            message = receive()
            if isinstance(message, ModelSetup):
                bench = _open(message, pick_device(device))
                where = provenance.device_name(bench.device)
                send(Ready(where, bench.engine.slots, str(torch.__version__)))
            elif bench is not None:
                _work(bench, message, send)
                send(Done())
        except (EOFError, OSError):
            return
        except Exception as error:
            code = error.exit_code if isinstance(error, RobustkitError) else None
            told = str(error) if code is not None else failure(error)
            send(Failed(code, told, traceback.format_exc()))


def _open(briefing: ModelSetup, device: torch.device) -> DeviceWorker:
    """Load the model, and check that it is the driver's."""
    here = provenance.versions()["robustkit"]
    if here != briefing.version:
        raise UsageError(
            f"a worker has robustkit {here}, and this machine {briefing.version}: install the same "
            "version on every node."
        )
    model = _load(briefing)
    if isinstance(model, nn.Module):
        digest = provenance.weights_digest(model)[0]
        if digest != briefing.digest:
            raise UsageError(
                f"a worker has other weights for {briefing.name} than this machine: their digest "
                f"is {digest[:12]}, expected {briefing.digest[:12]}. Give every node the same file."
            )
    model = _placed(model, device)
    sample = briefing.sample.to(device)
    if not briefing.randomized:
        _same_answers(model, sample, briefing)
    tuned = tune(model, sample, briefing.tuning, randomized=briefing.randomized)
    more = {name: _placed(other, device) for name, other in briefing.lent.items()}
    searched = WithSurrogates(tuned.model, more) if more else tuned.model
    engine = Engine(searched, _ANY, briefing.batch_size or tuned.slots, stride(device),
                    tuned.half)  # fmt: skip
    return DeviceWorker(briefing.name, model, engine, device, briefing.classes, briefing.randomized,
                 briefing.seed)  # fmt: skip


def _placed(model: Model, device: torch.device) -> Model:
    if isinstance(model, nn.Module):
        return model.to(device).eval().requires_grad_(False)
    return model


def _load(briefing: ModelSetup) -> Model:
    given = briefing.model
    if not isinstance(given, Named):
        return given
    data = _without_images(briefing.data)
    return load_model(
        given.text, data=data, weights=given.weights, mean=given.mean, std=given.std
    ).model


def _same_answers(model: Model, sample: torch.Tensor, briefing: ModelSetup) -> None:
    """Refuse a model with the same weights that answers otherwise: its code differs."""
    logits, then = predict(model, sample)[1].cpu(), briefing.answers
    worst = float((logits - then).abs().max() / then.abs().max().clamp_min(1e-12))
    if not worst <= _AGREE:
        raise UsageError(
            f"{briefing.name} answers otherwise on a worker than on this machine (by {worst:.2g} "
            "of the largest logit): the nodes have different code, or other versions of a library."
        )


def _without_images(facts: Facts) -> ImageSet:
    none = np.empty((0, *facts.shape), dtype=np.float32)
    labels = np.empty(0, dtype=np.int64)
    return ImageSet(*facts, labels, lambda _: none)


def _work(bench: DeviceWorker, order: Order, send: Callable[[Note], None]) -> None:
    """Carry out one order; every batch and every harvest is sent when it is there."""
    work, parcel, scribe = order.work, order.parcel, MessageWriter(send)
    if isinstance(work, Classify):
        bench.classify(work.points, parcel, scribe, work.ranked, _unheard)
    elif isinstance(work, Prove):
        _prove(bench, work, parcel, scribe)
    elif isinstance(work, Attack):
        bench.attack(work.assault, work.part, parcel, scribe, _counter(send))


def _prove(bench: DeviceWorker, work: Prove, parcel: PointData, scribe: MessageWriter) -> None:
    shape = parcel.x.shape[1:]
    prover = build_certifier(bench.model, shape, work.threat, work.method, bench.seed,
                       randomized=bench.randomized)  # fmt: skip
    if prover is None:
        raise UsageError(f"a worker knows no certificate {work.method} for {bench.name}.")
    prove(prover, work.points, work.fallen, parcel, scribe, bench.device, work.threat, _unheard)


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
    """A pen whose ledger is the driver's; the driver's clock counts."""

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
        falls: Iterable[BrokenPoint],
        cost: Cost,
        closest: Mapping[int, float] | None = None,
        refused: Mapping[int, RefusedCandidate] | None = None,
    ) -> None:
        """Send a harvest."""
        pairs = [(point, job) for point, job in spent]
        self.send(AttackResults(pairs, list(falls), cost, dict(closest or {}), dict(refused or {})))
