"""The parts of a record: stages, the audit, and what was evaluated by what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from robustkit.core.stats.hypergeometric import drawn_to_halve
from robustkit.registry import read_criterion

if TYPE_CHECKING:
    from robustkit.core.criterion import Criterion

Count: TypeAlias = Annotated[int, Field(ge=0)]
Seconds: TypeAlias = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Frozen, and strict about its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    later: ClassVar[tuple[str, ...]] = ()
    """Fields younger than the digest of records: left out where they are None, so that older
    records keep theirs."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        empty = [name for name in self.later if found.get(name, self) is None]
        return {key: value for key, value in found.items() if key not in empty}


class ClassAccuracy(NamedTuple):
    """The robust accuracy of the points of one class."""

    label: int
    accuracy: float


class Stage(Part):
    """One attack of the suite, over the points that were still robust when it began."""

    attack: str
    """Canonical spec, such as `apgd(loss=dlr, steps=50)`."""
    jobs: Count
    """Searches queued: points times restarts times targets."""
    entered: Count
    """Points that the attack was given."""
    broken: Count
    """Points that it broke, after verification."""
    forwards: Count
    """Inputs passed forward through the model, counted one by one; `backwards` likewise."""
    backwards: Count
    seconds: Seconds
    strength: dict[str, JsonValue] = {}
    """Steps, restarts, targets, queries and the like."""


class AuditInfo(Part):
    """What the full line-up did to a sample of the survivors of a faster one."""

    later = ("pursued", "pursued_broken")
    near: Count
    """Audited points of those that came nearest to being broken."""
    near_broken: Count
    random: Count
    """Audited points drawn from the `rest`."""
    random_broken: Count
    rest: Count
    escalated: bool
    """Too much of the random part was broken, so that the full line-up ran on every survivor."""
    missed: Count
    """Upper bound, at `confidence`, on the points never audited that the line-up would break."""
    confidence: Annotated[float, Field(gt=0, lt=1)]
    attacks: list[str] = []
    """Those of the record's attacks that are the audit's; empty: written before this was told."""
    pursued: Count | None = None
    """Points beyond the sample that came next in order of need, attacked because near ones fell."""
    pursued_broken: Count | None = None

    def halving(self, stages: Sequence[Stage]) -> int | None:
        """Estimate the passes that would halve `missed`; None where there is nothing to halve."""
        mine = [stage for stage in stages if stage.attack in self.attacks and stage.entered]
        if not self.missed or not mine:
            return None
        per_point = sum((stage.forwards + stage.backwards) / stage.entered for stage in mine)
        drawn = drawn_to_halve(self.rest, self.random, self.random_broken,
                               self.missed + 2 * (self.pursued_broken or 0))  # fmt: skip
        return round((drawn - self.random) * per_point)


class DataInfo(Part):
    """The points evaluated: n of the total, or of the planned ones where a run ended early."""

    name: str
    digest: str
    """SHA-256 of exactly the inputs and labels used."""
    n: Annotated[int, Field(ge=1)]
    total: Annotated[int, Field(ge=1)]
    planned: Annotated[int, Field(ge=1)] | None = None
    classes: Annotated[int, Field(ge=2)]
    shape: list[int]
    """Of one input, such as [1, 28, 28]."""
    note: str = ""
    """Origin and license."""
    class_names: list[str] | None = None
    sample: Literal["balanced"] | None = None
    """Balanced: as many points of every class as possible, whatever its share of the data.

    None: all points, those that were named, or a sample in which every point was as likely.
    """

    @property
    def title(self) -> str:
        """Name of what the accuracies are of; a balanced sample is another mix of classes."""
        return self.name if self.sample is None else f"{self.name} (class-balanced)"


class ThreatInfo(Part):
    """The threat model: ‖x' − x‖ ≤ eps and lower ≤ x' ≤ upper, in input units; or a finite one."""

    norm: Annotated[str, Field(pattern=r"^(linf|l2|l1|l0|[a-z][a-z0-9_@]*:.+)$")]
    """Of one that is no norm its whole name, such as `corruption:all` or `patch:5x5`."""
    eps: Annotated[float, Field(gt=0)]
    """Of a finite one the largest severity."""
    lower: float = 0.0
    upper: float = 1.0
    later: ClassVar[tuple[str, ...]] = ("variants", "content", "criterion")
    variants: list[str] | None = None
    """Of a finite one all its variants, such as `fog@3`."""
    content: str | None = None
    """SHA-256 of the files that they, or the rules of a table, are read from."""
    criterion: str | None = None
    """What breaks a point, such as `targeted:3`; None: any decision but its label."""

    @property
    def text(self) -> str:
        """As people write it, with six digits."""
        plain = self.norm if ":" in self.norm else f"{self.norm}:{self.eps:.6g}"
        return plain if self.criterion is None else f"{plain} {self.criterion}"

    @property
    def goal(self) -> Criterion:
        """What breaks a point."""
        return read_criterion(self.criterion or "untargeted")

    @property
    def kind(self) -> str:
        """Norm and criterion: records that differ in either are never compared."""
        return self.norm if self.criterion is None else f"{self.norm} {self.criterion}"


class WeightsInfo(Part):
    """Which weights were evaluated: SHA-256 of the state dict, and number of parameters."""

    digest: str
    parameters: Count


class LedgerDigests(Part):
    """SHA-256 of what a run's ledger holds, by which a later edit shows.

    They are no signature: whoever can edit the files can compute them anew.
    """

    run: str
    """Of what identifies the run."""
    verdicts: str
    """Of its verdicts, and of all that they and the numbers of the record follow from."""
    inputs: str
    """Of the stored adversarial inputs."""


class Commit(Part):
    """The git commit that the run was started in; dirty if tracked files differed from it."""

    hash: str
    dirty: bool
