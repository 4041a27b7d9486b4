"""What `--certify complete` and `--certify auto` go on to: which budget, and for which models."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import nn

from robustkit.certify.complete.points import PointVerifier
from robustkit.certify.complete.relaxation import Relaxation
from robustkit.certify.complete.root import Prover
from robustkit.certify.complete.search import Budget
from robustkit.certify.graph import Graph, trace
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.legible import legible
from robustkit.models.mixture import Mixed, certified_by_margins
from robustkit.models.readiness import frozen

SECONDS = 10.0  # of a point, where nobody says
_NAMES = ("auto", "complete")
_MARGINS = [step / 64 for step in range(64 * 64)]  # what a mixture may ask of its robust part


class Effort(NamedTuple):
    """A method with what a point may cost; `text` is canonical and stands in the record."""

    method: str
    seconds: float = float("inf")
    nodes: float = float("inf")

    @property
    def complete(self) -> bool:
        """Whether bounds are followed by branch and bound."""
        return self.method in _NAMES

    @property
    def text(self) -> str:
        """The method with its budget, such as `complete(seconds=10)`."""
        budget = {"nodes": self.nodes, "seconds": self.seconds}
        options = tuple((key, _short(n)) for key, n in budget.items() if n < float("inf"))
        return str(Spec(self.method, options if self.complete else ()))

    @classmethod
    def parse(cls, text: str) -> Effort:
        """Read `auto`, `complete(seconds=60)`, `complete(nodes=1000)` or another method's name.

        Where neither is given, a point may take `SECONDS`; a budget of nodes alone does not depend
        on the clock.

        Raises:
            UsageError: for other options, and numbers that are not positive.
        """
        name = text.partition("(")[0].strip()
        if name not in _NAMES:
            return cls(text)
        given = dict(Spec.parse(text).options) or {"seconds": SECONDS}
        for key, value in given.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key not in ("seconds", "nodes") or not number or not float(str(value)) > 0:
                raise UsageError(
                    f"expected {name}(seconds=10) or {name}(nodes=1000), both above zero, got "
                    f"{text!r}."
                )
        return cls(name, **{key: float(str(value)) for key, value in given.items()})

    def budget(self) -> Budget:
        """Return the budget of one point, which starts now."""
        return Budget(self.seconds, self.nodes)


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else number


def obstacle(graph: Graph) -> str | None:
    """Return what keeps branch and bound from a network: an operation, or that there is no ReLU."""
    name = Relaxation.obstacle(graph)
    return name if name or graph.relu_inputs() else "no ReLU"


def reads(graph: Graph) -> bool:
    """Whether branch and bound knows all operations of a network."""
    return obstacle(graph) is None


def build_verifier(
    model: nn.Module, shape: tuple[int, ...], threat: Threat, wide: Threat
) -> PointVerifier | None:
    """Return the verifier of a network, or of a mixture by its robust part, on the CPU.

    None where it cannot prove anything: an operation without a bound, or a mixture that no margin
    of its robust part carries.

    Args:
        wide: the threat model with what float32 cannot express.
    """
    mixture = model if isinstance(model, Mixed) else None
    base = mixture.certificate_parts()[0] if mixture else model
    try:
        fast = trace(frozen(legible(duplicate(base))).cpu().float(), shape)
    except UsageError:  # it computes in float64 by itself: no copy in float32 agrees
        return None
    if not reads(fast):
        return None
    exact = trace(frozen(legible(duplicate(base))).cpu().double(), shape)
    target = 0.0 if mixture is None else _target(mixture, fast.nodes[-1].shape[0])
    if target is None:
        return None
    judge = frozen(duplicate(model)).cpu()
    return PointVerifier(Prover.of(fast, exact, wide), judge, threat, target=target)


def _target(mixture: Mixed, classes: int) -> float | None:
    """Return a margin that all classes must exceed for the mixture's certificate to hold."""
    _, alpha, scale = mixture.certificate_parts()
    label = torch.zeros(1, dtype=torch.long)

    def holds(margin: float) -> bool:
        margins = torch.full((1, classes), margin, dtype=torch.float64)
        return bool(certified_by_margins(margins, label, alpha, scale))

    place = bisect_left(_MARGINS, x=True, key=holds)
    return _MARGINS[place] if place < len(_MARGINS) else None
