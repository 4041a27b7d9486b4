"""The reference AutoAttack (pyautoattack) by name: `autoattack:standard`, `autoattack:apgd-ce`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError, unknown
from robustkit.registry import libraries
from robustkit.search.external import NORMS, Batch, ExternalAttack

from ._foreign import AUTOATTACK, Foreign, check

_VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# Our option -> their name: (attribute of AutoAttack that holds the attack, its attributes).
_GRADIENT = {"steps": "n_iter", "restarts": "n_restarts", "eot": "eot_iter"}
_INSIDE = {
    "apgd-ce": ("apgd", _GRADIENT),
    "apgd-dlr": ("apgd", _GRADIENT),
    "apgd-t": ("apgd_targeted", {**_GRADIENT, "targets": "n_target_classes"}),
    "fab": ("fab", {"steps": "n_iter", "restarts": "n_restarts"}),
    "fab-t": (
        "fab",
        {"steps": "n_iter", "restarts": "n_restarts", "targets": "n_target_classes"},
    ),
    "square": ("square", {"queries": "n_queries", "restarts": "n_restarts"}),
}


@libraries.register("autoattack", cites="arXiv:2003.01690")
@dataclass(frozen=True)
class AutoAttack(ExternalAttack):
    """The reference implementation: `standard`, `plus`, `rand`, or one of its attacks.

    Targets are limited to the wrong classes: the reference raises an error when there are fewer.
    """

    package: ClassVar[str] = "pyautoattack"
    extra: ClassVar[str] = "autoattack"
    table: ClassVar[dict[str, Foreign]] = AUTOATTACK

    def check(self, threat: Threat, classes: int) -> None:
        """Look up the version or attack and its options, and whether the classes suffice."""
        self.library()
        if self.name not in {*_VERSIONS, *_INSIDE}:
            raise unknown("attack of AutoAttack", self.name, [*_VERSIONS, *_INSIDE])
        known = _INSIDE[self.name][1] if self.name in _INSIDE else {}
        for option, value in self.options:
            if option not in known or not isinstance(value, int) or value < 1:
                listing = ", ".join(known) or "none"
                raise UsageError(
                    f"autoattack:{self.name} takes positive whole numbers for: {listing}; "
                    f"got {option}={value!r}."
                )
        check(f"autoattack:{self.name}", AUTOATTACK[self.name], threat, classes)

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Run the evaluation on the batch."""
        with _contained():
            attack = self._made(model, threat, batch.classes, batch.seed, batch.x.device)
            found: Images = attack.run_standard_evaluation(
                batch.x, batch.y, batch_size=len(batch.x)
            )[0]
        return found

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Read the options in effect, for each of its attacks."""
        with _contained():
            attack = self._made(nn.Identity(), threat, classes, 0, "cpu")
        found: dict[str, Any] = {}
        for part in attack.attacks_to_run:
            inside, names = _INSIDE[part]
            found[part] = {key: getattr(getattr(attack, inside), at) for key, at in names.items()}
        return found if self.name in _VERSIONS else dict(found[self.name])

    def _made(self, model: nn.Module, threat: Threat, classes: int, seed: int, device: Any) -> Any:
        library: Any = self.library()
        whole = self.name in _VERSIONS
        attack = library.AutoAttack(
            model,
            norm=NORMS[threat.norm],
            eps=threat.eps,
            seed=seed,
            device=device,
            version=self.name if whole else "custom",
            attacks=None if whole else [self.name],
        )
        if not whole:
            # A custom version starts from the constructor's values, not from those of `standard`.
            _standard(attack, threat)
            inside, names = _INSIDE[self.name]
            for option, value in self.options:
                setattr(getattr(attack, inside), names[option], value)
        for part in (attack.apgd_targeted, attack.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        return attack


def _standard(attack: Any, threat: Threat) -> None:
    """Set up the parts as the version `standard` does."""
    attack.apgd.n_restarts = attack.fab.n_restarts = attack.apgd_targeted.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 9
    if threat.norm == "l1":
        attack.apgd.use_largereps = attack.apgd_targeted.use_largereps = True
        attack.apgd.n_restarts, attack.apgd_targeted.n_target_classes = 5, 5


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Keep the reference's side effects inside.

    Its check for dynamic defenses ends the trace function of debuggers and coverage, and counts
    calls in a global that flags every later model.
    """
    checks: Any = importlib.import_module("pyautoattack.checks")
    trace, logger = sys.gettrace(), logging.getLogger("auto-attack")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        sys.settrace(trace)
        logger.disabled = disabled
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))
