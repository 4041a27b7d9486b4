"""Outer losses: what a training minimizes, `loss=` of the defenses that take one.

A loss is a frozen dataclass registered in `robustkit.registry.losses`, its fields the options:
`pgd_at(loss=comp_sum(tau=0.5))`. Those of the box lie in `defenses/losses/`, one file each.
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias, runtime_checkable

from pydantic import AfterValidator

from robustkit.core.spec import Spec
from robustkit.core.types import Labels, Logits, Scalars
from robustkit.errors import UsageError
from robustkit.models.load import name_of
from robustkit.models.training import Step
from robustkit.registry import losses


class OuterLoss(Protocol):
    """What a registered loss has."""

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point [b]; a training minimizes its mean. Logits are float32.

        Random draws come from `step.generator`, and what is kept from step to step lies in
        `step.memory`, so that a resumed training repeats an uninterrupted one.
        """
        ...

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return what the inner maximization climbs, per point [b], without draws or memory."""
        ...


@runtime_checkable
class Penalized(Protocol):
    """Tells a loss with a penalty of its own, which takes the place of TRADES's divergence."""

    def penalty(self, logits: Logits, moved: Logits, y: Labels) -> Scalars:
        """Return how far the logits of attacked points lie from those of clean ones [b]."""
        ...


def _canonical(text: str) -> str:
    """Return the shortest spec of the loss; a UsageError where there is none."""
    spec = Spec.parse(text)
    return name_of(losses.entry(spec.name), losses.build(spec))


def _of_one_input(text: str) -> str:
    name = _canonical(text)
    if isinstance(losses.build(name), Penalized):
        raise UsageError(
            f"the loss {name} compares attacked inputs with clean ones: expected a loss of one "
            f"input here. Train it as trades(loss={name}), whose beta weighs its penalty."
        )
    return name


LossSpec: TypeAlias = Annotated[str, AfterValidator(_canonical)]
"""An option that takes any registered loss."""
OneInputLossSpec: TypeAlias = Annotated[str, AfterValidator(_of_one_input)]
"""An option that takes a loss of one input: none with a penalty."""
