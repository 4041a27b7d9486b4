"""The weights that come in the box stay small enough to be in it."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = Path(__file__).resolve().parents[2] / "defenses" / "checkpoints"


def test_all_together_take_less_than_twelve_megabytes() -> None:
    sizes = [path.stat().st_size for path in CHECKPOINTS.iterdir()]
    assert len(sizes) > 20
    assert sum(sizes) < 12_000_000
