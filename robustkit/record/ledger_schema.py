"""What a run's store holds: its tables, and the rows of two of them."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS memo (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS clean (
    point INTEGER PRIMARY KEY, label INTEGER NOT NULL, predicted INTEGER NOT NULL,
    ranked TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS certified (point INTEGER PRIMARY KEY, proved INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    stage INTEGER, point INTEGER, job INTEGER, PRIMARY KEY (stage, point, job)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS broken (
    point INTEGER PRIMARY KEY, stage INTEGER NOT NULL, predicted INTEGER NOT NULL,
    distance REAL NOT NULL, example BLOB);
CREATE TABLE IF NOT EXISTS judged (
    point INTEGER, stage INTEGER, errors REAL NOT NULL, PRIMARY KEY (point, stage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (
    point INTEGER PRIMARY KEY, seen REAL NOT NULL, errors REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS closest (point INTEGER PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cost (
    stage INTEGER PRIMARY KEY, entered INTEGER NOT NULL DEFAULT 0, forwards INTEGER NOT NULL
    DEFAULT 0, backwards INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
    flips INTEGER NOT NULL DEFAULT 0, finished INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS strayed (
    stage INTEGER PRIMARY KEY, moved INTEGER NOT NULL, outside INTEGER NOT NULL);
"""
NAMES = re.findall(r"EXISTS (\w+)", TABLES)
# What two digests cover: all but what every life of a run may write anew, and the inputs' own.
SEAL = "digests"
VOLATILE = (SEAL, "answers", "answers_near", "gradients_near")
DIGESTED = {
    "run": ["SELECT key, value FROM meta ORDER BY key"],
    "verdicts": [
        f"SELECT key, value FROM memo WHERE key NOT IN {VOLATILE} ORDER BY key",
        "SELECT point, stage, predicted, distance FROM broken ORDER BY point",
        *(
            f"SELECT * FROM {name} ORDER BY 1, 2, 3"
            for name in ("clean", "spent", "judged", "refused", "strayed")
        ),
        *(f"SELECT * FROM {name} ORDER BY 1, 2" for name in ("certified", "closest", "cost")),
    ],
}


def columns() -> dict[str, list[str]]:
    """Return the columns of every table, as SQLite reads `TABLES`."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(TABLES)
        return {
            name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
            for name in NAMES
        }


# Stages that are no attack: clean pass, certificate, earlier inputs, finds at a larger eps, branch
# and bound.
CLEAN, CERTIFY, REPLAYED, CARRIED, VERIFIED = -1, -2, -3, -4, -5
# What the column `proved` holds: not proved by the bounds that are tried first, or by them, or by
# branch and bound, or not by that either. (Older ledgers know the first two.)
UNPROVED, BY_BOUNDS, BY_BRANCHING, UNDECIDED = 0, 1, 2, -1


class BrokenPoint(NamedTuple):
    """A point that was broken, by which stage, and how.

    `errors` is the share of fresh passes that err on a randomized model; None on any other.
    """

    point: int
    stage: int
    predicted: int
    distance: float
    example: np.ndarray[Any, Any] | None = None
    errors: float | None = None


class RefusedCandidate(NamedTuple):
    """The input that fooled a randomized model most often without breaking its point.

    `seen`: how many passes erred while it was judged, by which it was chosen (see
    `robustkit.verify.candidates.CandidateVerdicts`); `errors`: the share of fresh ones that did.
    """

    seen: float
    errors: float


class Cost(NamedTuple):
    """What a stage has used so far.

    `moved`, `outside`: candidates of another library that was told the radius, and how many of them
    lie outside the threat model (in a table of their own: older ledgers lack it).
    """

    entered: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    flips: int = 0
    finished: bool = False
    moved: int = 0
    outside: int = 0
