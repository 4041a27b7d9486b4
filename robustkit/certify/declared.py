"""Certificates that a model declares: formulas that hold for networks of its kind.

A module declares certificates by a method `certificates()`: name -> a function of points, labels
and threat model that says for which points the label is proved, the tightest first. `--certify
NAME` asks for one by name; "auto" and "quick" take the first, before any bound on the network.

The function gets a threat model that is already enlarged by what `Threat.contains` tolerates, and
must answer for logits in float32: a tie is no proof. A model could declare anything: points that
it calls proved are attacked like all others, and one that breaks stops the run ("certificate
refuted").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustkit.core import arguments
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.surrogates.resolve import plain

Proof: TypeAlias = Callable[[Images, Labels, Threat], Mask]

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`
METHODS = ("auto", "quick", "ibp", "crown", "alpha-crown", "complete", "smoothing")


def declared(model: Any) -> dict[str, Proof]:
    """Return the certificates that `model` declares, by name; most models declare none.

    Raises:
        UsageError: when what it declares is no such mapping, or takes the name of another.
    """
    method = getattr(plain(model), "certificates", None)
    found = method() if callable(method) else {}
    if not isinstance(found, Mapping) or not all(callable(proof) for proof in found.values()):
        raise UsageError(
            "certificates(): expected a mapping from names to functions of (points, labels, threat "
            f"model), got {arguments.shown(found)}."
        )
    if taken := set(METHODS) & found.keys():
        raise UsageError(
            f"certificates(): {sorted(taken)[0]!r} is the name of a certificate of robustkit's. "
            "Choose another."
        )
    return dict(found)


@dataclass(frozen=True)
class Formula:
    """One of a model's own certificates, for one threat model."""

    name: str
    proof: Proof
    threat: Threat

    batch = 16

    @property
    def method(self) -> str:
        """Its name: it has no options."""
        return self.name

    def at(self, threat: Threat) -> Formula:
        """Return the same certificate for another eps."""
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points the formula proves robustness [b]."""
        with torch.no_grad():
            threat = replace(self.threat, eps=self.threat.limit(prod(x.shape[1:])))
            holds: Any = self.proof(x, y, threat)
        if not (isinstance(holds, Tensor) and holds.dtype == torch.bool and len(holds) == len(x)
                and holds.ndim == 1):  # fmt: skip
            raise UsageError(
                f"certificate {self.name!r}: expected a bool for each of {len(x)} points, got "
                f"{arguments.shown(holds)}."
            )
        return holds


def formula(own: Mapping[str, Proof], name: str, threat: Threat) -> Formula:
    """Return the certificate `name` of those that a model declares; else the first of them."""
    found = name if name in own else next(iter(own))
    return Formula(found, own[found], threat)
