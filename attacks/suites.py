"""The line-ups that come with robustkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustkit.registry import suites
from robustkit.threat import Threat


@suites.register("parity", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Parity:
    """AutoAttack-standard: the same attacks, order, budgets and decision rule.

    Up to 7,852 forward and 1,910 backward passes for a point that survives everything (linf, l2;
    ten classes).
    """

    def attacks(self, threat: Threat) -> Sequence[str]:
        """APGD-CE, targeted APGD-DLR, targeted FAB, Square."""
        if threat.norm == "l1":
            first = ["apgd_l1(restarts=5)", "apgd_l1(loss=targeted_dlr, targets=5)"]
        else:
            first = ["apgd", "apgd(loss=targeted_dlr, targets=9)"]
        return [*first, "fab(targets=9)", "square(queries=5000)"]


@suites.register("screen", cites="")
@dataclass(frozen=True)
class Screen:
    """A first look in seconds: short white-box searches. An upper bound, not a claim.

    Up to 284 forward and backward passes for a point that survives everything (linf, l2).
    """

    def attacks(self, threat: Threat) -> Sequence[str]:
        """APGD on the margin, then on the three closest targets."""
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        return [
            f"{name}(loss=margin, steps=50)",
            f"{name}(loss=targeted_dlr, steps=30, targets=3)",
            f"{name}(loss=ce, steps=30)",
        ]
