"""A walk along a stand-in, for searches that go on without gradients from where it came nearest."""

from __future__ import annotations

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, per_point
from robustkit.errors import UsageError

from ._schedule import cosine


def ascend(
    query: Images, x: Images, gradient: Images, taken: Integers, steps: int, threat: Threat
) -> Images:
    """Take one of `steps` steps of steepest ascent inside the ball around `x` [s, *f].

    Step sizes fall along a cosine from half of eps.
    """
    size = per_point(threat.eps * cosine(0.5, 0.02, taken, steps), query)
    return threat.project(query + size * threat.steepest(gradient), x)


def refuse_norm(name: str, surrogate: str, threat: Threat) -> None:
    """Refuse a walk in a norm whose steepest step moves a few coordinates alone (a UsageError)."""
    if surrogate and threat.norm not in ("linf", "l2"):
        raise UsageError(
            f"{name} follows a surrogate in linf and l2, got {threat.norm}. Leave surrogate out."
        )
