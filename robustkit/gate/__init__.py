"""The gate: a candidate beside its baseline, point by point, and a verdict that CI can trust."""

from __future__ import annotations

from robustkit.gate.baseline import Baseline, choose, load_baselines, open_points
from robustkit.gate.check import Candidate, check, compare
from robustkit.gate.terms import METRICS, Terms
from robustkit.gate.verdict import Failure, Finding, Verdict, exit_code

__all__ = [
    "METRICS",
    "Baseline",
    "Candidate",
    "Failure",
    "Finding",
    "Terms",
    "Verdict",
    "check",
    "choose",
    "compare",
    "exit_code",
    "load_baselines",
    "open_points",
]
