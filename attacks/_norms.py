"""Which norm a threat model is, where an attack or a suite is not defined for all."""

from __future__ import annotations

from robustkit.core.named import NamedThreat
from robustkit.core.threat import Threat
from robustkit.errors import UsageError


def refuse_l0(name: str, threat: Threat) -> None:
    """Refuse l0, for which AutoAttack has no attacks (a UsageError)."""
    if threat.norm == "l0":
        raise UsageError(
            f"the suite {name} is not defined for l0: AutoAttack has no attacks for it. Use the "
            "suite quick or minimum_norm, or --attack sigma_zero."
        )


def by_pixel(threat: Threat) -> bool:
    """Whether a threat model counts pixels that change, all channels of one once."""
    return isinstance(threat, NamedThreat) and threat.searched_by == "pixelwise"
