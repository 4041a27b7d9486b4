"""Is what a run's store holds what robustkit writes? SQLite keeps any type in any column.

A file can be sound as a database and hold no run: cells of another type, rows that contradict each
other. That is found when the file is opened, in one pass over its tables.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np

from robustkit.record.ledger_schema import CARRIED, CLEAN, NAMES, TABLES, VERIFIED

_TYPES = {
    "INTEGER": "typeof({0}) = 'integer'",
    "REAL": "typeof({0}) IN ('real', 'integer') AND abs({0}) < 9e307",
    "TEXT": "typeof({0}) = 'text'",
    "BLOB": "typeof({0}) IN ('blob', 'null')",
}
_WHOLE = {"done", "looked at"}  # memos that are numbers
_LISTS = {"shape", "answers", "answers_near", "gradients_near"}
_RULES = {
    "clean": "json_valid(ranked) AND json_type(ranked) = 'array' AND label >= 0 AND predicted >= 0 "
    "AND NOT EXISTS (SELECT 1 FROM json_each(ranked) WHERE type != 'integer' OR value < 0)",
    "certified": "proved BETWEEN -1 AND 2",
    "broken": "distance >= 0 AND predicted >= 0",
    "judged": "errors BETWEEN 0 AND 1",
    "refused": "errors BETWEEN 0 AND 1 AND seen BETWEEN 0 AND 1",
    "cost": "entered >= 0 AND forwards >= 0 AND backwards >= 0 AND seconds >= 0 AND flips >= 0",
}


def wrong_rows(database: sqlite3.Connection) -> str | None:
    """Say which table has a cell of another type or range than any run writes, or None.

    Raises:
        sqlite3.DatabaseError: when the file cannot be read at all.
    """
    return next(_rows(database), None)


def wrong_run(database: sqlite3.Connection) -> str | None:
    """Say what contradicts itself in what one run has written so far, or None; after `wrong_rows`.

    Raises:
        sqlite3.DatabaseError: when the file cannot be read at all.
    """
    return next(_contradictions(database), None)


def _rows(database: sqlite3.Connection) -> Iterator[str]:
    tables = dict(re.findall(r"EXISTS (\w+) \((.*?)\)(?: WITHOUT ROWID)?;", TABLES, re.DOTALL))
    there = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    for table in (name for name in NAMES if name in there):
        columns = re.findall(r"(\w+)\s+(INTEGER|REAL|TEXT|BLOB)", tables[table])
        names = [name for name, _ in columns]
        rules = [_TYPES[kind].format(name) for name, kind in columns]
        rules += [f"{name} >= 0" for name in ("point", "job") if name in names]
        rules += [f"stage >= {VERIFIED}"] * ("stage" in names)
        rules += [_RULES[table]] if table in _RULES else []
        for rule in rules:
            if database.execute(f"SELECT 1 FROM {table} WHERE NOT ({rule}) LIMIT 1").fetchone():
                yield f"the table {table} holds what no run writes"
    if "meta" in there:
        _json_of(database, "meta")
    if "memo" in there:
        yield from _memos(_json_of(database, "memo"))


def _json_of(database: sqlite3.Connection, table: str) -> dict[str, Any]:
    """Read the JSON values of a table by their key.

    Raises:
        sqlite3.DatabaseError: for one that is no JSON.
    """
    try:
        rows = database.execute(f"SELECT key, value FROM {table}")
        return {key: json.loads(value) for key, value in rows}
    except ValueError:
        raise sqlite3.DatabaseError(f"the table {table} holds what is no JSON") from None


def _memos(memos: dict[str, Any]) -> Iterator[str]:
    for key, value in memos.items():
        if key in _WHOLE and (type(value) is not int or value < 0):
            yield f"{key!r} is {type(value).__name__}, not a number"
        if key in _LISTS and not _numbers(value):
            yield f"{key!r} holds something else than numbers"
    if any(type(size) is not int for size in memos.get("shape", [])):
        yield "'shape' holds something else than whole numbers"
    if "audit" in memos and not _sample(memos["audit"]):
        yield "the sample of the audit is damaged"


def _contradictions(database: sqlite3.Connection) -> Iterator[str]:
    facts, memos = _json_of(database, "meta"), _json_of(database, "memo")
    query = (
        "SELECT 1 FROM broken LEFT JOIN clean USING (point) "
        "WHERE clean.predicted IS NOT label OR label IS NULL"
    )
    if database.execute(query).fetchone():
        yield "a point is broken that was not classified correctly before"
    known = {row[0] for row in database.execute("SELECT point FROM clean")}
    finished = "SELECT 1 FROM cost WHERE finished AND stage >= 0"
    n = facts.get("n", 0) if database.execute(finished).fetchone() else memos.get("done", 0)
    if isinstance(n, int) and len(known) < n:
        yield f"{n} points are finished, but only {len(known)} were classified"
    attacks = facts.get("attacks")
    last = len(attacks) - 1 if isinstance(attacks, list) else 0
    stages = [row[0] for row in database.execute("SELECT DISTINCT stage FROM broken")]
    if max(stages, default=CLEAN) > last and isinstance(attacks, list):
        yield "points were broken by an attack that the run does not have"
    carried = {
        row[0] for row in database.execute(f"SELECT point FROM broken WHERE stage={CARRIED}")
    }
    if not _carried(memos.get("carried", {}), carried, known):
        yield "what was carried from a larger eps is damaged"


def _numbers(value: Any) -> bool:
    try:
        return isinstance(value, list) and np.asarray(value).dtype.kind in "if"
    except ValueError:  # rows of different lengths
        return False


def _sample(value: Any) -> bool:
    parts = [value.get("near"), value.get("random")] if isinstance(value, dict) else [None]
    return all(isinstance(part, list) for part in parts) and isinstance(value.get("rest"), int)


def _carried(note: Any, broken: set[int], known: set[int]) -> bool:
    """Whether the note speaks of known points, and names an attack for every broken one."""
    if not isinstance(note, dict) or not note:
        return note == {} and not broken
    by: list[Any] = [note.get(name) for name in ("survived", "proved", "attacks")]
    if not all(isinstance(part, dict) for part in by):
        return False
    if not all(key.isdecimal() and int(key) in known for part in by for key in part):
        return False
    return all(isinstance(eps, int | float) for part in by[:2] for eps in part.values()) and (
        broken <= {int(key) for key in by[2]} and all(isinstance(a, str) for a in by[2].values())
    )
