"""Named line-ups of attacks. The packs register them; here a name or a list becomes specs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from robustkit.audit import Audit
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search import minimizes, stand_in
from robustkit.spec import Spec
from robustkit.surrogate import declared, source
from robustkit.threat import Threat


class Suite(Protocol):
    """A line-up with its budgets.

    One that leaves out attacks for speed may have a method `audit(threat)` too, which returns how
    to audit what it leaves standing (`robustkit.audit.Audit`).
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """List attack specs in the order in which they run; each gets what the last one left.

        Args:
            surrogates: the stand-ins that the model declares.
        """
        ...


class LineUp(NamedTuple):
    """The attacks of a run in order; those from `audited` on are the audit's."""

    specs: list[Spec]
    audited: int
    audit: Audit | None


def line_up(
    suite: str | None, chosen: Sequence[Spec | str], threat: Threat, model: Any = None
) -> LineUp:
    """Return the attacks of a run on `model` in order, checked.

    Raises:
        UsageError: when both or neither are given, or a name, option, norm or surrogate is not
            supported.
    """
    known = declared(model)
    if bool(suite) == bool(chosen):
        raise UsageError("expected either a suite or a list of attacks, got both or neither")
    built = suites.build(suite) if suite else None
    texts = list(built.attacks(threat, list(known)) if built else chosen)
    audit: Audit | None = built.audit(threat) if built and hasattr(built, "audit") else None
    audited = len(texts)
    texts += audit.attacks if audit else ()
    specs = [Spec.parse(text) if isinstance(text, str) else text for text in texts]
    for spec in specs:
        search = attacks.build(spec)
        search.jobs(threat, 10)
        if model is not None:
            source(model, stand_in(search))
    repeated = {str(spec) for spec in specs if specs.count(spec) > 1}
    if repeated:
        raise UsageError(f"attack {sorted(repeated)[0]!r} is listed twice")
    return LineUp(specs, audited, audit)


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
