"""What is known of a model before it is attacked, and what a suite makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Findings:
    """What the first look found, for a suite with `remedies`.

    Attributes:
        flags: names of the flags raised (`robustkit.verify.flags`).
        offered: the built-in surrogates that help (`robustkit.models.surrogates`).
        lent: transfer sources, other models of the same data.
        eot: passes to average per query, for the noise that was measured; 1 without noise.
        noisy: the surrogates, declared or built in, whose answers are random too.
        true: of the built-in ones with the decisions of the model, those whose own gradient passes
            the probes.
    """

    flags: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    eot: int = 1
    noisy: tuple[str, ...] = ()
    true: tuple[str, ...] = ()

    @classmethod
    def read(cls, kept: dict[str, Any]) -> Findings:
        """Return findings from what a ledger holds of them."""
        names = ("flags", "offered", "lent", "noisy", "true")
        listed = {key: tuple(kept.get(key, ())) for key in names}
        return cls(**listed, eot=int(kept["eot"]))


@dataclass(frozen=True)
class Remedies:
    """Attack specs that a suite adds on account of findings.

    Attributes:
        line: on all points, after the suite's own attacks.
        audit: on the audited sample, before the audit's own attacks.
        reserve: on every survivor, if attacks without gradients broke points.
        answers: flags that the line answers, if its audit finds nothing more.
    """

    line: Sequence[str] = ()
    audit: Sequence[str] = ()
    reserve: Sequence[str] = ()
    answers: Sequence[str] = ()
