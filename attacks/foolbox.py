"""Attacks of Foolbox by name: `foolbox:LinfDeepFoolAttack`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from robustkit.core.optional import quiet
from robustkit.core.threat import Norm, Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError, unknown
from robustkit.registry import libraries
from robustkit.search.external import Batch, ExternalAttack, power

from ._foreign import FOOLBOX, Foreign, check

_ORDER: dict[Norm, float] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}


@libraries.register("foolbox", cites="arXiv:1707.04131")
@dataclass(frozen=True)
class Foolbox(ExternalAttack):
    """Attacks of Foolbox, untargeted; minimum-norm attacks are clipped to eps as Foolbox does."""

    package: ClassVar[str] = "foolbox"
    extra: ClassVar[str] = "foolbox"
    table: ClassVar[dict[str, Foreign]] = FOOLBOX

    def check(self, threat: Threat, classes: int) -> None:
        """Look up the attack, its options and its norm."""
        self._target()
        check(f"foolbox:{self.name}", self._entry(), threat, classes)
        self._made(threat)

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Call the attack on the batch, at the eps of the threat model."""
        library: Any = self.library()
        shown = library.PyTorchModel(model.eval(), bounds=(0, 1), device=batch.x.device)
        # Foolbox does not clip in l0: what is too far is left out by the judge.
        eps = None if threat.norm == "l0" else threat.eps
        _, clipped, _ = self._made(threat)(shown, batch.x, batch.y, epsilons=eps)
        found: Images = clipped
        return found

    def bounded(self, threat: Threat) -> bool:
        """Whether it takes a radius; Foolbox clips the others to it, but in l0."""
        return threat.norm != "l0"

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Read the attributes of the attack."""
        return power(self._made(threat))

    def _entry(self) -> Foreign:
        """Look the class up; of one of another version Foolbox itself knows the distance."""
        if self.name in FOOLBOX:
            return FOOLBOX[self.name]
        order = getattr(getattr(self._made(None), "distance", None), "p", None)
        norms: tuple[Norm, ...] = tuple(norm for norm, p in _ORDER.items() if p == order)
        return Foreign(norms, "epsilons", lacks="" if norms else "does not tell its distance")

    def _target(self) -> Any:
        module: Any = self.library()
        attacks = module.attacks
        names = [
            name
            for name, value in vars(attacks).items()
            if inspect.isclass(value)
            and issubclass(value, attacks.base.Attack)
            and not inspect.isabstract(value)
        ]
        if self.name not in names:
            raise unknown("attack of foolbox", self.name, names)
        return getattr(attacks, self.name)

    def _made(self, threat: Threat | None) -> Any:
        target, given = self._target(), dict(self.given)
        if self.name == "HopSkipJumpAttack" and threat is not None:
            given["constraint"] = threat.norm
        try:
            with quiet():
                attack = target(**given)
                if threat is not None and self._entry().distance:
                    module: Any = self.library()
                    # PointwiseAttack has the property, but no argument for it.
                    attack._distance = getattr(module.distances, threat.norm)
                return attack
        except Exception as error:
            options = ", ".join(inspect.signature(target).parameters) or "none"
            raise UsageError(
                f"foolbox:{self.name} refuses {self.given or 'its defaults'}: {error}. "
                f"Its options: {options}."
            ) from error
