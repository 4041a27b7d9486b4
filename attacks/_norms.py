"""Norms that a suite is not defined for."""

from __future__ import annotations

from robustkit.core.threat import Threat
from robustkit.errors import UsageError


def refuse_l0(name: str, threat: Threat) -> None:
    """Refuse l0, for which AutoAttack has no attacks (a UsageError)."""
    if threat.norm == "l0":
        raise UsageError(
            f"the suite {name} is not defined for l0: AutoAttack has no attacks for it. Use the "
            "suite quick or minimum_norm, or --attack sigma_zero."
        )
