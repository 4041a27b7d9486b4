"""What a gate demands: metrics with their tolerances, and how sure it must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from robustkit.errors import UsageError, unknown

Claim: TypeAlias = Literal["points", "population"]
METRICS = {
    "robust": "points that no attack broke",
    "clean": "points classified correctly without an attack",
    "certified": "points proved robust",
    "worst-class": "robust accuracy of the weakest class",
    "tail-30": "mean robust accuracy of the weakest 30% of the classes",
    "flags": "no reason for distrust that the baseline did not have",
    "reliability": "no graver verdict on the evaluation than the baseline's",
}
PLAIN = ("flags", "reliability")  # by words, not by numbers: no tolerance, no error of sampling
BY_CLASS = ("worst-class", "tail-30")
DEFAULT = ("robust", "flags")


@dataclass(frozen=True)
class Terms:
    """What is demanded of a candidate.

    Attributes:
        tolerances: metric to the drop that is accepted, in fractions (0.01 is one point in 100);
            `flags` and `reliability` have none.
        confidence: of each error separately: a build fails without cause, and a regression passes,
            with probability at most 1 − confidence each, whenever the gate stops.
        claim: "points": about the baseline's own points, certain once all are evaluated;
            "population": about what they are a sample of.
    """

    tolerances: Mapping[str, float] = field(default_factory=lambda: {"robust": 0.01, "flags": 0.0})
    confidence: float = 0.95
    claim: Claim = "points"

    def __post_init__(self) -> None:
        for metric, tolerance in self.tolerances.items():
            if metric not in METRICS:
                raise unknown("metric", metric, METRICS)
            if not 0 <= tolerance < 1:
                raise UsageError(
                    f"{metric}: expected a tolerance from 0 to below 1 (0.01 is one point in 100), "
                    f"got {tolerance:g}."
                )
        if not self.tolerances:
            raise UsageError(f"expected at least one metric of {', '.join(METRICS)}, got none.")
        if not 0 < self.confidence < 1:
            raise UsageError(f"expected 0 < confidence < 1, got {self.confidence:g}.")
        by_class = [metric for metric in self.tolerances if metric in BY_CLASS]
        if self.claim == "population" and by_class:
            raise UsageError(
                f"{by_class[0]} can be gated on the baseline's own points alone: leave it out, or "
                "make the claim about them (--claim points)."
            )

    @property
    def counted(self) -> int:
        """How many metrics can fail by chance; they share the probability to do so."""
        return max(1, sum(metric not in PLAIN for metric in self.tolerances))


def tolerances(given: Iterable[str], usual: float) -> dict[str, float]:
    """Read metrics such as "clean" or "clean=0.02"; without any, robust accuracy and flags.

    Raises:
        UsageError: for a tolerance that is no number.
    """
    found: dict[str, float] = {}
    for text in tuple(given) or DEFAULT:
        name, equals, number = text.partition("=")
        try:
            found[name.strip()] = float(number) if equals else usual
        except ValueError:
            raise UsageError(
                f"expected a metric with a tolerance such as clean=0.02, got {text!r}."
            ) from None
    return {name: 0.0 if name in PLAIN else value for name, value in found.items()}
