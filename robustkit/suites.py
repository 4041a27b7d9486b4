"""Named line-ups of attacks. The packs register them; here a name or a list becomes specs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search import minimizes, stand_in
from robustkit.spec import Spec
from robustkit.surrogate import declared, source
from robustkit.threat import Threat


class Suite(Protocol):
    """A line-up with its budgets."""

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """List attack specs in the order in which they run; each gets what the last one left.

        Args:
            surrogates: the stand-ins that the model declares.
        """
        ...


def line_up(
    suite: str | None, chosen: Sequence[Spec | str], threat: Threat, model: Any = None
) -> list[Spec]:
    """Return the attacks of a run on `model` in order, checked.

    Raises:
        UsageError: when both or neither are given, or a name, option, norm or surrogate is not
            supported.
    """
    known = declared(model)
    if bool(suite) == bool(chosen):
        raise UsageError("expected either a suite or a list of attacks, got both or neither")
    texts = suites.build(suite).attacks(threat, list(known)) if suite else chosen
    specs = [Spec.parse(text) if isinstance(text, str) else text for text in texts]
    for spec in specs:
        search = attacks.build(spec)
        search.jobs(threat, 10)
        if model is not None:
            source(model, stand_in(search))
    repeated = {str(spec) for spec in specs if specs.count(spec) > 1}
    if repeated:
        raise UsageError(f"attack {sorted(repeated)[0]!r} is listed twice")
    return specs


def refuse_fixed(specs: Sequence[Spec]) -> None:
    """Refuse attacks that stay at one radius for a run that seeks the nearest success.

    Raises:
        UsageError: naming the attack, and those that would do.
    """
    for spec in specs:
        if not minimizes(attacks.build(spec)):
            able = [entry.name for entry in attacks.entries() if minimizes(entry.target)]
            raise UsageError(
                f"{spec.name} searches at a fixed eps and cannot seek the nearest adversarial "
                f"input. Use the suite minimum_norm, or attacks of these: {', '.join(able)}."
            )
