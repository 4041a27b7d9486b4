"""What `robustkit check` does: settle every pair of model and baseline, then run the gates."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustkit.cli.check.verdicts import show
from robustkit.cli.console import result, say, stderr, stdout
from robustkit.cli.options import takes_stdout, use_threads
from robustkit.cli.program import fail, told
from robustkit.cli.screen import GateLane, Screen
from robustkit.core import files, json_files
from robustkit.core.text import seconds, shown_json, slug
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.budget import Budget
from robustkit.evaluation.identity import source_digest
from robustkit.gate import config as configuration
from robustkit.gate.baseline import Baseline, choose, load_baselines, models_of, open_points
from robustkit.gate.comparison import Candidate, check, compare
from robustkit.gate.config import Config, ModelEntry
from robustkit.gate.criteria import Terms, tolerances
from robustkit.gate.formats.junit import to_junit
from robustkit.gate.formats.markdown import to_markdown
from robustkit.gate.formats.sarif import to_sarif
from robustkit.gate.verdict import Failure, GateVerdict, exit_code
from robustkit.models.load import Subject, load_model
from robustkit.models.regression import for_targets
from robustkit.record.evidence import without_digests
from robustkit.record.provenance import weights_digest

SCHEMA = "robustkit/checks/1"


@dataclass(frozen=True)
class CheckRequest:
    """What was asked for, as it was typed; None: not at all."""

    models: tuple[str, ...] = ()
    baseline: Path | None = None
    config: Path | None = None
    metrics: tuple[str, ...] = ()
    tolerance: float | None = None
    confidence: float | None = None
    claim: Any = None
    undecided: str | None = None
    max_time: float | None = None
    max_forwards: int | None = None
    data: str | None = None
    data_root: Path | None = None
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    replay: bool = True
    out: Path | None = None
    fresh: bool = False
    device: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    junit: Path | None = None
    sarif: Path | None = None
    markdown: Path | None = None
    as_json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class _Gate:
    """One candidate with its baseline; `record` instead of a model that is to be evaluated."""

    baseline: Baseline
    candidate: Candidate
    data: Dataset | None
    folder: Path
    record: Baseline | None = None


def run(asked: CheckRequest, *, debug: bool) -> int:
    """Run every gate, print and write the verdicts, return the exit code.

    Raises:
        UsageError: when the request is refused; no model was run then.
    """
    use_threads(asked.threads)
    reports = (asked.junit, asked.sarif, asked.markdown)
    if takes_stdout(reports, as_json=asked.as_json):
        asked = replace(asked, quiet=True)
    verdicts: list[GateVerdict] = []
    failures: list[Failure] = []
    with contextlib.redirect_stdout(sys.stderr):  # a user's code may print; results stay alone
        setup = configuration.load(asked.config or configuration.find(Path.cwd()))
        terms, gates = _terms(asked, setup), _gates(asked, setup)
        if not asked.quiet:
            _say_what_cannot_show(gates)
        with Screen(len(gates), quiet=asked.quiet, lane=GateLane) as screen:
            for gate in gates:
                try:
                    verdicts.append(_one(gate, asked, setup, terms, screen))
                except Exception as error:
                    name = gate.candidate.name
                    prefix = f"{name}: " if len(gates) > 1 else ""
                    code = fail(error, debug=debug, prefix=prefix)
                    failures.append(Failure(name, told(error)[0], code, gate.candidate.file))
    undecided = asked.undecided or setup.check.undecided
    code = exit_code([verdict.answer for verdict in verdicts], undecided)
    code = 1 if code == 1 else max([code, *(failure.exit_code for failure in failures)])
    _report(asked, verdicts, failures, undecided, code)
    return code


def _say_what_cannot_show(gates: Sequence[_Gate]) -> None:
    """Say which of the records that are compared carry no digests."""
    found = [known for gate in gates for known in (gate.baseline, gate.record) if known is not None]
    if told := without_digests({known.path: known.record for known in found}.items()):
        say(stderr(), "note", told, "yellow")


def _terms(asked: CheckRequest, setup: Config) -> Terms:
    usual = setup.check.tolerance if asked.tolerance is None else asked.tolerance
    return Terms(
        tolerances=tolerances(asked.metrics or setup.check.metrics, usual),
        confidence=asked.confidence or setup.check.confidence,
        claim=asked.claim or setup.check.claim,
    )


def _budget(asked: CheckRequest, setup: Config) -> Budget:
    table = setup.check
    own = seconds(table.max_time) if table.max_time else None
    return Budget(asked.max_time or own, asked.max_forwards or table.max_forwards)


def _gates(asked: CheckRequest, setup: Config) -> list[_Gate]:
    entries = _entries(asked, setup)
    gates: list[_Gate] = []
    for entry in entries:
        gate = _gate(entry, asked, setup)
        if any(gate.folder == other.folder for other in gates):
            raise UsageError(f"{gate.candidate.name} is checked twice against the same baseline.")
        gates.append(gate)
    return gates


def _entries(asked: CheckRequest, setup: Config) -> list[ModelEntry]:
    """List the models to check: those that were typed, those configured, those of the baseline."""
    if (asked.weights or asked.mean or asked.std) and len(asked.models) != 1:
        raise UsageError("--weights, --mean and --std go with exactly one MODEL.")
    if asked.models:
        return [setup.entry(name) for name in asked.models]
    if setup.models:
        return list(setup.models)
    place = asked.baseline or setup.place(setup.baseline)
    return [ModelEntry(model=name) for name in models_of(load_baselines(place))]


def _gate(entry: ModelEntry, asked: CheckRequest, setup: Config) -> _Gate:
    place = asked.baseline or setup.place(entry.baseline or setup.baseline)
    known = load_baselines(place)
    path = Path(entry.model)
    if path.exists() and (path.is_dir() or path.suffix == ".json"):
        (finished,) = _only(load_baselines(path), path)
        baseline = choose(known, finished.record.defense)
        name = finished.record.defense
        return _Gate(baseline, Candidate(name, lambda x: x), None, finished.path.parent, finished)
    # What the configuration asks for holds for its own baselines, not for one that was typed.
    wanted = {} if asked.baseline else _wanted(entry, setup)
    name = entry.model if ":" in entry.model else ""
    first = choose(known, name or _canonical(entry.model), **wanted)
    root, named = asked.data_root or setup.root, (entry.data, setup.data)
    command = f"robustkit check {shlex.quote(entry.model)}"
    data = open_points(first, asked.data, root, named=named, command=command)
    subject = load_model(
        entry.model,
        data=data,
        weights=asked.weights or setup.weights(entry),
        mean=asked.mean or entry.mean,
        std=asked.std or entry.std,
    )
    baseline = choose(known, subject.name, **wanted)
    arguments = {"model": subject.name, "data": asked.data or first.record.data.name,
                 "baseline": str(baseline.path)}  # fmt: skip
    judged = for_targets(subject.model, data, baseline.threat.criterion)
    candidate = Candidate(subject.name, judged, subject.notes, arguments, _file(entry.model))
    code = _code(baseline, subject, asked.replay)
    top = asked.out or Path("robustkit-runs") / f"check-{slug(subject.name)}-{code}"
    folder = top / slug(subject.name) if asked.out and len(asked.models) != 1 else top
    return _Gate(baseline, candidate, data, folder)


def _only(found: Sequence[Baseline], path: Path) -> Sequence[Baseline]:
    if len(found) != 1:
        raise UsageError(f"{path} holds {len(found)} records: name one of them.")
    return found


def _canonical(text: str) -> str:
    """Return the name that a registered defense has in records."""
    from robustkit.core.spec import Spec
    from robustkit.models.load import name_of
    from robustkit.registry import defenses

    spec = Spec.parse(text)
    return name_of(defenses.entry(spec.name), defenses.build(spec))


def _wanted(entry: ModelEntry, setup: Config) -> dict[str, Any]:
    from robustkit.evaluation.criterion import with_criterion
    from robustkit.registry import read_criterion, read_threat

    threat, asked = entry.threat or setup.threat, entry.criterion or setup.criterion
    criterion = read_criterion(asked) if asked else None
    return {
        "data": entry.data or setup.data,
        "threat": with_criterion(read_threat(threat), criterion) if threat else None,
        "criterion": criterion,
        "suite": entry.suite or setup.suite,
    }


def _file(text: str) -> str:
    file = text.rpartition(":")[0]
    return file if file.endswith(".py") else ""


def _code(baseline: Baseline, subject: Subject, replay: bool) -> str:
    weights, source = weights_digest(subject.model)[0], source_digest(subject.name)
    facts = [
        baseline.record.model_dump_json(exclude={"digest", "ledger"}),
        weights,
        replay,
        *([source] if source else []),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _one(
    gate: _Gate, asked: CheckRequest, setup: Config, terms: Terms, screen: Screen
) -> GateVerdict:
    if gate.record is not None:
        return compare(gate.baseline, gate.record, terms)
    assert gate.data is not None
    verdict = check(
        gate.candidate,
        gate.baseline,
        gate.data,
        gate.folder,
        terms=terms,
        budget=_budget(asked, setup),
        replay=asked.replay,
        device=asked.device if asked.device != "auto" else setup.device,
        batch_size=asked.batch_size,
        fresh=asked.fresh,
        watcher=screen.lane(gate.candidate.name),
    )
    screen.end(gate.candidate.name)
    json_files.write(verdict.plain(), gate.folder / "check.json")
    return verdict


def _report(
    asked: CheckRequest,
    verdicts: Sequence[GateVerdict],
    failures: Sequence[Failure],
    undecided: str,
    code: int,
) -> None:
    if asked.junit:
        files.write(to_junit(verdicts, undecided, failures).encode(), asked.junit)
    if asked.sarif:
        files.write(to_sarif(verdicts, failures).encode(), asked.sarif)
    if asked.markdown:
        files.write(to_markdown(verdicts, failures).encode(), asked.markdown)
    if asked.as_json:
        rows = [verdict.plain() for verdict in verdicts]
        lost = [{"candidate": f.candidate, "error": f.message} for f in failures]
        facts = {"schema": SCHEMA, "exit_code": code, "checks": rows, "failures": lost}
        result(shown_json(facts))
    elif verdicts and not asked.quiet:
        show(verdicts, stdout())
    elif asked.quiet:  # a build that fails must say why
        for verdict in verdicts:
            if verdict.answer in ("regressed", "undecided"):
                stderr().out(verdict.sentence(), highlight=False)
