"""Gradient ascent on a surrogate, as a warm start of searches that use no gradient."""

from __future__ import annotations

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, per_point
from robustkit.errors import UsageError

from ._schedule import cosine


def ascend(
    query: Images, x: Images, gradient: Images, taken: Integers, steps: int, threat: Threat
) -> Images:
    """Take one of `steps` projected gradient steps inside the threat model around `x` [s, *f].

    Step sizes fall from eps / 2 to eps / 50 on a cosine schedule; `taken` counts the steps so far.
    """
    size = per_point(threat.eps * cosine(0.5, 0.02, taken, steps), query)
    return threat.project(query + size * threat.steepest(gradient), x)


def refuse_norm(name: str, surrogate: str, threat: Threat) -> None:
    """Refuse (UsageError) l1 and l0, where `Threat.steepest` moves one coordinate."""
    if surrogate and threat.norm not in ("linf", "l2"):
        raise UsageError(
            f"{name} takes a warm start from a surrogate in linf and l2, got {threat.norm}. Leave "
            "surrogate out."
        )
