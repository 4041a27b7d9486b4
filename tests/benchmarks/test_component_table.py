"""The table of components, in small: it is finished, resumed, and keeps the order of bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import components
from robustkit.data.dataset import Dataset
from robustkit.models.training import Recipe
from robustkit.registry import defenses


def table(out: Path, *more: str) -> list[list[str]]:
    how = ["--out", str(out), "--data", "mnist", "--components", "30", "--n", "20"]
    done = CliRunner().invoke(components.main, [*how, *more])
    assert done.exit_code == 0, done.output
    written = (out / "table.md").read_text()
    assert done.stdout.endswith(written)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]


def test_rows_are_done_once_and_bounds_lie_in_order(
    blobs: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(components, "open_dataset", lambda *_, **__: blobs)
    monkeypatch.setattr(components, "THREATS", ("l2:0.05",))
    monkeypatch.setattr(components, "LINE_UP", {"attacks": ["fgsm"]})
    for name in ("cbc", "glvq"):
        monkeypatch.setattr(
            defenses.entry(name).target, "recipe", Recipe(epochs=4, batch_size=20, lr=0.05)
        )
    assert len(table(tmp_path, "--rows", "glvq")) == 3
    weights = components.cell(tmp_path, "mnist", "glvq", 30) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.setattr(components, "ROWS", ("cbc", "glvq"))
    heads, _, *rows = table(tmp_path)
    assert weights.stat().st_mtime_ns == before
    assert heads == list(components.HEADS)
    assert [row[1] for row in rows] == ["`cbc(components=30)`", "`glvq(each=3)`"]
    for row in rows:
        published, certified, robust, clean = (float(row[i]) for i in (4, 7, 8, 3))
        assert published <= certified <= robust <= clean
        assert float(row[9]) == pytest.approx(robust - certified, abs=2e-3)
    assert float(rows[0][4]) <= float(rows[0][5]) <= float(rows[0][6]) <= float(rows[0][7])
    assert rows[1][5] == "–"
    assert table(tmp_path, "--table") == [heads, _, *rows]
