"""Success is what the child has signed: no code of a user can end it into exit code 0."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from robustkit.cli import supervisor
from robustkit.cli.supervisor import _compare, _is_signed, _Reader
from robustkit.errors import RobustkitError

LINEAR = """
import atexit, os, signal, sys, threading, time
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()

class Ends(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        end()
        return self.net(x)
"""
AT_IMPORT = "\nimport sys\nsys.exit(0)"
IN_INIT = "\nclass Ends(nn.Module):\n    def __init__(self):\n        sys.exit(0)"
ENDINGS = {
    "exit at import": (LINEAR + AT_IMPORT, "SystemExit"),
    "exit in init": (LINEAR + IN_INIT, "SystemExit"),
    "exit in forward": (LINEAR + "def end():\n    sys.exit(0)", "SystemExit"),
    "click's exit in forward": (
        LINEAR + "import click\ndef end():\n    raise click.exceptions.Exit(0)",
        "Exit",
    ),
    "_exit in forward": (LINEAR + "def end():\n    os._exit(0)", "left with exit status 0"),
    "_exit at import": (LINEAR + "\nos._exit(0)", "left with exit status 0"),
    "_exit in a thread": (
        LINEAR + "threading.Thread(target=lambda: os._exit(0)).start()\n"
        "def end():\n    time.sleep(60)",
        "left with exit status 0",
    ),
    "killed": (
        LINEAR + "def end():\n    os.kill(os.getpid(), signal.SIGKILL)",
        "was killed by SIGKILL",
    ),
    "crashed": (
        LINEAR + "def end():\n    os.kill(os.getpid(), signal.SIGSEGV)",
        "was killed by SIGSEGV",
    ),
    "_exit after an error": (
        LINEAR + "atexit.register(os._exit, 0)\ndef end():\n    raise ValueError('no')",
        "ValueError: no",
    ),
    "a base exception": (
        LINEAR + "class Stop(BaseException):\n    pass\ndef end():\n    raise Stop",
        "left with exit status 1",
    ),
}
HOW = ["--data", "npz:data.npz", "--threat", "linf:0.1", "--attack", "fgsm", "--device", "cpu"]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A working folder with model.py, whose `net` is sound, and data.npz."""
    x = np.random.default_rng(0).random((12, 1, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(12) % 3)
    (tmp_path / "model.py").write_text(LINEAR)
    return tmp_path


def shell(room: Path, *words: str, stdout: int = subprocess.PIPE) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "robustkit", *words]
    return subprocess.run(
        command, cwd=room, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def forked(processes: BaseContext) -> Callable[..., CompletedProcess[str]]:
    """As `shell`, but program and child are copies of a process that has imported PyTorch."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return shell
    source = Path(__file__).with_name("forked.py").read_text("utf-8")

    def run(room: Path, *words: str) -> CompletedProcess[str]:
        code = f"{source}\nrun(Path({str(room)!r}), {words!r})"
        with ProcessPoolExecutor(1, mp_context=processes) as process:
            error = process.submit(exec, code, {"__name__": "forked"}).exception(timeout=300)
        assert isinstance(error, SystemExit), error
        told = [(room / name).read_text("utf-8") for name in ("stdout", "stderr")]
        return CompletedProcess(words, int(error.code or 0), *told)

    return run


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="ends by signals")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_that_ends_the_process_is_a_failure(
    room: Path, ending: str, forked: Callable[..., CompletedProcess[str]]
) -> None:
    code, told = ENDINGS[ending]
    (room / "model.py").write_text(code)
    # Of an interpreter of its own: how it ends, and one that is killed.
    run = shell if ending in ("_exit after an error", "killed") else forked
    done = run(room, "evaluate", "model.py:Ends", *HOW, "--out", "out")
    assert done.returncode in (2, 3), done.stderr
    assert told in done.stderr
    assert done.stdout == ""
    assert not list(room.rglob("record.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "told"), [("sys.exit(0)", "SystemExit: 0"), ("os._exit(0)", "exit status 0")]
)
@pytest.mark.parametrize("where", ["data", "pack"])
def test_data_and_packs_that_end_the_process_are_failures(
    room: Path,
    where: str,
    ending: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    forked: Callable[..., CompletedProcess[str]],
) -> None:
    data, run = "npz:data.npz", shell
    if where == "data":
        run = forked
        (room / "mine.py").write_text(f"import os, sys\ndef load():\n    {ending}\n")
        data = "mine.py:load"
    else:
        place = room / "site"
        info = place / "ending_pack-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ending-pack\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[robustkit.packs]\nending = ending_pack\n")
        (place / "ending_pack.py").write_text(f"import os, sys\n{ending}\n")
        monkeypatch.setenv("PYTHONPATH", str(place))
    done = run(room, "evaluate", "model.py:net", "--data", data, *HOW[2:])
    assert done.returncode in (2, 3), done.stderr
    assert told in done.stderr


LATE = """
import click, numpy as np
from robustkit.data import Dataset
from robustkit.data.arrays import from_arrays

x, y = (np.load("data.npz")[key] for key in "xy")
whole = from_arrays("late", x, y)

def load():
    return Late()

class Late:
    calls = 0

    def __getattr__(self, name):
        return getattr(whole, name)

    def __len__(self):
        return len(whole)

    def fetch(self, points):
        Late.calls += 1
        if Late.calls > 2:
            raise click.exceptions.Exit(0)
        return whole.fetch(points)
"""


@pytest.mark.slow
def test_data_that_leave_by_the_exit_of_the_command_line_are_a_failure(
    room: Path, forked: Callable[..., CompletedProcess[str]]
) -> None:
    (room / "late.py").write_text(LATE)
    done = forked(room, "evaluate", "model.py:net", "--data", "late.py:load", *HOW[2:])
    assert (done.returncode, "tried to end the program" in done.stderr) == (3, True), done.stderr
    assert not list(room.rglob("record.json"))


@pytest.mark.slow
def test_a_check_whose_candidate_ends_the_process_does_not_pass(
    room: Path, forked: Callable[..., CompletedProcess[str]]
) -> None:
    assert forked(room, "evaluate", "model.py:net", *HOW, "--out", "base").returncode == 0
    (room / "model.py").write_text(LINEAR + "def end():\n    os._exit(0)")
    reports = ["--junit", "junit.xml", "--markdown", "summary.md"]
    done = shell(room, "check", "model.py:Ends", "--baseline", "base", "--device", "cpu", *reports)
    assert done.returncode == 3
    assert "`robustkit check` ended without a result" in done.stderr
    assert not (room / "junit.xml").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="closes streams")
class TestStreams:
    def test_a_reader_that_leaves_is_no_failure(self, room: Path) -> None:
        source, sink = os.pipe()
        os.close(source)
        done = shell(room, "evaluate", "model.py:net", *HOW, stdout=sink)
        os.close(sink)
        assert done.returncode == 0

    def test_closed_streams_are_no_failure(self, room: Path) -> None:
        words = [sys.executable, "-m", "robustkit", "evaluate", "model.py:net", *HOW]
        done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], cwd=room)
        assert done.returncode == 0
        assert list(room.rglob("record.json"))

    def test_what_the_caller_opened_can_be_written(
        self, room: Path, forked: Callable[..., CompletedProcess[str]]
    ) -> None:
        assert forked(room, "evaluate", "model.py:net", *HOW, "--out", "base").returncode == 0
        with (room / "page.html").open("wb") as page:
            words = ["report", "base", "--out", f"/dev/fd/{page.fileno()}", "--quiet"]
            command = [sys.executable, "-m", "robustkit", *words]
            subprocess.run(command, cwd=room, pass_fds=[page.fileno()], check=True)
        assert (room / "page.html").read_text("utf-8").rstrip().endswith("</html>")

    def test_nor_for_a_command_without_a_child(self, room: Path) -> None:
        source, sink = os.pipe()
        os.close(source)
        done = shell(room, "--help", stdout=sink)
        os.close(sink)
        assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGTERM")
def test_sigterm_ends_both_processes_by_itself(room: Path) -> None:
    slow = "from pathlib import Path\ndef end():\n    Path('pid').write_text(str(os.getpid()))\n"
    (room / "model.py").write_text(LINEAR + slow + "    time.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "robustkit", "evaluate", "model.py:Ends", *HOW],
        cwd=room, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()  # before the child has imported anything
    assert first == "robustkit evaluate: starting\n"
    assert not (room / "pid").exists()
    while not (room / "pid").exists() or not (room / "pid").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    with process.stderr as rest:
        assert rest.read().splitlines()[-1] == (
            "stopped: by SIGTERM; nothing is lost, and the same command resumes."
        )
    child = int((room / "pid").read_text())
    assert child != process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_the_process_of_the_user_imports_no_torch_and_hides_its_token(room: Path) -> None:
    (room / "model.py").write_text(
        LINEAR + "import json\nfrom pathlib import Path\ndef make():\n"
        "    Path('seen').write_text(json.dumps([dict(os.environ), sys.argv]))\n"
        "    return net()\n"
    )
    code = (
        "import json, secrets, sys\nfrom robustkit.cli import main\n"
        "plain = secrets.token_hex\n"
        "def kept(size):\n    tokens.append(plain(size))\n    return tokens[-1]\n"
        "tokens = []\nsecrets.token_hex = kept\n"
        f"sys.argv = ['robustkit', 'evaluate', 'model.py:make', '--quiet', *{HOW!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n"
        "    print(json.dumps([left.code, 'torch' in sys.modules, *tokens]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=room, capture_output=True, text=True)
    status, torch, token = json.loads(done.stdout)
    assert (status, torch) == (0, False), done.stderr
    assert token not in (room / "seen").read_text()


def test_only_the_token_makes_a_sign_off() -> None:
    good = {"token": "t", "exit_code": 0, "files": {}}
    assert _is_signed(good, "t")
    for bad in (
        {**good, "token": "u"},
        {**good, "token": None},
        {**good, "exit_code": True},
        {**good, "files": None},
        ["t", 0],
        {"exit_code": 0, "files": {}},
    ):
        assert not _is_signed(bad, "t")


def test_what_else_is_written_to_the_pipe_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps({"token": "t", "exit_code": 1, "files": {}}).encode()
    for said, code in ((b"0\n\xff\n" + good + b"\n", 1), (b'{"exit_code": 0}\n', None)):
        source, sink = os.pipe()
        reader = _Reader(source, "t")
        os.write(sink, said)
        os.close(sink)
        found = reader.result()
        assert (found and found["exit_code"]) == code
    monkeypatch.setattr(supervisor, "_PATIENCE", 0.05)
    source, sink = os.pipe()
    assert _Reader(source, "t").result() is None  # somebody holds the pipe open
    os.close(sink)


def test_a_file_that_is_not_what_was_written_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    _compare("check", {"token": "", "exit_code": 0, "files": {str(path): digest}})
    path.write_bytes(b"{ }")
    with pytest.raises(RobustkitError, match="is not what `robustkit check` wrote there"):
        _compare("check", {"token": "", "exit_code": 0, "files": {str(path): digest}})
    path.unlink()
    with pytest.raises(RobustkitError, match="changed or removed"):
        _compare("check", {"token": "", "exit_code": 0, "files": {str(path): digest}})
