"""Named line-ups of attacks. The packs register them; here a name or a list becomes specs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.spec import Spec
from robustkit.threat import Threat


class Suite(Protocol):
    """A line-up with its budgets."""

    def attacks(self, threat: Threat) -> Sequence[str]:
        """List attack specs in the order in which they run; each gets what the last one left."""
        ...


def line_up(suite: str | None, chosen: Sequence[Spec | str], threat: Threat) -> list[Spec]:
    """Return the attacks of a run in order, checked.

    Raises:
        UsageError: when both or neither are given, or a name, option or norm is not supported.
    """
    if bool(suite) == bool(chosen):
        raise UsageError("expected either a suite or a list of attacks, got both or neither")
    texts = suites.build(suite).attacks(threat) if suite else chosen
    specs = [Spec.parse(text) if isinstance(text, str) else text for text in texts]
    for spec in specs:
        attacks.build(spec).jobs(threat, 10)
    repeated = {str(spec) for spec in specs if specs.count(spec) > 1}
    if repeated:
        raise UsageError(f"attack {sorted(repeated)[0]!r} is listed twice")
    return specs
