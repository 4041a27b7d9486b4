"""Attacks of torchattacks by name: `torchattacks:PGD(steps=50)`."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch import nn

from robustkit.core.optional import quiet
from robustkit.core.threat import Norm, Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError, unknown
from robustkit.registry import libraries
from robustkit.search.external import NORMS, Batch, ExternalAttack, power

from ._foreign import TORCHATTACKS, Foreign, check

_OURS = ("model", "eps", "norm", "seed", "verbose")
_RADII = ("eps", "epsilon", "max_epsilon", "max_eps")


@libraries.register("torchattacks", cites="arXiv:2010.01950")
@dataclass(frozen=True)
class Torchattacks(ExternalAttack):
    """Attacks of torchattacks, with its defaults, at the eps of the threat model."""

    package: ClassVar[str] = "torchattacks"
    extra: ClassVar[str] = "torchattacks"
    table: ClassVar[dict[str, Foreign]] = TORCHATTACKS

    def check(self, threat: Threat, classes: int) -> None:
        """Look up the attack, its options and its norms (from its own documentation)."""
        ours = {*_OURS, self._entry().radius}
        known = [name for name in self._parameters() if name not in ours]
        for option in self.given:
            if option not in known:
                listing = ", ".join(known) or "none"
                raise UsageError(
                    f"torchattacks:{self.name} has no option {option!r}. Its options: {listing}."
                )
        check(f"torchattacks:{self.name}", self._entry(), threat, classes)
        self._made(nn.Identity(), threat, classes, 0)

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Call the attack on the batch."""
        attack = self._made(model, threat, batch.classes, batch.seed)
        attack.set_device(batch.x.device)
        found: Images = attack(batch.x, batch.y)
        return found

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Read the attributes of the attack, and of the attacks inside torchattacks.AutoAttack."""
        attack = self._made(nn.Identity(), threat, classes, 0)
        parts = getattr(getattr(attack, "_autoattack", None), "attacks", ())
        return power(attack) | {part.attack: power(part) for part in parts}

    def bounded(self, threat: Threat) -> bool:
        """Whether it takes a radius."""
        return bool(self._entry().radius)

    def _entry(self) -> Foreign:
        """Look the class up; one of another version tells its radius by its signature."""
        target = self._target()
        if self.name in TORCHATTACKS:
            return TORCHATTACKS[self.name]
        radius = next((name for name in _RADII if name in self._parameters()), "")
        line = re.search(r"Distance Measure\s*:\s*(.*)", target.__doc__ or "")
        told = re.findall(r"L(?:inf|\d)", line[1]) if line else []
        norms: list[Norm] = [norm for norm in get_args(Norm) if NORMS[norm] in told]
        lacks = "" if radius and norms else f"is unknown to robustkit, and takes none of {_RADII}"
        if radius and not norms:
            lacks = "is unknown to robustkit, and does not say its norm"
        return Foreign(tuple(norms), radius, lacks=lacks)

    def _target(self) -> Any:
        library: Any = self.library()
        names = list(library.__all__)
        if self.name not in names:
            raise unknown("attack of torchattacks", self.name, names)
        return getattr(library, self.name)

    def _parameters(self) -> list[str]:
        return list(inspect.signature(self._target()).parameters)

    def _made(self, model: nn.Module, threat: Threat, classes: int, seed: int) -> Any:
        values = {
            self._entry().radius: threat.eps,
            "norm": NORMS[threat.norm],
            "seed": seed,
            "n_classes": classes,
        }
        known = self._parameters()
        values = {name: value for name, value in values.items() if name in known} | self.given
        try:
            with quiet():
                return self._target()(model, **values)
        except Exception as error:
            raise UsageError(
                f"torchattacks:{self.name} refuses {self.given or 'its defaults'}: {error}"
            ) from error
