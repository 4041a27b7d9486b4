"""The gate under a finite threat model: a baseline is repeated, and a worse model fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkit.cli.program import program as main


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked(0, "init", "--model", "pgd_at", "--threat", "corruption:noise@1")
    path = Path("robustkit.toml")
    path.write_text(path.read_text().replace("# n = 1000", "n = 24 #"))
    asked(0, "baseline", "update", "--reason", "first")


def asked(exit_code: int, *words: str) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == exit_code, done.output
    return done.output


@pytest.mark.usefixtures("project")
def test_a_baseline_passes_against_itself_and_another_model_is_compared() -> None:
    assert 'suite = "exhaustive"' in Path("robustkit.toml").read_text()
    assert "pass" in asked(0, "check").lower()
    (record,) = Path("robustkit-baseline").rglob("record.json")
    assert "corruption-noise" in record.parent.name
    told = CliRunner().invoke(main, ["check", "undefended", "--baseline", str(record)])
    assert told.exit_code in (0, 1, 3) and "undefended" in told.output, told.output
