"""The record that lies beside a ledger: kept where the two agree, else written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkit.errors import UsageError
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.record import Record, load, save

_CIRCUMSTANCES = {
    *("arguments", "notes", "versions", "device", "device_peak_bytes", "commit"),
    *("digest", "ledger"),
}


def settle_record(record: Record, path: Path, ledger: Ledger, watcher: Watcher) -> Record:
    """Return the record on disk if it says what the ledger says, else write the ledger's.

    A record that is written gets the digests of the ledger.
    """
    if path.exists():
        kept = _kept(path)
        if kept is not None and _derived(kept) == _derived(_as_told(record, kept)):
            return kept
        watcher.note(f"{path} did not agree with the ledger and was written anew from it")
    record = record.model_copy(update={"ledger": ledger.seal()})
    save(record, path)
    return record


def refuse_another_ledger(path: Path, ledger: Ledger) -> None:
    """Refuse to go on where the record on disk was written from another ledger.

    Raises:
        EvidenceAltered: naming what differs.
    """
    kept = _kept(path) if path.exists() and ledger.costs() else None
    if kept is not None and kept.ledger is not None:
        ledger.refuse_altered(kept.ledger)


def _kept(path: Path) -> Record | None:
    try:
        return load(path)
    except UsageError:  # damaged or edited: the ledger knows better
        return None


def _as_told(record: Record, kept: Record) -> Record:
    """Leave out by what points were proved, where the record is of a robustkit that told it not."""
    if kept.points.proof is not None:
        return record
    points = record.points.model_copy(update={"proof": None})
    return record.model_copy(update={"points": points})


def _derived(record: Record) -> dict[str, Any]:
    """Return what the ledger and the request decide: all but when, where and how it was asked."""
    derived = record.model_dump(mode="json", exclude=_CIRCUMSTANCES)
    # What was seen of a random model is another number at every look.
    return derived | {"flags": [(flag.name, bool(flag.answered)) for flag in record.flags]}
