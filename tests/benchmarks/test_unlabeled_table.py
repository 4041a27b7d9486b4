"""The table of unlabeled pools, in small: finished, resumed, compared on the same points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import unlabeled
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.record.record import load


def striped(n: int, seed: int) -> Dataset:
    """Images of three classes: a bright stripe at the top, in the middle, at the bottom."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = draw.integers(0, 60, (n, 12, 12)).astype(np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 4] += 150
    return from_arrays("striped", x, y, classes=3)


CELLS = [
    unlabeled.Cell("striped", 12, "same", "labels alone"),
    unlabeled.Cell("striped", 12, "shifted", "RST"),
    unlabeled.Cell("striped", 12, "same", "all labels known"),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": striped(120, 0), "test": striped(30, 1)}
    monkeypatch.setattr(unlabeled, "open_dataset", lambda name, root, split: parts[split])
    monkeypatch.setattr(unlabeled, "cells", lambda name: iter(CELLS))
    monkeypatch.setattr(unlabeled, "PLAIN", 12)
    monkeypatch.setattr(unlabeled, "LINE_UP", {"attacks": ["fgsm"]})


def table(out: Path, *more: str) -> list[list[str]]:
    how = f"--out {out} --data striped --batch-size 60 --width 2 --steps 1 --n 20 --size 60"
    done = CliRunner().invoke(unlabeled.main, [*how.split(), "--epochs", "2", *more])
    assert done.exit_code == 0, done.output
    written = (out / "table.md").read_text()
    assert done.stdout.endswith(written)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]


@pytest.mark.usefixtures("small")
def test_rows_are_resumed_and_compared_with_the_labels_alone(tmp_path: Path) -> None:
    assert len(table(tmp_path, "--only", "alone")) == 3
    weights = CELLS[0].folder(tmp_path) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    rows = table(tmp_path)[2:]
    assert weights.stat().st_mtime_ns == before
    assert [row[4] for row in rows] == ["labels alone", "RST", "all labels known"]
    base, *others = (load(cell.folder(tmp_path) / "evaluation" / "record.json") for cell in CELLS)
    for row, record in zip(rows[1:], others, strict=True):
        assert row[6] == f"{record.robust:.3f}"
        assert row[7].startswith(f"{record.robust - base.robust:+.3f} (")
    assert table(tmp_path, "--table")[2:] == rows


def test_the_shifted_pool_is_turned_and_halved_in_contrast() -> None:
    train = striped(30, 0)
    same, shifted = (unlabeled.pool_of(kind, train, 6, 12) for kind in ("same", "shifted"))
    x, z = (pool.fetch(range(12))[0] for pool in (same, shifted))
    assert np.array_equal(same.labels, shifted.labels)
    assert float(z.std() / x.std()) == pytest.approx(0.5, abs=0.1)
    assert float((x - z).abs().mean()) > 0.05
