"""The benchmark of two builds: where each is imported from, and what is compared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from benchmarks import adaptive_overhead
from benchmarks.adaptive_overhead import checkout, compare, importable, this_build
from robustkit.record.record import Record
from robustkit.record.schema import Commit

PROJECT = """[project]
name = "robustkit-other"
version = "9.9"
[project.entry-points."robustkit.packs"]
attacks = "robustkit.attacks"
"""
ASKED = """import robustkit.attacks as a, robustkit.defenses as d
from importlib.metadata import entry_points, version
packs = [p.value for p in entry_points(group="robustkit.packs") if p.dist.version == "9.9"]
print(a.HERE, d.HERE, version("robustkit-other"), *packs)
"""


def test_a_build_is_imported_with_its_own_packs(tmp_path: Path) -> None:
    build = tmp_path / "build"
    for folder in ("robustkit", "attacks", "defenses"):
        (build / folder).mkdir(parents=True)
        (build / folder / "__init__.py").write_text(f"HERE = {folder!r}\n", encoding="utf-8")
    (build / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    name, files = checkout(str(build), tmp_path)
    path = importable(name, files, tmp_path)
    assert importable(name, files, tmp_path) == path  # a second run finds the links in place
    done = subprocess.run([sys.executable, "-c", ASKED], env={"PYTHONPATH": str(path)}, cwd=path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.split() == ["attacks", "defenses", "9.9", "robustkit.attacks"], done.stderr
    assert (path / "adaptive_overhead_runner.py").is_file()


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="a folder or a commit"):
        checkout("no-such-build", tmp_path)


def test_results_are_kept_by_a_commit_that_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, said in ((Commit(hash="a" * 40, dirty=True), "changes"), (None, "no answer")):
        monkeypatch.setattr(adaptive_overhead, "head", lambda _, found=found: found)
        with pytest.raises(click.ClickException, match=said):
            this_build()
    monkeypatch.setattr(adaptive_overhead, "head", lambda _: Commit(hash="a" * 40, dirty=False))
    assert this_build() == "a" * 40


def test_targets_are_a_fifth_of_the_passes_and_half_a_point(
    make_record: Callable[..., Record],
) -> None:
    before = make_record("net", "rrbbm", forwards=50)
    cheap = compare("net", before, make_record("net", "rrbbm", forwards=10))
    assert (cheap.ratio, cheap.difference, cheap.lost) == (0.2, 0, 0) and cheap.reached
    weaker = compare("net", before, make_record("net", "rrrbm", forwards=10))
    assert (round(weaker.difference), weaker.lost) == (20, 1) and not weaker.reached
