"""Is what lies in a run's folder what robustkit wrote? Records and ledgers bear each other out.

Digests are no signature: whoever can edit the files can compute them anew. What an edit cannot
change is how the model answers, which `robustkit verify-record` asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robustkit.errors import EvidenceAltered, some
from robustkit.record.ledger_reader import InUse, LedgerReader, open_readonly
from robustkit.record.record import Record, load

LEDGER, RECORD = "ledger.sqlite", "record.json"


def refuse_altered(record: Record, path: Path) -> None:
    """Refuse a record that the ledger beside it does not bear out.

    A record without a ledger, and one of an earlier robustkit, are taken as they are; so is one
    whose ledger a run is using, which is about to write another.

    Raises:
        EvidenceAltered: when the ledger is not the one that the record was written from, or the
            two differ in a verdict.
        UsageError: when the ledger cannot be read.
    """
    ledger = path.with_name(LEDGER)
    if record.ledger is None or path.name != RECORD or not ledger.exists():
        return
    try:
        with open_readonly(ledger) as reader:
            reader.refuse_altered(record.ledger)
            differing = _differing(record, reader)
    except InUse:
        return
    if differing:
        told = f"its verdicts on points {some(differing)} are not those of {ledger}"
        raise EvidenceAltered(path, told)


def refuse_altered_ledger(path: Path) -> None:
    """Refuse a ledger that is not as its run left it, or not that of the record beside it.

    Raises:
        EvidenceAltered: naming what differs.
        UsageError: when one of them cannot be read, or a run is using the ledger.
    """
    record = path.with_name(RECORD)
    expected = load(record).ledger if record.is_file() else None
    with open_readonly(path) as ledger:
        ledger.refuse_altered(expected)


def without_digests(records: Iterable[tuple[Path, Record]]) -> str | None:
    """Say which records an earlier robustkit wrote, where an edit does not show; None: none."""
    bare = [str(path) for path, record in records if record.ledger is None]
    if not bare:
        return None
    many = f" and {len(bare) - 1} more" if len(bare) > 1 else ""
    return f"{bare[0]}{many} carries no digests of its ledger: an edit of it would not show."


def _differing(record: Record, ledger: LedgerReader) -> list[int]:
    clean, broken, found = ledger.predicted(), ledger.broken(), record.points
    signs = dict(zip(found.index, found.variants or (), strict=False))
    right = ledger.spent(0) if signs else set()  # variants that were classified rightly
    columns = zip(found.index, found.label, found.predicted, found.status, found.distance,
                  strict=True)  # fmt: skip
    return [
        point
        for point, label, predicted, status, distance in columns
        if clean.get(point) != (label, predicted)
        or (status == "broken" and (point not in broken or broken[point].distance != distance))
        or (status != "broken" and point in broken and found.nearest is None)
        or any(
            (sign == "1") != ((point, job) in right)
            for job, sign in enumerate(signs.get(point, ""))
        )
    ]
