"""The ledger: all or nothing, one run at a time, and nothing overwritten."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.errors import RobustkitError, UsageError
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CLEAN, BrokenPoint, Cost

IDENTITY = {"seed": 0, "defense": "toy", "attacks": ["fgsm", "apgd(steps=5)"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


def content(ledger: Ledger) -> tuple[Any, ...]:
    return ledger.clean(), ledger.broken(), ledger.spent(0), ledger.spent(1), ledger.costs()


def fill(ledger: Ledger) -> None:
    ledger.write_clean([(4, 1, 1, [1, 0, 2]), (7, 2, 0, [0, 2, 1])], 2, 0.5)
    ledger.write(0, [(4, 0), (4, 1)], [BrokenPoint(9, 0, 3, 0.25)], Cost(5, 10, 8, 0.5, 1))
    ledger.write(1, [(4, 0)], [], Cost(3, 7, 7, 0.25))


def test_what_is_written_is_read_back_after_closing(path: Path) -> None:
    with Ledger(path, IDENTITY) as ledger:
        assert content(ledger) == ({}, {}, set(), set(), {})
        fill(ledger)
        before = content(ledger)
    with Ledger(path, IDENTITY) as ledger:
        assert content(ledger) == before
    clean, falls, first, second, costs = before
    assert clean == {4: (1, 1, [1, 0, 2]), 7: (2, 0, [0, 2, 1])}
    assert falls == {9: BrokenPoint(9, 0, 3, 0.25)}
    assert (first, second) == ({(4, 0), (4, 1)}, {(4, 0)})
    assert costs[CLEAN] == Cost(forwards=2, seconds=0.5)
    assert costs[0] == Cost(5, 10, 8, 0.5, 1)


def test_costs_add_up_and_what_ended_stays_ended(path: Path) -> None:
    with Ledger(path, IDENTITY) as ledger:
        ledger.write(0, [], [], Cost(5, 10, 8, 0.5, 1))
        ledger.write(0, [], [], Cost(0, 1, 2, 0.25, 3, True))
        ledger.write(0, [], [], Cost(entered=4))
        assert ledger.costs() == {0: Cost(5, 11, 10, 0.75, 4, True)}


def test_the_closest_fall_of_a_point_is_kept(path: Path) -> None:
    images = np.random.default_rng(0).random((3, 1, 2, 2), dtype=np.float32)
    with Ledger(path, IDENTITY) as ledger:
        ledger.write(0, [(1, 0)], [BrokenPoint(9, 0, 3, 0.25, images[0])], Cost())
        ledger.write(1, [(1, 0)], [BrokenPoint(9, 1, 5, 0.1, images[1])], Cost())
        as_close = BrokenPoint(9, 2, 4, 0.1, images[2])  # the earlier one stays
        ledger.write(2, [], [as_close], Cost())
        ledger.write(0, [(1, 0)], [], Cost())
        assert ledger.broken() == {9: BrokenPoint(9, 1, 5, 0.1)}
        assert np.array_equal(ledger.examples((1, 2, 2))[9].numpy(), images[1])
        assert ledger.spent(0) == {(1, 0)}


def test_examples_come_back_bit_for_bit(path: Path) -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).numpy()
    with Ledger(path, IDENTITY) as ledger:
        falls = [
            BrokenPoint(2, 0, 1, 0.5, images[0]),
            BrokenPoint(5, 0, 1, 0.5),
            BrokenPoint(8, 0, 1, 0.5, images[1]),
        ]
        ledger.write(0, [], falls, Cost())
    with Ledger(path, IDENTITY) as ledger:
        found = ledger.examples((3, 4, 5))
        assert ledger.broken()[2].example is None
    assert found.keys() == {2, 8}
    assert all(found[point].dtype == torch.float32 for point in found)
    np.testing.assert_array_equal(found[2].numpy(), images[0])
    np.testing.assert_array_equal(found[8].numpy(), images[1])


def test_a_write_is_all_or_nothing(path: Path) -> None:
    class Interrupted(Exception):
        pass

    def falls() -> Any:
        yield BrokenPoint(1, 0, 3, 0.25)
        raise Interrupted

    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
        before = content(ledger)
        with pytest.raises(Interrupted):
            ledger.write(0, [(5, 0), (6, 0)], falls(), Cost(forwards=100))
        assert content(ledger) == before
        ledger.write(0, [(5, 0)], [], Cost())
        assert ledger.spent(0) == {(4, 0), (4, 1), (5, 0)}


def test_another_configuration_is_refused_by_name(path: Path) -> None:
    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
        before = content(ledger)
    with pytest.raises(UsageError) as caught:
        Ledger(path, {**IDENTITY, "seed": 1})
    assert str(caught.value) == (
        f"{path.parent} holds a run of another configuration: seed was 0, now 1. "
        "Choose another --out, or start over with --fresh."
    )
    with pytest.raises(UsageError, match="more was None, now 2"):
        Ledger(path, {**IDENTITY, "more": 2})
    with pytest.raises(UsageError, match=r'attacks was \["fgsm", "apgd\(steps=5\)"\], now \[\]'):
        Ledger(path, {**IDENTITY, "attacks": []})
    with Ledger(path, dict(reversed(IDENTITY.items()))) as ledger:
        assert content(ledger) == before


def test_fresh_forgets(path: Path) -> None:
    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
    with Ledger(path, {"seed": 5}, fresh=True) as ledger:
        assert content(ledger) == ({}, {}, set(), set(), {})
    with Ledger(path, {"seed": 5}) as ledger:
        assert content(ledger) == ({}, {}, set(), set(), {})


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_second_run_on_one_folder_is_refused(path: Path, existing: bool, fresh: bool) -> None:
    if existing:
        Ledger(path, IDENTITY).__exit__()
    with Ledger(path, IDENTITY) as ledger:
        with pytest.raises(UsageError) as caught:
            Ledger(path, IDENTITY, fresh=fresh)
        assert str(caught.value) == (
            f"{path.parent} is in use by another run. Wait for it, or choose another --out."
        )
        fill(ledger)
        before = content(ledger)
    with Ledger(path, IDENTITY) as ledger:
        assert content(ledger) == before


def test_a_second_process_is_refused(path: Path) -> None:
    """Locks inside one process could differ from those between two."""
    program = (
        f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('SELECT 1 FROM meta')"
    )
    with Ledger(path, IDENTITY):
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "database is locked" in answer.stderr


@pytest.mark.parametrize("garbage", [b"not a database, but a long enough text " * 50, b"SQLite"])
def test_a_file_that_is_no_ledger_is_reported_and_left_alone(path: Path, garbage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(garbage)
    with pytest.raises(RobustkitError) as caught:
        Ledger(path, IDENTITY)
    message = str(caught.value)
    assert message.startswith(f"cannot use the ledger {path}: file is not a database. ")
    assert "Nothing was overwritten." in message
    assert "--fresh" in message
    assert path.read_bytes() == garbage
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_cut_off_ledger_is_reported_and_left_alone(path: Path) -> None:
    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
    whole = path.read_bytes()
    damaged = whole[:100] + b"\xff" * 4000 + whole[4100:]
    path.write_bytes(damaged)
    with pytest.raises(RobustkitError, match="cannot use the ledger"):
        Ledger(path, IDENTITY)
    assert path.read_bytes() == damaged


def test_fresh_moves_a_damaged_file_aside(path: Path) -> None:
    path.parent.mkdir()
    garbage = b"not a database, but a long enough text " * 50
    path.write_bytes(garbage)
    with Ledger(path, IDENTITY, fresh=True) as ledger:
        fill(ledger)
        assert ledger.broken()
    with Ledger(path, IDENTITY) as ledger:
        assert ledger.broken()
    assert path.with_name("ledger.sqlite.damaged").read_bytes() == garbage


def test_fresh_moves_the_log_of_a_damaged_file_aside_with_it(path: Path) -> None:
    """SQLite would replay a log that lies beside a new file of the same name."""
    ledger = Ledger(path, IDENTITY)
    fill(ledger)
    log = path.with_name("ledger.sqlite-wal").read_bytes()
    ledger.__exit__()
    path.write_bytes(b"not a database, but a long enough text " * 50)
    path.with_name("ledger.sqlite-wal").write_bytes(log)
    with Ledger(path, {"seed": 5}, fresh=True) as ledger:
        assert content(ledger) == ({}, {}, set(), set(), {})
        fill(ledger)
        before = content(ledger)
    with Ledger(path, {"seed": 5}) as ledger:
        assert content(ledger) == before


def test_a_full_disk_is_reported_and_nothing_is_lost(path: Path) -> None:
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
        before = content(ledger)
        (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
        ledger._db.execute(f"PRAGMA max_page_count={pages}")
        falls = [BrokenPoint(point, 0, 1, 0.1, noise) for point in range(100, 110)]
        with pytest.raises(RobustkitError) as caught:
            ledger.write(0, [(50, 0)], falls, Cost(forwards=9))
        assert not isinstance(caught.value, UsageError)
        assert "database or disk is full" in str(caught.value)
        assert "make room and run the same command again" in str(caught.value)
        assert content(ledger) == before
        ledger._db.execute("PRAGMA max_page_count=1000000")
        ledger.write(0, [(50, 0)], falls, Cost(forwards=9))
        assert len(ledger.broken()) == 11
    with Ledger(path, IDENTITY) as ledger:
        assert len(ledger.broken()) == 11


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"cannot make the folder .*file.*: .*Choose another"):
            Ledger(folder / "ledger.sqlite", IDENTITY)


def test_the_ledger_is_readable_with_any_sqlite(path: Path) -> None:
    """A run's folder is evidence: it must open without this package."""
    with Ledger(path, IDENTITY) as ledger:
        fill(ledger)
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT point, stage FROM broken").fetchall() == [(9, 0)]
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    plain.close()
