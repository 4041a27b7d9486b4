"""Files are replaced whole; links, devices, pipes and sockets stay what they are."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from robustkit.cli.program import program as main
from robustkit.core import files
from robustkit.errors import RobustkitError, UsageError
from robustkit.record.record import save

TEXT = b"a report\n" * 30_000  # more than a pipe holds


@pytest.fixture
def record(tmp_path: Path, make_record: Callable[..., Any]) -> Path:
    path = tmp_path / "base" / "record.json"
    save(make_record("toy", "rrrbbm" * 3), path)
    return path


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report"
    files.write(TEXT, path)
    path.chmod(0o640)
    with path.open("rb") as before:
        files.write(b"another", path)
        assert before.read() == TEXT  # who was reading it goes on reading the old one
    assert path.read_bytes() == b"another"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["report"]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):  # one that points to nothing, then to a file
        files.write(content, link)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert [file.name for file in target.parent.iterdir()] == ["target"]


def test_a_draft_is_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / f".report.{os.getpid()}.tmp").symlink_to(victim)
    files.write(b"new", tmp_path / "report")
    assert victim.read_bytes() == b"untouched"
    assert (tmp_path / "report").read_bytes() == b"new"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path, found = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()), daemon=True)
    reader.start()
    files.write(TEXT, path)
    reader.join(20)
    assert found == [TEXT]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_socket_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        found = list[bytes]()

        def read() -> None:
            with listener.accept()[0] as connection, connection.makefile("rb") as stream:
                found.append(stream.read())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        files.write(TEXT, Path("socket"))
        reader.join(20)
    assert found == [TEXT]
    assert stat.S_ISSOCK(Path("socket").stat().st_mode)


class Device:
    """The end of a terminal of our own: a device that no mistake here can take from the system."""

    def __init__(self) -> None:
        self._end, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path, self.found = Path(os.ttyname(self.slave)), bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._end, 65536):
                self.found += part
        except OSError:  # it was closed
            return

    def close(self) -> bytes:
        os.close(self.slave)
        self._reader.join(20)
        os.close(self._end)
        return bytes(self.found)


@pytest.fixture
def device() -> Device:
    return Device()


def test_a_device_stays_a_device(device: Device) -> None:
    files.write(TEXT, device.path)
    assert stat.S_ISCHR(device.path.stat().st_mode)
    assert device.close() == TEXT


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link", "-"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output_is_written_in_its_place(name: str, kind: str, tmp_path: Path) -> None:
    """Behind it may be a file: what was printed before stays, and what is printed later follows."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "from pathlib import Path; from robustkit.core import files; print('before')\n"
        f"files.write(b'report\\n', Path({name!r})); print('after')"
    )
    command, wanted = [sys.executable, "-c", code], b"before\nreport\nafter\n"
    if kind == "pipe":
        assert subprocess.run(command, cwd=tmp_path, stdout=-1, check=True).stdout == wanted
        return
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(command, cwd=tmp_path, stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == wanted


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RobustkitError, match="could not be written"):
        files.write(b"", tmp_path / "a")
    with pytest.raises(UsageError, match="Choose another place"):
        files.refuse_unwritable(tmp_path / "a")


def test_a_file_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "to").write_bytes(b"kept")
    with pytest.raises(RobustkitError, match="could not be copied"):
        files.copy(tmp_path / "absent", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == b"kept"
    (tmp_path / "from").write_bytes(TEXT)
    files.copy(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == TEXT
    assert {file.name for file in tmp_path.iterdir()} == {"from", "to"}


REPORTS = [
    ("leaderboard", "RECORD", "--format", "csv", "--output"),
    ("leaderboard", "RECORD", "--format", "table", "--output"),
    ("history", "RECORD", "--output"),
    ("history", "RECORD", "--plot"),
    ("report", "RECORD", "--out"),
    ("check", "RECORD", "--baseline", "RECORD", "--junit"),
    ("check", "RECORD", "--baseline", "RECORD", "--sarif"),
    ("check", "RECORD", "--baseline", "RECORD", "--markdown"),
]


def named(words: tuple[str, ...], record: Path) -> list[str]:
    return [word.replace("RECORD", str(record)) for word in words]


@pytest.mark.parametrize("words", REPORTS, ids=" ".join)
def test_every_report_follows_links_and_goes_to_devices(
    words: tuple[str, ...], record: Path, tmp_path: Path, device: Device
) -> None:
    asked = named(words, record)
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    assert ask(*asked, tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "target.png").stat().st_size > 0
    (tmp_path / "device").symlink_to(device.path)
    assert ask(*asked, tmp_path / "device").exit_code == 0
    assert (tmp_path / "device").is_symlink()
    assert stat.S_ISCHR(device.path.stat().st_mode)
    assert len(device.close()) > 0


@pytest.mark.parametrize("words", REPORTS, ids=" ".join)
def test_every_report_can_go_to_standard_output_alone(
    words: tuple[str, ...], record: Path, tmp_path: Path
) -> None:
    asked = named(words, record)
    place = tmp_path / "report"
    assert ask(*asked, place).exit_code == 0
    result = ask(*asked, "-")
    assert result.exit_code == 0
    if words[-1] != "--out":  # a page names the record by its place alone, all else is the same
        assert result.stdout_bytes == place.read_bytes()
    assert result.stdout_bytes.startswith(place.read_bytes()[:9])
    assert not Path("-").exists()


def test_standard_output_holds_one_thing(record: Path) -> None:
    for words in (
        ("check", record, "--baseline", record, "--junit", "-", "--json"),
        ("check", record, "--baseline", record, "--junit", "-", "--sarif", "-"),
        ("report", record, "--out", "-", "--json"),
        ("history", record, "--output", "-", "--plot", "-"),
    ):
        result = ask(*words)
        assert result.exit_code == 2
        assert "only one thing can go to standard output" in result.stderr


MODEL = "code.py:model"  # would leave a file if it were loaded


@pytest.fixture
def room(tmp_path: Path, make_record: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(make_record("toy", "rrrbbm" * 3), tmp_path / "base" / "record.json")
    (tmp_path / "code.py").write_text("open('ran', 'w')\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    return tmp_path


PLACES = {"folder": "is a directory|is a folder", "file/report": "file is no folder",
          "file/deeper/report": "file is no folder"}  # fmt: skip
OUTPUTS = [
    *(
        ("check", MODEL, "--baseline", "base", kind)
        for kind in ("--junit", "--sarif", "--markdown")
    ),
    ("leaderboard", "base", "--output"),
    ("history", "base", "--output"),
    ("history", "base", "--plot"),
    ("report", "base", "--out"),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("words", OUTPUTS, ids=" ".join)
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    words: tuple[str, ...], place: str, room: Path
) -> None:
    before = sorted(room.rglob("*"))
    result = ask(*words, place)
    assert result.exit_code == 2
    assert words[-1] in result.stderr
    assert any(told in result.stderr for told in PLACES[place].split("|"))
    assert sorted(room.rglob("*")) == before


@pytest.mark.parametrize("command", ["evaluate", "check", "train"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(
    command: str, room: Path
) -> None:
    words = ["check", MODEL, "--baseline", "base"] if command == "check" else [command, MODEL]
    result = ask(*words, "--out", "file/out")
    assert result.exit_code == 2
    assert "file is no folder" in result.stderr
    assert not (room / "ran").exists()


def test_a_place_without_permission_is_refused(room: Path, bound_by_modes: None) -> None:
    closed = room / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(UsageError, match=r"cannot be written: .*[Pp]ermission"):
        files.refuse_unwritable(closed / "report")
    with pytest.raises(UsageError, match=r"cannot be written: .*[Pp]ermission"):
        files.refuse_unwritable_folder(closed / "new" / "folder")


def test_a_read_only_file_is_refused(room: Path, bound_by_modes: None) -> None:
    kept = room / "kept"
    kept.write_text("kept")
    kept.chmod(0o444)
    with pytest.raises(UsageError, match="you have no permission"):
        files.refuse_unwritable(kept)


def test_a_page_on_a_device_has_no_size(record: Path, device: Device) -> None:
    result = ask("report", record, "--out", device.path, "--json")
    assert json.loads(result.stdout)["bytes"] is None
    assert device.close().startswith(b"<!doctype html>")


def test_the_summary_of_a_step_is_added_to(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs of the step write there too; any other file is replaced."""
    summary, other = tmp_path / "summary", tmp_path / "other"
    for path in (summary, other):
        path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for path in (summary, other):
        words = ("leaderboard", record.parent, "--format", "markdown", "--output", path)
        assert ask(*words).exit_code == 0
    assert summary.read_text() == f"before\n{other.read_text()}"
