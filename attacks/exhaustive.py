"""Every input of a finite threat model, one by one: no search, an exact verdict but for chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from robustkit.core.finite import FiniteThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Logits, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search.protocol import Job, Reply, Tasks


@attacks.register("exhaustive", white_box=False, cites="arXiv:1903.12261")
@dataclass(frozen=True)
class Exhaustive:
    """Try every variant that a finite threat model such as `corruption:all` lists.

    A point is robust if all variants are classified rightly: exact, but for the votes of a
    randomized model. Misclassified points are tried too, and no point is left early, so that the
    accuracy under each variant is known. One pass for each point and variant, of a randomized model
    several, without gradients.
    """

    uses_gradient = False
    stays_inside = True
    enumerates = True  # the run makes the variants itself: see `evaluation.stages.exhaustive`

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One job for each variant.

        Raises:
            UsageError: for a norm, whose ball has no end of inputs.
        """
        if not isinstance(threat, FiniteThreat):
            raise UsageError(
                "exhaustive supports threat models that list their inputs, such as corruption:all, "
                f"got {threat.norm}. Use --suite fast."
            )
        return [Job(restart=number) for number in range(len(threat.variants))]

    def start(self, tasks: Tasks, threat: Threat) -> NoReturn:
        """There is nothing to search."""
        raise UsageError("exhaustive is no search: evaluate it with robustkit.evaluate.")

    def objective(self, logits: Logits, state: object) -> Scalars:
        """There is nothing to climb."""
        raise UsageError("exhaustive is no search: evaluate it with robustkit.evaluate.")

    def step(self, state: object, reply: Reply, threat: Threat) -> NoReturn:
        """There is no next query."""
        raise UsageError("exhaustive is no search: evaluate it with robustkit.evaluate.")


@suites.register("exhaustive", cites="arXiv:1903.12261")
@dataclass(frozen=True)
class All:
    """The attack `exhaustive` alone: what a finite threat model is evaluated by."""

    enumerates = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Every variant.

        Raises:
            UsageError: for a norm.
        """
        Exhaustive().jobs(threat, 2)
        return ["exhaustive"]
