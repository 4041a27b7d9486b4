"""The verdict on every point, as parallel columns that cannot contradict each other."""

from __future__ import annotations

from math import isclose
from operator import ne
from typing import ClassVar, Literal, TypeAlias

import pydantic

from robustkit.record.schema import Count, Part

Status: TypeAlias = Literal["misclassified", "broken", "robust", "certified"]
ROBUST: tuple[Status, ...] = ("robust", "certified")  # what counts as robust accuracy


class Points(Part):
    """One entry per evaluated point, as parallel columns."""

    index: list[Count]
    """Position in the data set."""
    label: list[Count]
    predicted: list[int]
    """On the clean input; differs from `label` exactly where the point is misclassified."""
    status: list[Status]
    attack: list[str | None]
    """The attack that broke the point; None unless it is broken."""
    distance: list[float | None]
    """From the clean to the adversarial input, in the norm of the threat model; else None."""
    nearest: list[float | None] | None = None
    """In a minimum-norm run, the distance of the closest adversarial input found, also beyond eps.

    None where none was found, and for misclassified points, which need none.
    """
    carried: list[float | None] | None = None
    """In a run over several eps, the larger eps at which it was robust; None: decided here."""

    errors: list[float | None] | None = None
    """Of a randomized model, the share of passes that err, by chance of its own draws.

    At the adversarial input where the point is broken, else at the input, clean or refused, that
    fooled the model most often; by passes that took no part in finding it. None: not measured.
    """

    proof: list[str | None] | None = None
    """By what a certified point was proved; None at the others, or: the record does not say."""

    later: ClassVar[tuple[str, ...]] = ("variants", "parameters")
    variants: list[str] | None = None
    """Of a finite threat model, one sign per variant in the order of `threat.variants`.

    1 where it is classified rightly, 0 where not; of misclassified points too.
    """

    parameters: list[list[int] | None] | None = None
    """Of a threat model with parameters, what makes the adversarial input of the clean one.

    In thousandths of each range, in the order of its parameters, channel after channel; None where
    the point is not broken, or its input was not stored.
    """

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Points:
        columns = (self.index, self.label, self.predicted, self.status, self.attack, self.distance)
        lengths = [len(column) for column in columns]
        optional = (self.nearest, self.carried, self.errors, self.proof, self.variants,
                    self.parameters)  # fmt: skip
        lengths += [len(column) for column in optional if column is not None]
        if len(set(lengths)) > 1:
            raise ValueError(f"columns of equal length expected, got {lengths}")
        if len(set(self.index)) < len(self.index):
            raise ValueError("every point is listed once, but an index is repeated")
        broken = [status == "broken" for status in self.status]
        wrong = [status == "misclassified" for status in self.status]
        if (
            broken != [attack is not None for attack in self.attack]
            or wrong != list(map(ne, self.label, self.predicted))
            or any(d is not None and not b for d, b in zip(self.distance, broken, strict=True))
        ):
            self._name_contradiction()
        if wild := [share for share in self.errors or () if share and not 0 <= share <= 1]:
            raise ValueError(f"expected shares of errors from 0 to 1, got {wild[0]}")
        self._check_nearest()
        self._check_carried()
        certified = [status == "certified" for status in self.status]
        if self.proof is not None and certified != [proof is not None for proof in self.proof]:
            raise ValueError("a proof is named exactly where a point is certified")
        self._check_variants()
        self._check_parameters()
        return self

    def _check_parameters(self) -> None:
        for index, distance, parts in zip(
            self.index, self.distance, self.parameters or (), strict=False
        ):
            most = None if parts is None else max(map(abs, parts), default=0) / 1000
            if most is not None and most > 1:
                raise ValueError(f"point {index}: its parameters leave ±1000: {parts}")
            if most is not None and (distance is None or not isclose(most, distance)):
                raise ValueError(
                    f"point {index}: its distance is {distance}, yet its parameters are {parts}"
                )

    def _check_variants(self) -> None:
        if self.variants is None:
            return
        for index, status, right in zip(self.index, self.status, self.variants, strict=True):
            if set(right) - {"0", "1"}:
                raise ValueError(f"point {index}: expected signs 0 and 1, got {right!r}")
            if status != "misclassified" and (status == "broken") != ("0" in right):
                raise ValueError(f"point {index} is {status}, yet its variants are {right}")

    def _name_contradiction(self) -> None:
        columns = (self.index, self.label, self.predicted, self.status, self.attack, self.distance)
        for index, label, predicted, status, attack, distance in zip(*columns, strict=True):
            if (attack is not None) != (status == "broken"):
                raise ValueError(f"point {index} is {status}, yet its attack is {attack!r}")
            if distance is not None and status != "broken":
                raise ValueError(f"point {index} is {status}, yet its distance is {distance!r}")
            if (label != predicted) != (status == "misclassified"):
                raise ValueError(f"point {index} ({label} predicted as {predicted}) is {status}")

    def _check_nearest(self) -> None:
        if self.nearest is None:
            return
        columns = (self.index, self.status, self.distance, self.nearest)
        for index, status, distance, nearest in zip(*columns, strict=True):
            if (status == "broken" and distance != nearest) or (
                status == "misclassified" and nearest is not None
            ):
                raise ValueError(f"point {index} is {status}, yet its nearest is {nearest!r}")

    def _check_carried(self) -> None:
        if self.carried is None:
            return
        columns = (self.index, self.status, self.carried)
        for index, status, carried in zip(*columns, strict=True):
            if carried is not None and status not in ROBUST:
                raise ValueError(f"point {index} is {status}, yet it is carried from {carried}")
