"""The diagnosis: a sound environment, and every fault it knows, made on purpose."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from robustkit.cli import environment
from robustkit.cli.doctor_finding import Finding
from robustkit.cli.environment import examine
from robustkit.cli.program import program as main
from robustkit.core.packages import altered

ROOT = Path(__file__).resolve().parents[2]
Install = Callable[..., Distribution]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a made-up distribution, and make it the only one that the doctor finds."""
    there: dict[str, Distribution] = {}
    monkeypatch.setattr(environment, "installed", there.get)
    monkeypatch.setattr(environment, "distributions", lambda: iter(there.values()))

    def put(
        name: str, version: str = "1.0", files: dict[str, str] | None = None, requires: str = ""
    ) -> Distribution:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = []
        for path, content in (files or {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
            lines.append(f"{path},sha256={digest.decode().rstrip('=')},{len(content)}")
        demand = f"Requires-Dist: {requires}\n" if requires else ""
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / "METADATA").write_text(head + demand)
        (folder / "RECORD").write_text("\n".join([*lines, f"{folder.name}/RECORD,,"]))
        there[name] = PathDistribution(folder)
        return there[name]

    return put


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names that `find_spec` finds."""
    names = {"pkg_resources", "pyautoattack"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in names or None)
    return names


def _only(found: Iterator[Finding]) -> Finding:
    (finding,) = found
    return finding


@pytest.mark.slow
def test_this_environment_runs_the_core(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in examine(tmp_path)}
    for name in ("python", "torch", "numpy", "cpu", "numpy and torch", "packs", "bundled"):
        assert found[name].state == "ok", found[name]
    assert found["data root"].detail == str(tmp_path)
    assert found["bundled"].detail == "1000 test points [1, 28, 28]"
    assert found["mnist"].state == "absent"
    assert "mnist.npz" in found["mnist"].detail
    assert all(finding.cure for finding in found.values() if finding.state == "warning")


FILES = {"robustbench/eval.py": "real", "robustbench/data.py": "real"}


class TestRobustBench:
    def test_untouched_files_are_fine(self, install: Install, importable: set[str]) -> None:
        dist = install("robustbench", "1.1.1", FILES)
        assert altered(dist) == []
        assert _only(environment._robustbench()) == Finding("robustbench", "ok", "1.1.1")

    def test_overwritten_files_are_found(
        self, install: Install, importable: set[str], tmp_path: Path
    ) -> None:
        install("robustbench", "1.1.1", FILES)
        install("torchattacks", "3.5.1", {"robustbench/eval.py": "old copy"})
        found = _only(environment._robustbench())
        assert found.state == "broken"
        assert found.detail == (
            "1 installed files are not its own (torchattacks overwrites them), "
            "first robustbench/eval.py"
        )
        assert found.cure == "pip install --force-reinstall --no-deps robustbench==1.1.1"

    def test_missing_files_are_found(
        self, install: Install, importable: set[str], tmp_path: Path
    ) -> None:
        dist = install("robustbench", "1.1.1", FILES)
        (tmp_path / "robustbench" / "data.py").unlink()
        assert altered(dist) == ["robustbench/data.py"]

    def test_what_it_imports_must_be_there(self, install: Install, importable: set[str]) -> None:
        install("robustbench", "1.1.1", FILES)
        importable.clear()
        cures = [finding.cure for finding in environment._robustbench()]
        assert cures == ['pip install "setuptools<81"', "pip install pyautoattack"]

    def test_the_copy_inside_torchattacks_is_told_apart(
        self, install: Install, importable: set[str]
    ) -> None:
        assert _only(environment._robustbench()).detail == "not installed (optional)"
        importable.add("robustbench")
        assert "old copy inside torchattacks" in _only(environment._robustbench()).detail


class TestPins:
    def test_a_package_that_torchattacks_holds_back_is_named(self, install: Install) -> None:
        pytest.importorskip("packaging")
        install("requests", "2.25.1")
        install("torchattacks", "3.5.1", requires="requests~=2.25.1")
        assert list(environment._pins()) == []
        install("datasets", "4.0", requires="requests>=2.32")
        found = _only(environment._pins())
        assert found.state == "warning"
        assert "datasets needs requests>=2.32, got 2.25.1" in found.detail
        assert found.cure.startswith("pip install --upgrade requests")

    def test_the_pin_of_torchattacks_itself_may_be_broken(self, install: Install) -> None:
        pytest.importorskip("packaging")
        install("requests", "2.32.0")
        install("torchattacks", "3.5.1", requires="requests~=2.25.1")
        assert list(environment._pins()) == []


class TestImports:
    @pytest.fixture
    def fails(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
        real = environment._import

        def arrange(broken: str, error: Exception) -> None:
            def fake(name: str) -> ModuleType:
                if name == broken:
                    raise error
                return real(name)

            monkeypatch.setattr(environment, "_import", fake)

        return arrange

    def test_torchvision_of_another_torch(
        self, install: Install, fails: Callable[[str, Exception], None]
    ) -> None:
        install("torchvision", "0.28.0")
        fails("torchvision", RuntimeError("operator torchvision::nms does not exist"))
        found = {finding.name: finding for finding in environment._extras()}
        assert found["torchvision"].state == "broken"
        assert "operator torchvision::nms does not exist" in found["torchvision"].detail
        assert "belongs to torch" in found["torchvision"].cure
        assert found["pyautoattack"].state == "absent"

    def test_torch_built_for_another_numpy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        def refuse(_: Any) -> None:
            raise RuntimeError("Numpy is not available")

        monkeypatch.setattr(torch, "from_numpy", refuse)
        found = _only(environment._bridge())
        assert (found.state, found.cure) == ("broken", 'pip install "numpy<2"')
        assert "Numpy is not available" in found.detail

    def test_one_broken_package_does_not_end_the_diagnosis(
        self, fails: Callable[[str, Exception], None], tmp_path: Path
    ) -> None:
        fails("torch", OSError("libtorch_cpu.so: cannot open shared object file"))
        found = {finding.name: finding for finding in examine(tmp_path)}
        assert found["torch"].state == found["numpy and torch"].state == "broken"
        assert "libtorch_cpu.so: cannot open" in found["torch"].detail
        assert found["python"].state == "ok"
        assert found["data root"].state == "ok"

    def test_a_missing_library_has_a_cure(self, install: Install) -> None:
        found = {finding.name: finding for finding in environment._versions()}
        assert found["numpy"] == Finding("numpy", "broken", "not installed", "pip install numpy")


class TestFolders:
    def test_a_cache_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(dir: Path) -> None:
            raise PermissionError(13, "Permission denied", str(dir))

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        found = {finding.name: finding for finding in environment._folders()}
        assert found["cache"].state == "broken"
        assert "cannot be written: Permission denied" in found["cache"].detail
        assert found["cache"].cure == "Make it writable, or set XDG_CACHE_HOME."

    def test_a_damaged_data_set_is_broken_not_absent(self, tmp_path: Path) -> None:
        (tmp_path / "mnist.npz").write_bytes(b"not a zip")
        found = {finding.name: finding for finding in environment._data(tmp_path)}
        assert found["mnist"].state == "broken"
        assert "mnist.npz" in found["mnist"].detail


class TestCommand:
    @pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("broken", 1)])
    def test_the_exit_code_says_whether_something_is_broken(
        self, monkeypatch: pytest.MonkeyPatch, state: Any, code: int
    ) -> None:
        lines = [Finding("thing", state, "as it [is]", "mend it")]
        monkeypatch.setattr(environment, "examine", lambda root: lines)
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == code
        assert "as it [is]" in result.stdout
        assert "cure: mend it" in result.stdout
        result = CliRunner().invoke(main, ["doctor", "--json"])
        assert result.exit_code == code
        answer = json.loads(result.stdout)
        assert answer["healthy"] is (code == 0)
        assert answer["findings"] == [{**lines[0]._asdict(), "fix": []}]


@pytest.mark.slow
class TestFix:
    """A RobustBench that torchattacks has overwritten, both made up, in an environment of its own.

    pip installs them from a folder of wheels: no index is asked.
    """

    def test_overwritten_files_are_restored(
        self, tmp_path: Path, write_wheel: Callable[..., Path]
    ) -> None:
        own = {"robustbench/__init__.py": "", "robustbench/eval.py": "REAL = True\n"}
        wheels = [
            write_wheel(tmp_path, "robustbench", "1.1.1", own),
            write_wheel(tmp_path, "torchattacks", "3.5.1", {"robustbench/eval.py": "OLD = True\n"}),
        ]
        venv.create(tmp_path / "venv", with_pip=True)
        python = next((tmp_path / "venv").glob("[bS]*/python*"))
        (packages,) = (tmp_path / "venv").rglob("site-packages")
        here = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "zz_outside.pth").write_text("\n".join([str(ROOT), *here]))
        settings = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
        settings.pop("PYTHONPATH", None)

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(python), *command], env=settings, cwd=tmp_path, capture_output=True, text=True
            )

        for wheel in wheels:  # the later one overwrites
            done = run("-m", "pip", "install", "--no-deps", "--force-reinstall", str(wheel))
            assert done.returncode == 0, done.stderr
        assert (packages / "robustbench" / "eval.py").read_text() == "OLD = True\n"
        code = (
            "from robustkit.cli import environment as d\n"
            "broken = lambda: [f for f in d._robustbench() if f.fix and 'own' in f.detail]\n"
            "first = broken()\n"
            "print(len(first), [d.repair(f) for f in first], len(broken()))"
        )
        done = run("-c", code)
        assert done.stdout.strip() == "1 [''] 0", done.stderr
        assert (packages / "robustbench" / "eval.py").read_text() == "REAL = True\n"


class TestFixCommand:
    def test_each_cure_is_said_and_the_state_looked_at_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fix = ("install", "thing")
        states = iter(
            [
                [Finding("a", "broken", "it is bent", "pip install thing", fix),
                 Finding("b", "broken", "choose", "think")],
                [Finding("a", "ok", "1.0"), Finding("b", "broken", "choose", "think")],
            ]
        )  # fmt: skip
        asked: list[tuple[str, ...]] = []

        def repair(finding: Finding) -> str:
            asked.append(finding.fix)
            return ""

        monkeypatch.setattr(environment, "examine", lambda root: next(states))
        monkeypatch.setattr(environment, "repair", repair)
        result = CliRunner().invoke(main, ["doctor", "--fix"])
        assert asked == [fix]
        assert "it is bent; running pip install thing" in result.stderr
        assert result.exit_code == 1  # what needs a choice is still broken
        assert "1.0" in result.stdout

    def test_a_failing_pip_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        line = Finding("a", "broken", "bent", "pip nonsense", ("nonsense",))
        assert "nonsense" in environment.repair(line)
        monkeypatch.setattr(environment, "examine", lambda root: [line])
        result = CliRunner().invoke(main, ["doctor", "--fix"])
        assert "pip nonsense failed" in result.stderr
        assert result.exit_code == 1
