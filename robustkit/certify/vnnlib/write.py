"""Robustness at a point as a property of VNN-LIB 1.0, which every verifier reads."""

from __future__ import annotations

import numpy as np

from robustkit.certify.vnnlib.query import Array


def robustness(low: Array, high: Array, label: int, classes: int, comment: str) -> str:
    """Ask for an input in [low, high] [n] where another class reaches the label's score.

    Bounds are written so that they read back as the same float64. A tie counts as broken, as the
    network's answer is then one of rounding.
    """
    declared = [f"(declare-const X_{i} Real)" for i in range(len(low))]
    declared += [f"(declare-const Y_{j} Real)" for j in range(classes)]
    sides = [
        f"(assert (>= X_{i} {_number(least)}))\n(assert (<= X_{i} {_number(most)}))"
        for i, (least, most) in enumerate(zip(low, high, strict=True))
    ]
    others = [f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label]
    asked = ["(assert (or", *others, "))"]
    return "\n".join([f"; {comment}", *declared, "", *sides, "", *asked, ""])


def _number(value: float) -> str:
    """Write a number with all of its digits and no exponent, which some readers do not know."""
    return np.format_float_positional(value, unique=True, trim="0")
