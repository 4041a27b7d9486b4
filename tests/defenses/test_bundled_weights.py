"""The weights that come in the box stay small enough to be in it."""

from __future__ import annotations

from pathlib import Path

import pytest

CHECKPOINTS = Path(__file__).resolve().parents[2] / "defenses" / "checkpoints"


@pytest.mark.parametrize(("color", "least"), [(False, 20), (True, 2)])
def test_all_together_take_less_than_twelve_megabytes(color: bool, least: int) -> None:
    files = [path for path in CHECKPOINTS.iterdir() if path.stem.endswith("-cifar10") == color]
    assert len(files) > least
    assert sum(path.stat().st_size for path in files) < 12_000_000
