"""The exact search of decision trees and small forests of scikit-learn: `trees:nearest`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.models.scores import without_gradients
from robustkit.registry import libraries
from robustkit.search.external import Batch, ExternalAttack
from robustkit.search.protocol import Job

from ._foreign import Foreign, check

NEAREST = Foreign(("linf", "l2", "l1", "l0"))


@libraries.register("trees", cites="arXiv:1906.03849")
@dataclass(frozen=True)
class Trees(ExternalAttack):
    """Nearest inputs in other leaves of a tree, a forest or gradient boosting, without any pass.

    Leaves are boxes, and the nearest point of each is known (`robustkit.models.trees`). With the
    certificate `trees` the robust accuracy of a tree is exact, and that of a forest where the
    search of no point is given up.
    """

    package: ClassVar[str] = "trees"
    extra: ClassVar[str] = "sklearn"
    table: ClassVar[dict[str, Foreign]] = {"nearest": NEAREST}

    batch_size: int = 16

    tabular = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run a point, in any box.

        Raises:
            UsageError: for another name, and for options.
        """
        self.check(threat, classes)
        return [Job()]

    def check(self, threat: Threat, classes: int) -> None:
        """Refuse (a UsageError) other names, and options."""
        if self.name not in self.table or self.options:
            given = f"trees:{self.name}{dict(self.options) or ''}"
            raise UsageError(f"expected trees:nearest, which has no options, got {given}.")
        if not isinstance(threat, TabularThreat):
            check("trees:nearest", NEAREST, threat, classes)

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Images:
        """Return what the search finds; the point itself where it finds nothing.

        Raises:
            UsageError: for a model that is no tree or forest of scikit-learn.
        """
        scores = without_gradients(model)
        if scores is None or scores.forest is None:
            raise UsageError(
                "trees:nearest searches decision trees and forests of scikit-learn, got another "
                "model. Use --suite scores where it has no gradients, and fast where it has."
            )
        found = batch.x.clone()
        for row, (_, z) in enumerate(scores.searched(batch.x, batch.y, threat)):
            if z is not None:
                found[row] = z
        return found

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """There is nothing to set."""
        return {}
