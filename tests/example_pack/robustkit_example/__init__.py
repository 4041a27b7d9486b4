"""A pack: one attack, one defense, one suite, registered when this module is imported."""

from __future__ import annotations

from robustkit_example import drift, linear

__all__ = ["drift", "linear"]
