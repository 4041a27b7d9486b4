"""Proofs: for which points no input of the threat model changes the class.

Enters: a model, points, a threat model.
Leaves: per point whether a bound holds, by IBP, CROWN, alpha-CROWN or randomized smoothing.
Read first: certifier.py, then graph.py, crown.py and alpha_crown.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkit.core.lazy import exports

if TYPE_CHECKING:
    from robustkit.certify.certifier import Certifier, build_certifier

__all__ = ["Certifier", "build_certifier"]
__getattr__, __dir__ = exports(
    __name__,
    {"Certifier": "certifier", "build_certifier": "certifier"},
)
