"""`--fresh` over whatever lies where a ledger should; evidence that can be read but not written."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import robustkit
from robustkit.cli.program import program as main
from robustkit.errors import RobustkitError, UsageError
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.ledger_schema import BrokenPoint, Cost
from robustkit.record.record import load

IDENTITY = {"seed": 0}


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def fill(path: Path, points: int = 400) -> None:
    with Ledger(path, IDENTITY) as ledger:
        broken = [BrokenPoint(p, 0, 1, 0.25) for p in range(points)]
        ledger.write(0, [(p, 0) for p in range(points)], broken, Cost())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[5000:9000] = b"\xff" * 4000
    path.write_bytes(whole)


def garbage(path: Path) -> None:
    path.write_bytes(b"no database, whatever its name says " * 40)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as plain:
        plain.execute("CREATE TABLE broken (point INTEGER PRIMARY KEY, why TEXT)")
    plain.close()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("kept")


def log_of_garbage(path: Path) -> None:
    path.with_name("ledger.sqlite-wal").write_bytes(b"\x37\x7f\x06\x82" + b"\x01" * 9000)


def log_that_is_a_folder(path: Path) -> None:
    path.with_name("ledger.sqlite-wal").mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "absent" / "ledger.sqlite")


DAMAGES: list[Callable[[Path], None]] = [
    cut, scribble, garbage, empty, other_schema, folder, log_of_garbage, log_that_is_a_folder,
    link_to_nowhere,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_fresh_begins_anew_over_any_damage(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.sqlite"
    fill(path)
    damage(path)
    with Ledger(path, {"seed": 5}, fresh=True) as ledger:
        assert (ledger.broken(), ledger.spent(0)) == ({}, set())
        ledger.write(0, [(7, 0)], [BrokenPoint(7, 0, 1, 0.25)], Cost())
    with Ledger(path, {"seed": 5}) as ledger:
        assert ledger.broken().keys() == {7}
        assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_moved_aside_is_kept_every_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.sqlite"
    fill(path)
    for number, name in enumerate(["ledger.sqlite.damaged", "ledger.sqlite.damaged1"]):
        path.write_bytes(b"%d is no database, whatever its name says " % number * 40)
        with Ledger(path, IDENTITY, fresh=True) as ledger:
            assert ledger.aside[0] == path.with_name(name)
        assert path.with_name(name).read_bytes().startswith(b"%d is" % number)


def test_a_ledger_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.sqlite"
    fill(path)
    other_schema(path)
    with pytest.raises(RobustkitError, match="the table broken has the columns point, why, expec"):
        Ledger(path, IDENTITY)


def test_a_value_that_is_no_json_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.sqlite"
    fill(path)
    with sqlite3.connect(path) as plain:
        plain.execute("INSERT INTO memo VALUES ('shape', '[1, ')")
    plain.close()
    with pytest.raises(UsageError, match="it is damaged"), open_readonly(path):
        pass


@pytest.mark.parametrize("damage", [garbage, folder, other_schema])
def test_the_command_begins_anew_and_says_what_became_of_it(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("evaluate", "pgd_at", "--attack", "fgsm", "--n", "8", "--device", "cpu", "--out", out)
    assert ask(*words).exit_code == 0
    path = out / "pgd_at" / "ledger.sqlite"
    damage(path)
    assert ask(*words).exit_code in (2, 3)
    result = ask(*words, "--fresh")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stderr.split())
    assert f"{path} could not be used: what was there is now {path}.damaged" in told
    (out / "config.json").write_text('{"schema": ')
    assert ask(*words).exit_code == 2
    assert ask(*words, "--fresh").exit_code == 0
    assert load(out / "pgd_at" / "record.json").n == 8


def test_fresh_does_not_take_a_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "another"}')
    words = ("evaluate", "pgd_at", "--attack", "fgsm", "--n", "8", "--out", tmp_path)
    result = ask(*words, "--fresh")
    assert result.exit_code == 2
    assert "is not of robustkit" in result.stderr


@pytest.fixture
def archive(nearest: Any, blobs: Any, tmp_path: Path) -> Iterator[Path]:
    """A run's folder that may be read only."""
    folder = tmp_path / "run"
    robustkit.evaluate(
        nearest, name="toy", data=blobs, threat="linf:0.2", attacks=["fgsm"], folder=folder
    )
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


READERS = (
    ("leaderboard", "RUN"),
    ("history", "RUN"),
    ("check", "RUN/record.json", "--baseline", "RUN"),
    ("baseline", "list", "RUN"),
    ("report", "RUN", "--out", "PAGE"),
)


def test_an_archive_without_write_access_is_read(
    archive: Path, tmp_path: Path, bound_by_modes: None
) -> None:
    before = {file.name: file.read_bytes() for file in archive.iterdir()}
    page = tmp_path / "page.html"
    for reader in READERS:
        words = [word.replace("RUN", str(archive)).replace("PAGE", str(page)) for word in reader]
        result = ask(*words)
        assert result.exit_code == 0, (words, result.output)
    assert robustkit.adversarial_inputs(archive)
    assert {file.name: file.read_bytes() for file in archive.iterdir()} == before
    with pytest.raises(PermissionError):  # it is as it should be: nothing can be written
        (archive / "new").write_text("")


def test_a_log_that_cannot_be_merged_is_not_passed_over(
    archive: Path, request: pytest.FixtureRequest
) -> None:
    """Its last verdicts would be missing without a word."""
    archive.chmod(0o755)
    path = archive / "ledger.sqlite"
    path.chmod(0o644)
    ledger = Ledger(path, None)
    ledger.write(0, [], [BrokenPoint(77, 0, 1, 0.01)], Cost())
    copy = archive.parent / "killed"
    copy.mkdir()
    for file in archive.iterdir():
        shutil.copyfile(file, copy / file.name)
    ledger.__exit__()
    (copy / "record.json").unlink()
    for file in copy.iterdir():
        file.chmod(0o444)
    copy.chmod(0o555)
    request.getfixturevalue("bound_by_modes")
    with (
        pytest.raises(UsageError, match=r"its last verdicts are in ledger\.sqlite-wal.*Copy"),
        open_readonly(copy / "ledger.sqlite") as reader,
    ):
        reader.broken()
