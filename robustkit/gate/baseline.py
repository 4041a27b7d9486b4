"""Baselines: records to compare with, and what it takes to repeat their evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from robustkit.core.criterion import Criterion
from robustkit.core.named import NamedThreat
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset, digest
from robustkit.data.open import names_code, open_dataset
from robustkit.errors import EvidenceAltered, UsageError, digests_differ
from robustkit.evaluation.stages.replay import find_examples
from robustkit.leaderboard.rows import load_records
from robustkit.record.points import Status
from robustkit.record.record import Record
from robustkit.registry import read_threat
from robustkit.search.suites import acts_on_findings, line_up

_CHECK = "robustkit check"


class Baseline(NamedTuple):
    """A record, and where it lies."""

    record: Record
    path: Path

    @property
    def threat(self) -> Threat:
        """The threat model that a candidate must face too."""
        info = self.record.threat
        parsed = read_threat(info.norm if ":" in info.norm else f"{info.norm}:{info.eps!r}")
        if info.content and isinstance(parsed, NamedThreat) and parsed.digest() != info.content:
            raise digests_differ(self.path, f"what {info.norm} is read from",
                                 info.content, parsed.digest() or "")  # fmt: skip
        return replace(parsed, lower=info.lower, upper=info.upper, criterion=info.goal)

    def examples(self) -> Path | None:
        """Find the folder with the adversarial inputs of its run, if it lies beside the record."""
        folder = self.path.parent
        return folder if (folder / "ledger.sqlite").is_file() else None


def load_baselines(place: Path) -> list[Baseline]:
    """Load a baseline, or those of a folder.

    Raises:
        UsageError: when there is none, or one cannot be read.
    """
    if not place.exists():
        raise UsageError(
            f"there is no baseline at {place}: record one with `robustkit baseline update`, or "
            "name the record.json or the folder of a run of `robustkit evaluate`."
        )
    return [Baseline(record, path) for path, record in load_records([place])]


def models_of(known: Sequence[Baseline], command: str = _CHECK) -> list[str]:
    """Name the models of baselines, where the user names none.

    Args:
        command: what to name one after, for messages.

    Raises:
        UsageError: for one that is no registered name: loading it could run code.
    """
    for baseline in known:
        if ":" in (name := baseline.record.defense):
            listed = ", or list it under [[models]] in robustkit.toml" * (command == _CHECK)
            raise UsageError(
                f"the record {baseline.path} is of {name}, which can run code, and a record is "
                f"data. If you trust it, name it yourself: `{command} {shlex.quote(name)}`{listed}."
            )
    return list(dict.fromkeys(baseline.record.defense for baseline in known))


def choose(
    known: Sequence[Baseline],
    name: str,
    *,
    data: str | None = None,
    threat: Threat | None = None,
    criterion: Criterion | None = None,
    suite: str | None = None,
) -> Baseline:
    """Choose the baseline of a model: the only one there is, or the only one of its name.

    Args:
        data, threat, criterion, suite: what it must be about, where that was asked for.

    Raises:
        UsageError: when none fits, or several do.
    """
    fitting = [
        b for b in known
        if (data is None or data in (b.record.data.name, b.record.arguments.get("data")))
        and (threat is None or str(threat) == str(b.threat))
        and criterion in (None, b.threat.criterion)
        and (suite is None or b.record.suite == suite)
    ]  # fmt: skip
    named = [b for b in fitting if b.record.defense == name]
    chosen = named or (fitting if len(known) == 1 else [])
    if len(chosen) == 1:
        return chosen[0]
    asked = [str(fact) for fact in (data, threat, criterion, suite) if fact is not None]
    what = f"{name} ({', '.join(asked)})" if asked else name
    if not chosen:
        have = "; ".join(_told(b) for b in known)
        raise UsageError(
            f"no baseline fits {what}. There is: {have}. Name the right one with --baseline, or "
            "record one with `robustkit baseline update`."
        )
    listed = ", ".join(str(b.path) for b in chosen)
    raise UsageError(f"several baselines fit {what}: {listed}. Name one of them with --baseline.")


def open_points(
    baseline: Baseline,
    text: str | None,
    root: Path | None,
    *,
    named: Collection[str | None] = (),
    command: str = "",
) -> Dataset:
    """Open the data that a baseline was recorded on, and make sure that its points are the same.

    A record is data: what it names is opened only if that runs no code, or the user named it too.

    Args:
        text: what `--data` says; by default what the record says.
        named: what the user's configuration names.
        command: the one to give, for messages; `robustkit check MODEL` by default.

    Raises:
        UsageError: when the data cannot be had, or its points are others than the baseline's.
    """
    record = baseline.record
    name = text or str(record.arguments.get("data") or record.data.name)
    if not text and names_code(name) and name not in named:
        raise UsageError(
            f"the baseline {baseline.path} names {name} as its data, which can run code, and a "
            "record is data. If you trust it, name it yourself: "
            f"`{command or f'{_CHECK} {shlex.quote(record.defense)}'} --data {shlex.quote(name)}`, "
            f'data = "{name}" in robustkit.toml, or data="{name}" in Python.'
        )
    try:
        data = open_dataset(name, root=root, box=baseline.threat.box)
    except UsageError as error:
        raise UsageError(
            f"the points of the baseline {baseline.path} cannot be had: {error} If the data lies "
            "elsewhere, name it with --data."
        ) from None
    index = record.points.index
    same = max(index) < len(data) and list(data.shape) == record.data.shape
    if not same or digest(data, index) != record.data.digest:
        raise UsageError(
            f"{name} does not hold the points of the baseline {baseline.path}: its images or "
            "labels have changed (the digests differ). Name the right data with --data, or "
            "record a new baseline with `robustkit baseline update`."
        )
    return data


def attacks_of(
    baseline: Baseline, model: Model | None
) -> tuple[str | None, list[Spec], str | None]:
    """Return the suite or the attacks that a candidate must face, and what to say about them.

    The suite by its name, as it also attacks through the surrogates that the candidate declares;
    or else, where the suite has changed since, the very attacks of the baseline, less its audit's.

    Raises:
        UsageError: when an attack of the baseline is not known here.
    """
    record, threat = baseline.record, baseline.threat
    if record.suite is not None and ":" in record.suite:
        raise UsageError(
            f"the baseline {baseline.path} names {record.suite} as its suite, and with it a model "
            "that may be code; a record is data, and runs none. Record a baseline with a suite of "
            "registered names: `robustkit baseline update --suite NAME`."
        )
    recorded = [Spec.parse(text) for text in record.attacks]
    if record.suite is None:
        own = recorded
    else:
        own = [spec for spec in recorded if "surrogate" not in dict(spec.options)]
    try:
        if record.suite is not None and _same(record.suite, threat, own):
            line_up(record.suite, (), threat, model)
            return record.suite, [], None
    except UsageError:
        pass
    audits = record.audit.attacks if record.audit else ()  # a gate has no audit
    own = [spec for spec in own if str(spec) not in audits]
    try:
        line_up(None, own, threat, model)
    except UsageError as error:
        raise UsageError(
            f"the attacks of the baseline {baseline.path} cannot be run here: {error} Record a new "
            "baseline with `robustkit baseline update`."
        ) from None
    note = None
    if record.suite is not None:
        note = (
            f"the suite {record.suite} has changed since {baseline.path} was recorded: the attacks "
            "that are listed there are used. Record a new baseline to use the new ones."
        )
    return None, own, note


def searched(baseline: Baseline) -> Record:
    """Return a record of what the search did: what only the audit broke counts as robust.

    An audit attacks a sample, or everything once that alarms. A gate that stops early has none: it
    compares one search with another.

    Raises:
        UsageError: when the record does not say which attacks were the audit's.
    """
    record = baseline.record
    audited = audit_only(baseline)
    if not audited:
        return record
    points = record.points
    rows = list(zip(points.index, points.status, points.attack, points.distance, strict=True))
    status: list[Status] = ["robust" if p in audited else s for p, s, _, _ in rows]
    attack = [None if p in audited else a for p, _, a, _ in rows]
    distance = [None if p in audited else d for p, _, _, d in rows]
    changed = {"status": status, "attack": attack, "distance": distance}
    return record.model_copy(update={"points": points.model_copy(update=changed)})


def audit_only(baseline: Baseline) -> set[int]:
    """Return the points that only the audit of the suite broke; see `searched`."""
    record = baseline.record
    if record.audit is None:
        return set()
    if not record.audit.attacks:
        raise UsageError(
            f"{baseline.path} does not say which of its attacks were the audit's: it was made by "
            "an earlier robustkit. Record a new baseline with `robustkit baseline update`."
        )
    pairs = zip(record.points.index, record.points.attack, strict=True)
    return {point for point, attack in pairs if attack in record.audit.attacks}


def _same(suite: str, threat: Threat, own: list[Spec]) -> bool:
    """Tell whether a suite still lists its attacks; one that acts on findings may have had more."""
    now = line_up(suite, (), threat).specs
    return all(spec in own for spec in now) if acts_on_findings(suite) else now == own


def stored_examples(baseline: Baseline, shape: tuple[int, ...]) -> Path | None:
    """Return the folder whose adversarial inputs can be replayed, if there are any.

    Raises:
        EvidenceAltered: when its ledger is not as its run left it.
    """
    folder = baseline.examples()
    if folder is None:
        return None
    try:
        find_examples(folder, shape)
    except EvidenceAltered:
        raise
    except UsageError:
        return None
    return folder


def _told(baseline: Baseline) -> str:
    record = baseline.record
    suite = record.suite or ", ".join(record.attacks)
    return f"{record.defense} on {record.data.name}, {baseline.threat}, {suite} ({baseline.path})"
