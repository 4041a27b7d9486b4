"""A run's store, read: what it holds of points, stages and adversarial inputs.

`open_readonly` reads a file without taking hold of it or changing anything beside it, for whoever
did not write it: a replay, a gallery, a gate.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkit.errors import RobustkitError, UsageError, digests_differ
from robustkit.record import ledger_digest
from robustkit.record.ledger_check import wrong_rows, wrong_run
from robustkit.record.ledger_digest import FileState, file_state
from robustkit.record.ledger_schema import (
    BY_BRANCHING,
    DIGESTED,
    SEAL,
    UNDECIDED,
    BrokenPoint,
    Cost,
    RefusedCandidate,
)
from robustkit.record.schema import LedgerDigests

if TYPE_CHECKING:
    from robustkit.core.types import Images


class InUse(UsageError):
    """A run is using the ledger."""


class LedgerReader:
    """The verdicts of one model under one configuration, as far as they are known.

    Args:
        path: where the file lies, for messages.
        database: an open connection to it.
    """

    _state: FileState | None = None
    """Of a file that nobody writes; None: it may become another one."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self._db = path, database

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error
        except UnicodeDecodeError as error:  # SQLite's message quotes the damaged bytes
            told = sqlite3.DatabaseError("its schema is damaged")
            raise self._refusal(told) from error

    def _refusal(self, error: sqlite3.DatabaseError) -> RobustkitError:
        """Say what SQLite's error means here."""
        if "locked" in str(error):
            return InUse(f"{self.path.parent} is in use by another run. Wait for it.")
        return UsageError(
            f"{self.path} cannot be read ({error}): it is damaged, or no ledger of robustkit. "
            "Move it away; the same `robustkit evaluate` then writes it anew."
        )

    def _check_rows(self) -> None:
        """Refuse a file whose rows no run has written."""
        with self._errors():
            if (told := wrong_rows(self._db)) is not None:
                raise sqlite3.DatabaseError(told)

    def check_run(self) -> None:
        """Refuse a file whose rows contradict each other, before a run goes on with it."""
        with self._errors():
            if (told := wrong_run(self._db)) is not None:
                raise sqlite3.DatabaseError(told)

    def identity(self, key: str) -> Any:
        """Return one of the things that the verdicts depend on, or None."""
        with self._errors():
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return self._value(row)

    def _value(self, row: tuple[str] | None) -> Any:
        try:
            return None if row is None else json.loads(row[0])
        except ValueError as error:
            raise self._refusal(sqlite3.DatabaseError(str(error))) from None

    def remembered(self, key: str) -> Any:
        """Return what was remembered under `key`, or None."""
        with self._errors():
            row = self._db.execute("SELECT value FROM memo WHERE key = ?", (key,)).fetchone()
        return self._value(row)

    def _of_points(
        self, query: str, points: Iterable[int] | None, *given: Any
    ) -> list[tuple[Any, ...]]:
        """Answer a query that ends in a condition, for `points` alone, or for all.

        A run in parts asks about the points of one part: it must not read the others each time.
        """
        if points is not None:
            query += " AND point IN (SELECT value FROM json_each(?))"
            given = (*given, json.dumps(list(points)))
        with self._errors():
            return self._db.execute(query, given).fetchall()

    def clean(self, points: Iterable[int] | None = None) -> dict[int, tuple[int, int, list[int]]]:
        """Return point to (label, predicted, classes by falling logit), of `points` or all."""
        query = "SELECT point, label, predicted, ranked FROM clean WHERE true"
        rows = self._of_points(query, points)
        return {p: (y, k, json.loads(ranked)) for p, y, k, ranked in rows}

    def predicted(self, points: Iterable[int] | None = None) -> dict[int, tuple[int, int]]:
        """Return point to (label, predicted), of `points` or all."""
        rows = self._of_points("SELECT point, label, predicted FROM clean WHERE true", points)
        return {point: (label, guess) for point, label, guess in rows}

    def certified(self, points: Iterable[int] | None = None) -> dict[int, bool]:
        """Return the points that the certificate was tried on, and whether it holds."""
        rows = self._of_points("SELECT point, proved FROM certified WHERE true", points)
        return {point: proved > 0 for point, proved in rows}

    def verified(self, points: Iterable[int] | None = None) -> dict[int, bool]:
        """Return the points that branch and bound was tried on, and whether it proved them."""
        rows = self._of_points("SELECT point, proved FROM certified WHERE true", points)
        return {p: how == BY_BRANCHING for p, how in rows if how in (BY_BRANCHING, UNDECIDED)}

    def errors(self) -> dict[tuple[int, int], float]:
        """Return by (point, stage) which share of fresh passes erred, of randomized models."""
        with self._errors():
            rows = self._db.execute("SELECT point, stage, errors FROM judged").fetchall()
        return {(point, stage): share for point, stage, share in rows}

    def refused(self) -> dict[int, RefusedCandidate]:
        """Return what fooled a randomized model most often without breaking the point."""
        with self._errors():
            rows = self._db.execute("SELECT point, seen, errors FROM refused").fetchall()
        return {point: RefusedCandidate(seen, errors) for point, seen, errors in rows}

    def broken(self, points: Iterable[int] | None = None) -> dict[int, BrokenPoint]:
        """Return the broken ones of `points` or all, without their examples."""
        query = "SELECT point, stage, predicted, distance FROM broken WHERE true"
        return {row[0]: BrokenPoint(*row) for row in self._of_points(query, points)}

    def spent(self, stage: int, points: Iterable[int] | None = None) -> set[tuple[int, int]]:
        """Return the (point, job) pairs of a stage whose budget is used up."""
        query = "SELECT point, job FROM spent WHERE stage = ?"
        return {(point, job) for point, job in self._of_points(query, points, stage)}

    def given(self, stage: int) -> set[int]:
        """Return the points that a stage has broken, or has used up a budget on."""
        broken = {p for p, found in self.broken().items() if found.stage == stage}
        return broken | {point for point, _ in self.spent(stage)}

    def closest(self) -> dict[int, float]:
        """Return how near points came to being broken, as far as searches could tell."""
        with self._errors():
            return dict(self._db.execute("SELECT point, value FROM closest"))

    def costs(self) -> dict[int, Cost]:
        """Return the cost of every stage that has begun; `CLEAN` is the clean pass."""
        with self._errors():
            rows = self._db.execute(
                "SELECT stage, entered, forwards, backwards, seconds, flips, finished FROM cost"
            ).fetchall()
        return {row[0]: Cost(*row[1:])._replace(finished=bool(row[6])) for row in rows}

    def strayed(self) -> dict[int, tuple[int, int]]:
        """Return by stage the candidates of another library, and how many lay outside."""
        with self._errors():
            rows = self._db.execute("SELECT stage, moved, outside FROM strayed").fetchall()
        return {stage: (moved, outside) for stage, moved, outside in rows}

    def examples(
        self, shape: tuple[int, ...], points: Iterable[int] | None = None
    ) -> dict[int, Images]:
        """Return the stored adversarial inputs, of `points` or all, as float32 of `shape`."""
        import torch  # the one thing here that needs it: tables are ranked without

        query = "SELECT point, example FROM broken WHERE example IS NOT NULL"
        rows = self._of_points(query, points)
        try:
            arrays = ((p, np.frombuffer(zlib.decompress(blob), dtype="<f4")) for p, blob in rows)
            return {p: torch.from_numpy(array.reshape(shape).copy()) for p, array in arrays}
        except (zlib.error, ValueError) as error:
            raise UsageError(
                f"{self.path}: expected adversarial inputs of shape {list(shape)}, got others or "
                f"damaged ones ({error})."
            ) from None

    def stored(self) -> set[int]:
        """Return the points whose adversarial inputs are stored."""
        query = "SELECT point FROM broken WHERE example IS NOT NULL"
        with self._errors():
            return {row[0] for row in self._db.execute(query)}

    def shape(self) -> tuple[int, ...] | None:
        """Return the shape of one input; None where the run has not got so far."""
        found = self.remembered("shape")
        return None if found is None else tuple(found)

    def digests(self) -> LedgerDigests:
        """Return the digests of what it holds now; a file is read for them once, while it stays."""
        found = ledger_digest.known(self._state)
        if found is None:
            of_rows, run = ledger_digest.of_rows, self._db.execute
            with self._errors():
                told = {key: of_rows(map(run, queries)) for key, queries in DIGESTED.items()}
            found = LedgerDigests(**told, inputs=ledger_digest.of_inputs(self.packed()))
            ledger_digest.keep(self._state, found)
        return found

    def refuse_altered(self, expected: LedgerDigests | None = None) -> None:
        """Refuse a ledger that is not as its run left it.

        A run that is going on, or was killed, has left no digests: there is nothing to compare.

        Args:
            expected: what the record beside it says; by default what the ledger says itself.

        Raises:
            EvidenceAltered: naming what differs.
        """
        sealed = self.remembered(SEAL)
        if expected is None and sealed is None:
            return
        known, now = expected or LedgerDigests(**sealed), self.digests()
        whats = {"run": "what identifies its run", "verdicts": "its verdicts",
                 "inputs": "its stored adversarial inputs"}  # fmt: skip
        for key, what in whats.items():
            told, got = getattr(known, key), getattr(now, key)
            if told != got:
                raise digests_differ(self.path, what, told, got)

    def packed(self) -> Iterator[tuple[int, bytes]]:
        """Yield the stored adversarial inputs as they lie in the file, in order of the points."""
        query = "SELECT point, example FROM broken WHERE example IS NOT NULL ORDER BY point"
        with self._errors():
            yield from self._db.execute(query)


@contextmanager
def open_readonly(path: Path) -> Iterator[LedgerReader]:
    """Read from a ledger without taking hold of it or changing its folder's files.

    Raises:
        UsageError: when a run is using it, or it cannot be read.
    """
    # Without a write-ahead log nobody is writing, and a folder without write access will do.
    log = path.with_name(f"{path.name}-wal")
    state = file_state(path, log)
    try:
        still = not os.path.lexists(log) or not log.stat().st_size
        address = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if still else ''}"
        database = sqlite3.connect(address, uri=True, timeout=0)
    except (OSError, sqlite3.DatabaseError) as error:
        raise UsageError(f"{path} cannot be read ({error}).") from None
    with closing(database):
        ledger = LedgerReader(path, database)
        try:
            ledger.remembered(SEAL)
        except UsageError as error:
            if still or not re.search("unable to open|readonly", str(error)):
                raise
            # SQLite needs a file beside a log to read it; without the log, verdicts would be lost.
            raise UsageError(
                f"{path} cannot be read where it lies: its last verdicts are in {log.name}, as its "
                "run was killed or goes on, and the folder cannot be written. Copy the folder to "
                "where it can, and read it there."
            ) from None
        ledger._state = state
        if ledger_digest.known(state) is None:  # else its rows were checked then
            ledger._check_rows()
        yield ledger


def digest_of_stored(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of all adversarial inputs in some ledgers.

    Raises:
        UsageError: as `open_readonly`.
    """
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_readonly(path)) for path in paths]
        return ledger_digest.of_inputs(chain.from_iterable(each.packed() for each in ledgers))
