"""What is known of a model before it is attacked, and what a suite makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Field -> its name in ledgers, which stays as it was.
_STORED = {
    "flags": "flags",
    "surrogates": "offered",
    "transfer": "lent",
    "noisy": "noisy",
    "true": "true",
}


@dataclass(frozen=True)
class Findings:
    """What the first look found, for a suite with `remedies`.

    Attributes:
        flags: names of the flags raised (`robustkit.verify.flags`).
        surrogates: the built-in ones that help (`robustkit.models.surrogates`).
        transfer: other models of the same data, from which adversarial inputs are tried.
        eot: passes to average per query, for the noise that was measured; 1 without noise.
        noisy: the surrogates, declared or built in, whose answers are random too.
        true: of the built-in ones with the decisions of the model, those whose own gradient passes
            the probes.
    """

    flags: tuple[str, ...] = ()
    surrogates: tuple[str, ...] = ()
    transfer: tuple[str, ...] = ()
    eot: int = 1
    noisy: tuple[str, ...] = ()
    true: tuple[str, ...] = ()

    @classmethod
    def read(cls, kept: dict[str, Any]) -> Findings:
        """Return findings from what a ledger holds of them."""
        listed = {name: tuple(kept.get(key, ())) for name, key in _STORED.items()}
        return cls(**listed, eot=int(kept["eot"]))

    def stored(self) -> dict[str, Any]:
        """Return what a ledger keeps of them."""
        return {"eot": self.eot} | {key: list(getattr(self, name)) for name, key in _STORED.items()}


@dataclass(frozen=True)
class Remedies:
    """Attack specs that a suite adds on account of findings.

    Attributes:
        line: on all points, after the suite's own attacks.
        screened: on a sample of the survivors, and on others as long as they break any.
        reserve: likewise, those without gradients if attacks of that kind broke points, those with
            gradients if such attacks of the audit did, and no block of the next nearest held.
        answers: flags that the line answers, if its audit finds nothing more.
    """

    line: Sequence[str] = ()
    screened: Sequence[str] = ()
    reserve: Sequence[str] = ()
    answers: Sequence[str] = ()
