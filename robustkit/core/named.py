"""Threat models of packs: known by a name, and without a ball that points could move in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Mask, Scalars
from robustkit.errors import UsageError

ANY_SHAPE = "Balls of linf, l2, l1 and l0, and unions of them, take inputs of any shape."


@dataclass(frozen=True)
class NamedThreat(Threat, ABC):
    """What an adversary may do to an image, where that is no ball of a norm.

    `norm` holds the whole name (`corruption:fog@3`). What moves points within a ball is refused. A
    subclass is registered in `robustkit.registry.threats`, adds no fields, and is built from what
    follows the colon by `read`.
    """

    def __post_init__(self) -> None:
        if self.box != (0.0, 1.0):
            raise UsageError(f"{self} is defined for inputs in [0, 1], got {list(self.box)}.")

    @classmethod
    @abstractmethod
    def read(cls, text: str) -> Self:
        """Return the threat model that `text`, the part behind the colon, stands for.

        Raises:
            UsageError: for a name that is not known.
        """

    @abstractmethod
    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse (a UsageError) data that it does not apply to: inputs [*shape], all labels."""

    def digest(self) -> str | None:
        """SHA-256 of the files that it is read from; None: its name says all."""
        return None

    def beside(self, data: Any) -> Self:
        """Return what it is for a data set, where it takes something from there.

        Raises:
            UsageError: for data that does not hold it.
        """
        return self

    suite: ClassVar[str]
    """The suite where nobody names attacks."""
    searched_by: ClassVar[str]
    """The attribute that is true of attacks and suites for threat models of this kind."""

    @property
    def members(self) -> Sequence[Threat]:
        """Of a union the threat models that it unites: a certificate must hold for each."""
        return ()

    @property
    @abstractmethod
    def instead(self) -> str:
        """What it is in place of a ball, and what to do, to end a refusal with."""

    def __str__(self) -> str:
        return f"{self.norm}{self.criterion.suffix}"

    def refuse_beyond_box(self, shape: Sequence[int]) -> None:
        """Its inputs lie in the box by definition."""

    def limit(self, features: int) -> float:
        """The largest distance: there is nothing to round."""
        return self.eps

    def contains(
        self,
        z: Images,
        x: Images,
        eps: Scalars | None = None,
        points: Sequence[int] | None = None,
    ) -> Mask:
        """Which of `z` the adversary can make of their point: those at a distance."""
        inside: Mask = self.distance(z, x, points) <= self.eps
        return inside

    def project(self, z: Images, x: Images, eps: Scalars | None = None) -> NoReturn:
        """There is no ball to project onto."""
        raise self.refusal("a projection")

    def steepest(self, gradient: Images) -> NoReturn:
        """There is no ball to move in."""
        raise self.refusal("a direction of steepest ascent")

    def sample(
        self,
        x: Images,
        keys: Keys,
        stream: int | Labels | Integers = 0,
        eps: Scalars | None = None,
    ) -> NoReturn:
        """There is no ball to draw from."""
        raise self.refusal("a random point")

    def refusal(self, what: str) -> UsageError:
        """Say that `what` needs a norm, and what to do."""
        return UsageError(f"{what} needs a norm (linf, l2, l1 or l0), and {self} {self.instead}")
