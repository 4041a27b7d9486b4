"""One evaluation in one folder: from what is asked to a record, or what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.certify.certifier import Certifier, build_certifier
from robustkit.core.attribution import blaming
from robustkit.core.device import stride
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, digest
from robustkit.evaluation.budget import StoppingRule
from robustkit.evaluation.build_record import Origin, make_record, settle_record
from robustkit.evaluation.carry_over import Carried
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.request import home
from robustkit.evaluation.resume import same_answers, source_digest
from robustkit.evaluation.run import Run
from robustkit.evaluation.stages.audit import unaudited
from robustkit.evaluation.stages.replay import Examples, find_examples
from robustkit.evaluation.watcher import Watcher
from robustkit.record import provenance
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CLEAN, Cost
from robustkit.record.record import Record
from robustkit.search.engine import Engine
from robustkit.search.suites import LineUp, rehearse
from robustkit.verify.diagnostics.probe import recheck

KEEP_BYTES = 2**30  # adversarial inputs are stored by default up to this size


class Wish(NamedTuple):
    """What was asked for beside the line-up; the names are those of `evaluate`."""

    suite: str | None
    certify: str | None
    attack_certified: bool
    batch_size: int | None
    fresh: bool
    save_adversarial: bool | None
    arguments: dict[str, Any]
    notes: tuple[str, ...]
    replay: Path | str | None = None
    pace: StoppingRule | None = None


def conduct(
    ground: Prepared,
    line: LineUp,
    threat: Threat,
    folder: Path | None,
    wish: Wish,
    watcher: Watcher,
    *,
    minimum_norm: bool = False,
    scouts: int = 0,
    carried: Carried | None = None,
    crew: Scheduler | None = None,
) -> Record:
    """Run a line-up in one folder, or finish it there; see `evaluate`.

    Args:
        folder: one of the model's own in `robustkit.evaluation.request.home` when not given.
        scouts: so many attacks of the line-up use up their budget and keep the closest success.
        carried: what a run at a larger eps has found.
        crew: the workers; None: this process does it alone.
    """
    name, data, chosen = ground.name, ground.data, ground.points
    rehearse(line.specs, threat, data.shape, ground.health.classes)
    prover = None
    if wish.certify:
        prover = build_certifier(ground.model, data.shape, threat, wish.certify, ground.seed,
                           randomized=ground.health.randomized)  # fmt: skip
    examples = find_examples(Path(wish.replay), data.shape) if wish.replay is not None else None
    watcher.model(name if carried is None else f"{name} at {threat}", len(chosen))
    if wish.certify and prover is None:
        watcher.note(f"{name}: no certificate is known for a model of this kind.")
    identity = _identity(ground, threat) | _program(line, prover, wish, examples)
    identity |= {"minimum_norm": True} if minimum_norm else {}
    identity |= {"eps_grid": list(carried.grid)} if carried else {}
    if folder is None:
        place = home(data.name, str(threat), wish.suite, len(chosen), ground.seed, identity)
        folder = place / slug(name)
    path, commit = folder / "record.json", provenance.commit()
    with Ledger(folder / "ledger.sqlite", identity, fresh=wish.fresh) as ledger:
        health = same_answers(ledger, ground.model, ground.health, threat, ground.seed, name)
        ledger.remember("shape", list(data.shape))
        if carried is not None:
            carried.settle(ledger)
        notes = [*wish.notes, *ground.tuned.notes, *([crew.note] if crew else [])]
        origin = Origin(wish.suite, ground.weights, ground.content, wish.arguments, notes,
                        _first_start(ledger), commit)  # fmt: skip
        tuned, device = ground.tuned, ground.device
        slots = wish.batch_size or tuned.slots
        run = Run(name, ground.model, data, threat, line, chosen, ground.seed,
                  Engine(tuned.model, threat, slots, stride(device), tuned.half), device, ledger,
                  health, _keep(wish.save_adversarial, data, len(chosen), watcher), watcher,
                  prover, wish.attack_certified, examples, minimum_norm,
                  len(line.specs) if minimum_norm else scouts, crew)  # fmt: skip
        finished = [int(point) for point in chosen]
        if not ledger.costs().get(len(line.specs) - 1, Cost()).finished:
            path.unlink(missing_ok=True)  # of fewer points, or of an earlier configuration
            with blaming(name):
                finished = run.all(wish.pace)
                _look_again(run)
        if len(finished) < len(chosen):
            origin = origin._replace(content=digest(data, finished))
        if unaudited(line, ledger):
            told = "is not done: nothing bounds what its search may have missed"
            origin.notes.append(f"the audit of {wish.suite} {told}")
            watcher.note(f"{name}: {origin.notes[-1]}.")
        record = settle_record(make_record(run, origin, finished), path, watcher)
    watcher.kept(path)
    for flag in record.flags:
        told = f" Answered: {flag.answered}." if flag.answered else ""
        watcher.note(f"{name}: {flag.name}: {flag.message}{told}")
    return record


def default_folder_of(ground: Prepared, radii: Sequence[Threat], line: LineUp, wish: Wish) -> Path:
    """Return the folder of a run that was given none, and whose line-up is still to be settled.

    Args:
        radii: of a run over several eps all of them, the largest first.
    """
    identity = {
        "defense": ground.name,
        "source": source_digest(ground.name),
        "weights": ground.weights.digest,
        "data": ground.content,
        "radii": [asdict(radius) for radius in radii],
        "attacks": [str(spec) for spec in line.specs],
        "certify": wish.certify,
        "attack_certified": wish.attack_certified,
    }
    first, last = radii[0], radii[-1]
    threat = str(first) if first == last else f"{first.norm}:{last.eps:.6g}-{first.eps:.6g}"
    place = home(ground.data.name, threat, wish.suite, len(ground.points), ground.seed, identity)
    return place / slug(ground.name)


def _identity(ground: Prepared, threat: Threat) -> dict[str, Any]:
    """Return what every verdict depends on, beside what is done to the points."""
    source = source_digest(ground.name)
    return ({"source": source} if source else {}) | {
        "robustkit": provenance.versions()["robustkit"],
        "defense": ground.name,
        "weights": ground.weights.digest,
        "data": ground.content,
        "n": len(ground.points),
        "threat": asdict(threat),
        "seed": ground.seed,
    }


def _program(
    line: LineUp, prover: Certifier | None, wish: Wish, examples: Examples | None
) -> dict[str, Any]:
    """Describe what is done to the points, as far as verdicts depend on it."""
    program: dict[str, Any] = {"attacks": [str(spec) for spec in line.specs]}
    if line.audit:
        program["audit"] = asdict(line.audit)
    if line.findings is not None:
        program["findings"] = asdict(line.findings)
    if prover:
        program |= {"certify": prover.name, "attack_certified": wish.attack_certified}
    if examples:
        program["replay"] = examples.digest
    return program


def _look_again(run: Run) -> None:
    """See whether the model still answers as before the attacks; the ledger keeps what is found.

    A run to which nothing was added since the last look needs none.
    """
    if run.health.randomized or run.health.sample is None:
        return
    if run.ledger.remembered("looked at") == run.forwards():
        return
    changed = recheck(run.model, run.health)
    run.ledger.write(CLEAN, [], [], Cost(forwards=len(run.health.sample)))
    run.ledger.remember("changed", changed)
    run.ledger.remember("looked at", run.forwards())


def _keep(asked: bool | None, data: Dataset, n: int, watcher: Watcher) -> bool:
    size = 4 * n * prod(data.shape)
    if asked is None and size > KEEP_BYTES:
        watcher.note(
            f"adversarial inputs are not stored: up to {size / 2**30:.1f} GiB, and the default "
            f"ends at {KEEP_BYTES / 2**30:.0f} GiB. Ask for them with --save-adversarial."
        )
        return False
    return asked is not False


def _first_start(ledger: Ledger) -> str:
    """Return when the run began, in its first life."""
    started = ledger.remembered("started")
    if started is None:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        ledger.remember("started", started)
    return str(started)
