"""The run's store: one SQLite file per model, written as verdicts are reached.

Every harvest of the engine is one transaction, so that `kill -9` loses at most the tasks that were
in flight. SQLite holds the file exclusively for as long as it is open; a second run is refused. A
file that cannot be read is reported and left as it is.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.core.files import make_folder
from robustkit.errors import RobustkitError, UsageError
from robustkit.record.ledger_reader import LedgerReader
from robustkit.record.ledger_schema import (
    CERTIFY,
    CLEAN,
    NAMES,
    SEAL,
    TABLES,
    VOLATILE,
    BrokenPoint,
    Cost,
    RefusedCandidate,
    columns,
)
from robustkit.record.schema import LedgerDigests

_CHANGED = {"source": "the model's file has changed", "weights": "the weights have changed"}


class Ledger(LedgerReader):
    """The verdicts of one model under one configuration.

    Args:
        path: the SQLite file; created with its folder when absent.
        identity: everything that a verdict depends on; a file of another identity is refused.
            None: whatever it is, to read it.
        fresh: forget what the file holds; whatever cannot be used is moved aside.

    Attributes:
        aside: what was moved aside.

    Raises:
        UsageError: when another run holds the file, or it belongs to another configuration.
        EvidenceAltered: when it is not as its run had left it.
        RobustkitError: when the file cannot be read or written.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any] | None, *, fresh: bool = False
    ) -> None:
        self.path = path
        self.aside: list[Path] = []
        make_folder(path.parent)
        try:
            self._begin(fresh)
        except RobustkitError as error:
            if not fresh or isinstance(error, UsageError) or not os.path.lexists(path):
                raise
            self._move_aside()
            self._begin(fresh)
        try:
            self._check_rows()
            if identity is not None:
                self._check(identity)
        except BaseException:
            self._db.close()
            raise

    def _begin(self, fresh: bool) -> None:
        """Open the file, empty it where that was asked for, and see whether it can be used."""
        self._open()
        try:
            with self._errors():
                if fresh:
                    self._forget()
                    self._refuse_damage()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        with self._errors():
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0)
            try:
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._refuse_other_tables()
                self._db.executescript(TABLES)
            except BaseException:
                self._db.close()
                raise

    def _refuse_other_tables(self) -> None:
        for name, expected in columns().items():
            found = [row[1] for row in self._db.execute(f"PRAGMA table_info({name})")]
            if found and found != expected:
                raise sqlite3.DatabaseError(
                    f"the table {name} has the columns {', '.join(found)}, expected "
                    f"{', '.join(expected)}"
                )

    def _refuse_damage(self) -> None:
        # Emptying reads every page; what is damaged where nothing was deleted shows here.
        (told,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise sqlite3.DatabaseError(told)

    def _move_aside(self) -> None:
        # The logs go too: SQLite would replay them into the next file of this name.
        for part in (
            self.path,
            *(Path(f"{self.path}{end}") for end in ("-wal", "-shm", "-journal")),
        ):
            if os.path.lexists(part):
                names = (part.with_name(f"{part.name}.damaged{n or ''}") for n in count())
                free = next(name for name in names if not os.path.lexists(name))
                try:
                    part.rename(free)
                except OSError as error:
                    raise RobustkitError(
                        f"{part} cannot be moved aside ({error.strerror}). Remove it, or choose "
                        "another --out."
                    ) from None
                self.aside.append(free)

    def _forget(self) -> None:
        with self.transaction():
            for table in NAMES:
                self._db.execute(f"DELETE FROM {table}")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _check(self, identity: Mapping[str, Any]) -> None:
        fresh = {key: json.dumps(value, sort_keys=True) for key, value in identity.items()}
        with self._errors():
            kept = dict(self._db.execute("SELECT key, value FROM meta"))
        if kept:
            changes = [
                _CHANGED.get(key) or f"{key} was {kept.get(key)}, now {fresh.get(key)}"
                for key in sorted(kept.keys() | fresh.keys())
                if kept.get(key) != fresh.get(key)
            ]
            if changes:
                raise UsageError(
                    f"{self.path.parent} holds a run of another configuration: "
                    f"{'; '.join(changes)}. Choose another --out, or start over with --fresh."
                )
            self.refuse_altered()
        else:
            with self.transaction():
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", fresh.items())

    @contextmanager
    def transaction(self, *, breaks_seal: bool = True) -> Iterator[None]:
        """Write all that happens inside, or nothing; the digests of before hold no longer."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if breaks_seal:
                    self._db.execute("DELETE FROM memo WHERE key = ?", (SEAL,))
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _refusal(self, error: sqlite3.DatabaseError) -> RobustkitError:
        if "locked" in str(error):
            return UsageError(
                f"{self.path.parent} is in use by another run. Wait for it, or choose another "
                "--out."
            )
        return RobustkitError(
            f"cannot use the ledger {self.path}: {error}. Nothing was overwritten. "
            "If the disk is full, make room and run the same command again; if the file is "
            "damaged, move it away or start over with --fresh."
        )

    def remember(self, key: str, value: Any) -> None:
        """Store a JSON value that belongs to the run but not to its identity."""
        text = json.dumps(value)
        with self._errors():
            row = self._db.execute("SELECT value FROM memo WHERE key = ?", (key,)).fetchone()
        if row == (text,):  # nothing new: the digests stay
            return
        with self.transaction(breaks_seal=key not in VOLATILE):
            self._db.execute("INSERT OR REPLACE INTO memo VALUES (?, ?)", (key, text))

    def seal(self) -> LedgerDigests:
        """Store the digests of what it holds, until the run goes on; return them."""
        digests = self.digests()
        self.remember(SEAL, digests.model_dump())
        return digests

    def write_clean(
        self,
        rows: Iterable[tuple[int, int, int, list[int]]],
        forwards: int,
        seconds: float,
        errors: Mapping[int, float] | None = None,
    ) -> None:
        """Store (point, label, predicted, classes by falling logit) of a clean batch.

        Args:
            errors: of a randomized model, the share of the passes that erred.
        """
        texts = [(p, y, k, json.dumps(ranked)) for p, y, k, ranked in rows]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO clean VALUES (?, ?, ?, ?)", texts)
            self._judge((p, CLEAN, share) for p, share in (errors or {}).items())
            self._spend(CLEAN, Cost(forwards=forwards, seconds=seconds))

    def write_certified(self, rows: Iterable[tuple[int, int]], seconds: float) -> None:
        """Store for some points whether the certificate holds; see `ledger_schema.UNPROVED`."""
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO certified VALUES (?, ?)", rows)
            self._spend(CERTIFY, Cost(seconds=seconds))

    def write(
        self,
        stage: int,
        spent: Iterable[tuple[int, int]],
        broken: Iterable[BrokenPoint],
        cost: Cost,
        closest: Mapping[int, float] | None = None,
        refused: Mapping[int, RefusedCandidate] | None = None,
    ) -> None:
        """Store in one transaction what a harvest brought; of each point the closest input.

        Args:
            spent: (point, job) pairs whose budget is used up.
            closest: how near these points came to being broken; the highest number is kept.
            refused: inputs that fooled a randomized model too seldom; the most often seen is kept.
        """
        broken = list(broken)
        with self.transaction():
            self._db.executemany(
                "INSERT INTO closest VALUES (?, ?) ON CONFLICT (point) DO UPDATE SET value = "
                "max(value, excluded.value)",
                (closest or {}).items(),
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO spent VALUES (?, ?, ?)", ((stage, *pair) for pair in spent)
            )
            self._db.executemany(
                "INSERT INTO broken VALUES (?, ?, ?, ?, ?) ON CONFLICT (point) DO UPDATE SET "
                "(stage, predicted, distance, example) = (excluded.stage, excluded.predicted, "
                "excluded.distance, excluded.example) WHERE excluded.distance < distance",
                ((*point[:4], _pack(point.example)) for point in broken),
            )
            self._db.executemany(
                "INSERT INTO refused VALUES (?, ?, ?) ON CONFLICT (point) DO UPDATE SET "
                "(seen, errors) = (excluded.seen, excluded.errors) WHERE excluded.seen > seen",
                ((point, *found) for point, found in (refused or {}).items()),
            )
            self._judge((p.point, stage, p.errors) for p in broken if p.errors is not None)
            self._spend(stage, cost)

    def _judge(self, rows: Iterable[tuple[int, int, float]]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?)", rows)

    def _spend(self, stage: int, cost: Cost) -> None:
        self._db.execute("INSERT OR IGNORE INTO cost (stage) VALUES (?)", (stage,))
        self._db.execute(
            "UPDATE cost SET entered = max(entered, ?), forwards = forwards + ?, backwards = "
            "backwards + ?, seconds = seconds + ?, flips = flips + ?, finished = max(finished, ?) "
            "WHERE stage = ?",
            (*cost[:6], stage),
        )
        if cost.moved:
            self._db.execute(
                "INSERT INTO strayed VALUES (?, ?, ?) ON CONFLICT (stage) DO UPDATE SET moved = "
                "moved + excluded.moved, outside = outside + excluded.outside",
                (stage, cost.moved, cost.outside),
            )


def _pack(example: np.ndarray[Any, Any] | None) -> bytes | None:
    return None if example is None else zlib.compress(example.astype("<f4").tobytes(), 1)
