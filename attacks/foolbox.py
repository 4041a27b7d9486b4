"""Attacks of Foolbox by name: `foolbox:LinfDeepFoolAttack`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from robustkit.core.optional import quiet
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError, unknown
from robustkit.registry import libraries
from robustkit.search.external import Batch, ExternalAttack, power

_ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


@libraries.register("foolbox", cites="arXiv:1707.04131")
@dataclass(frozen=True)
class Foolbox(ExternalAttack):
    """Attacks of Foolbox, untargeted; minimum-norm attacks are clipped to eps as Foolbox does."""

    package: ClassVar[str] = "foolbox"
    extra: ClassVar[str] = "foolbox"

    def check(self, threat: Threat, classes: int) -> None:
        """Look up the attack, its options and its norm."""
        attack = self._made()
        order = getattr(getattr(attack, "distance", None), "p", None)
        if order is not None and order != _ORDER[threat.norm]:
            raise UsageError(f"foolbox:{self.name} works in L{order:g}, got {threat.norm}.")

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Call the attack on the batch, at the eps of the threat model."""
        library: Any = self.library()
        shown = library.PyTorchModel(model.eval(), bounds=(0, 1), device=batch.x.device)
        _, clipped, _ = self._made()(shown, batch.x, batch.y, epsilons=threat.eps)
        found: Images = clipped
        return found

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Read the attributes of the attack."""
        return power(self._made())

    def _made(self) -> Any:
        module: Any = self.library()
        attacks = module.attacks
        names = [
            name
            for name, value in vars(attacks).items()
            if inspect.isclass(value)
            and issubclass(value, attacks.base.AttackWithDistance)
            and not inspect.isabstract(value)
        ]
        if self.name not in names:
            raise unknown("attack of foolbox", self.name, names)
        target = getattr(attacks, self.name)
        try:
            with quiet():
                return target(**self.given)
        except Exception as error:
            options = ", ".join(inspect.signature(target).parameters) or "none"
            raise UsageError(
                f"foolbox:{self.name} refuses {self.given or 'its defaults'}: {error}. "
                f"Its options: {options}."
            ) from error
