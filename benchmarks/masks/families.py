"""Every mask, by name; importing this fills the list."""

from __future__ import annotations

from benchmarks.masks import hidden, objectives, purifiers, transformations
from benchmarks.masks.mask import MASKS

__all__ = ["MASKS", "hidden", "objectives", "purifiers", "transformations"]
