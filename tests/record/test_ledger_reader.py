"""A ledger is read without taking hold of it, changing it, or leaving a file beside it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkit.errors import UsageError
from robustkit.record import ledger_digest
from robustkit.record.adversarial import adversarial_inputs
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import digest_of_stored, open_readonly
from robustkit.record.ledger_schema import BrokenPoint, Cost
from robustkit.record.schema import LedgerDigests

INPUTS = {p: np.full((1, 2, 2), p / 10, dtype=np.float32) for p in (3, 1)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two broken points with their inputs, one without."""
    path = tmp_path / "run" / "ledger.sqlite"
    with Ledger(path, {"seed": 0, "findings": {"eot": 3}}) as ledger:
        ledger.remember("shape", [1, 2, 2])
        broken = [BrokenPoint(p, 0, 2, 0.1, z) for p, z in INPUTS.items()]
        ledger.write(0, [(7, 0)], [*broken, BrokenPoint(5, 0, 2, 0.2)], Cost(forwards=3))
    return path


def test_what_others_need_is_read(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with open_readonly(path) as ledger:
        assert ledger.stored() == {1, 3}
        assert ledger.shape() == (1, 2, 2)
        assert ledger.identity("findings") == {"eot": 3}
        assert ledger.identity("nothing") is None
        assert ledger.broken().keys() == {1, 3, 5}
        assert ledger.spent(0) == {(7, 0)}
        (only,) = ledger.examples((1, 2, 2), [3]).items()
    assert only[0] == 3
    assert torch.equal(only[1], torch.from_numpy(INPUTS[3]))
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert adversarial_inputs(path.parent).keys() == {1, 3}


def test_the_digest_covers_points_and_inputs_in_order(path: Path) -> None:
    state = hashlib.sha256()
    for point in (1, 3):
        state.update(f"{point}:".encode() + zlib.compress(INPUTS[point].tobytes(), 1))
    assert digest_of_stored([path]) == state.hexdigest()
    assert digest_of_stored([path, path]) != state.hexdigest()
    assert digest_of_stored([]) == hashlib.sha256().hexdigest()


def test_of_some_points_only_those_are_read(path: Path) -> None:
    with Ledger(path, None) as ledger:
        ledger.write_clean([(p, 1, p % 2, [1, 0]) for p in range(8)], 8, 0.1)
        ledger.write_certified([(p, p < 4) for p in range(8)], 0.1)
        assert ledger.clean([3, 4, 99]) == {3: (1, 1, [1, 0]), 4: (1, 0, [1, 0])}
        assert ledger.predicted([4]) == {4: (1, 0)}
        assert ledger.predicted().keys() == ledger.clean().keys() == set(range(8))
        assert ledger.certified([4, 3]) == {3: True, 4: False}
        assert ledger.broken([5, 6]).keys() == {5}
        assert ledger.spent(0, [7]) == {(7, 0)}
        assert ledger.spent(0, [3]) == ledger.spent(1, [7]) == set()
        assert ledger.clean([]) == {}


def test_a_file_is_read_for_its_digests_once_until_it_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, of_rows = [], ledger_digest.of_rows

    def counted(tables: Iterable[Iterable[tuple[Any, ...]]]) -> str:
        read.append(1)
        return of_rows(tables)

    def digests() -> LedgerDigests:
        with open_readonly(path) as ledger:
            return ledger.digests()

    monkeypatch.setattr(ledger_digest, "of_rows", counted)
    digests(), digests()
    assert len(read) == 4  # written a moment ago: a change might not show yet
    os.utime(path, (1, 1))
    before = digests()
    assert digests() == before
    assert len(read) == 6
    with sqlite3.connect(path) as database:
        database.execute("UPDATE broken SET distance = 0.3 WHERE point = 5")
    os.utime(path, (1, 1))
    assert digests() != before


def test_a_folder_without_write_access_will_do(path: Path) -> None:
    path.parent.chmod(0o555)
    try:
        with open_readonly(path) as ledger:
            assert ledger.stored() == {1, 3}
    finally:
        path.parent.chmod(0o755)


def test_it_is_not_held_while_it_is_read(path: Path) -> None:
    with open_readonly(path) as reader:
        with Ledger(path, None) as ledger:
            ledger.write(0, [], [BrokenPoint(8, 0, 2, 0.1)], Cost())
        assert reader.stored() == {1, 3}


def test_one_that_a_run_is_using_is_refused(path: Path) -> None:
    with Ledger(path, None) as ledger:
        ledger.write(0, [], [BrokenPoint(8, 0, 2, 0.1)], Cost())
        with (
            pytest.raises(UsageError, match=r"is in use by another run\. Wait for it\."),
            open_readonly(path) as reader,
        ):
            reader.stored()


@pytest.mark.parametrize("content", [b"no database " * 100, None])
def test_what_is_no_ledger_is_named(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)
    with (
        pytest.raises(UsageError, match=r"ledger\.sqlite cannot be read"),
        open_readonly(path) as reader,
    ):
        reader.stored()
    assert path.exists() == (content is not None)


def test_inputs_of_another_shape_and_damaged_ones_are_refused(path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"expected adversarial inputs of shape \[3, 3\]"),
        open_readonly(path) as reader,
    ):
        reader.examples((3, 3))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE broken SET example = ? WHERE point = 1", (b"torn",))
    database.close()
    with pytest.raises(UsageError, match="damaged ones"):
        adversarial_inputs(path.parent)


def test_a_run_that_stored_nothing_has_no_inputs(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite", {}):
        pass
    assert adversarial_inputs(tmp_path) == {}
    with pytest.raises(UsageError, match=r"holds no ledger\.sqlite"):
        adversarial_inputs(tmp_path / "elsewhere")
