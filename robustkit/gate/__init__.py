"""The gate: a candidate beside its baseline, point by point, and a verdict that CI can trust.

Enters: a baseline record and a candidate, or two records.
Leaves: a `GateVerdict` (passed, regressed, undecided), as text, JUnit, SARIF or Markdown.
Read first: comparison.py, then decision.py and paired_sequence.py.
"""

from __future__ import annotations

from robustkit.gate.baseline import Baseline, choose, load_baselines, open_points
from robustkit.gate.comparison import Candidate, check, compare
from robustkit.gate.criteria import METRICS, Terms
from robustkit.gate.verdict import Failure, GateVerdict, MetricFinding, exit_code

__all__ = [
    "METRICS",
    "Baseline",
    "Candidate",
    "Failure",
    "GateVerdict",
    "MetricFinding",
    "Terms",
    "check",
    "choose",
    "compare",
    "exit_code",
    "load_baselines",
    "open_points",
]
