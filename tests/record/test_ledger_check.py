"""A store that is sound as a database, and holds what no run writes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from robustkit.errors import RobustkitError, UsageError
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.ledger_schema import CARRIED, BrokenPoint, Cost
from robustkit.record.schema import ThreatInfo

IDENTITY = {"n": 2, "attacks": ["fgsm"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The ledger of a run of one attack on two points, which is over."""
    path = tmp_path / "run" / "ledger.sqlite"
    with Ledger(path, IDENTITY) as ledger:
        ledger.write_clean([(4, 1, 1, [1, 0]), (7, 0, 1, [1, 0])], 2, 0.5)
        ledger.write(0, [(4, 0)], [BrokenPoint(4, 0, 0, 0.25)], Cost(1, 2, 1, 0.5, 0, True))
        ledger.remember("shape", [1, 6, 6])
        ledger.remember("answers", [[0.5, 1.0]])
        ledger.check_run()
    return path


def change(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE clean SET ranked = 'x'", "UPDATE clean SET ranked = '{}'",
        "UPDATE clean SET ranked = '[1.5]'", "UPDATE clean SET label = 1.5",
        "UPDATE clean SET predicted = -1", "UPDATE clean SET label = 'x'",
        "UPDATE broken SET distance = -1", "UPDATE broken SET distance = 9e999",
        "UPDATE broken SET stage = -9", "UPDATE broken SET example = 'text'",
        "UPDATE cost SET forwards = -1", "UPDATE cost SET seconds = 'x'",
        "UPDATE meta SET key = NULL WHERE key = 'n'", "UPDATE meta SET value = 'x'",
        "UPDATE memo SET value = 'x'", "UPDATE memo SET value = '3' WHERE key = 'shape'",
        "UPDATE memo SET value = '[\"x\"]' WHERE key = 'shape'",
        "UPDATE memo SET value = '[[1], [1, 2]]' WHERE key = 'answers'",
        "INSERT INTO memo VALUES ('done', '1.5')", "INSERT INTO memo VALUES ('audit', '{}')",
    ],
)  # fmt: skip
def test_a_cell_that_no_run_writes_is_refused_by_whoever_opens(path: Path, statement: str) -> None:
    change(path, statement)
    with pytest.raises(RobustkitError, match=r"cannot use the ledger .* start over with --fresh"):
        Ledger(path, IDENTITY)
    with pytest.raises(UsageError, match="cannot be read"), open_readonly(path):
        pass
    with Ledger(path, IDENTITY, fresh=True) as ledger:
        assert ledger.clean() == {}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM clean", "not classified correctly before"),
        ("UPDATE clean SET label = 0 WHERE point = 4", "not classified correctly before"),
        ("DELETE FROM clean WHERE point = 7", "2 points are finished, but only 1 were classified"),
        ("UPDATE broken SET stage = 3", "an attack that the run does not have"),
        (f"UPDATE broken SET stage = {CARRIED}", "carried from a larger eps is damaged"),
        ("INSERT INTO memo VALUES ('carried', '[]')", "carried from a larger eps is damaged"),
        ("INSERT INTO memo VALUES ('carried', '{\"survived\": {\"9\": 0.1}}')", "is damaged"),
    ],
)
def test_rows_that_contradict_each_other_are_refused_before_a_run_goes_on(
    path: Path, statement: str, told: str
) -> None:
    change(path, statement)
    with (
        Ledger(path, IDENTITY) as ledger,
        pytest.raises(RobustkitError, match=f"cannot use the ledger .*{told}"),
    ):
        ledger.check_run()


def test_a_damaged_schema_is_told_without_its_bytes(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"CREATE TABLE", b"CREATE T\xd5BLE"))
    with pytest.raises(RobustkitError, match="cannot use the ledger"):
        Ledger(path, IDENTITY)


def test_a_record_names_a_norm_that_there_is() -> None:
    assert ThreatInfo(norm="l2", eps=0.5).norm == "l2"
    with pytest.raises(ValueError, match="norm"):
        ThreatInfo(norm="l7", eps=0.5)
