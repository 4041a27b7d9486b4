"""The line-ups that come with robustkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.registry import suites
from robustkit.threat import Threat


@suites.register("parity", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Parity:
    """AutoAttack-standard: the same attacks, order, budgets and decision rule.

    Up to 7,852 forward and 1,910 backward passes for a point that survives everything (linf, l2;
    ten classes).
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
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

    Up to 284 forward and backward passes for a point that survives everything (linf, l2), and 102
    more forward and 51 backward passes for each surrogate that the model declares.
    """

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """APGD on the margin, then on the three closest targets."""
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        return [
            f"{name}(loss=margin, steps=50)",
            f"{name}(loss=targeted_dlr, steps=30, targets=3)",
            f"{name}(loss=ce, steps=30)",
            *(f"{name}(loss=margin, steps=50, surrogate={stand_in})" for stand_in in surrogates),
        ]


@suites.register("rand", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Rand:
    """AutoAttack-rand, for randomized models: APGD on CE and DLR, gradients averaged over draws.

    Naive against defenses whose randomness hides hard decisions: see `surrogates`.
    """

    eot: Annotated[int, Field(ge=1)] = 20

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """APGD-CE and APGD-DLR."""
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        return [f"{name}(eot={self.eot})", f"{name}(eot={self.eot}, loss=dlr)"]


@suites.register("surrogates", cites="arXiv:2411.14834")
@dataclass(frozen=True)
class Surrogates:
    """Attacks through every stand-in that the model declares, judged on the model itself.

    Zhang et al. 2024: what breaks ensembles with hard aggregation, gates and randomness. For a
    model that declares none it is APGD on the margin and on CE.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    eot: Annotated[int, Field(ge=1)] = 1

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """The margin and CE, first of the model, then of each surrogate."""
        name = "apgd_l1" if threat.norm == "l1" else "apgd"
        return [
            f"{name}(eot={self.eot}, loss={loss}, steps={self.steps}{through})"
            for through in ["", *(f", surrogate={stand_in}" for stand_in in surrogates)]
            for loss in ("margin", "ce")
        ]
