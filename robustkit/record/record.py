"""What an evaluation leaves behind: configuration, provenance, and the verdict on every point.

A record is evidence: intervals, paired tests, leaderboards and gates are computed from its
per-point verdicts, without another run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field, JsonValue

from robustkit.core import json_files
from robustkit.core.packages import install_command
from robustkit.errors import UsageError, digests_differ
from robustkit.record import interval
from robustkit.record.classes import lowest, robust_by_class
from robustkit.record.display import RecordDisplay
from robustkit.record.points import ROBUST, Points, Status
from robustkit.record.schema import (
    AuditInfo,
    ClassAccuracy,
    Commit,
    Count,
    DataInfo,
    LedgerDigests,
    Part,
    Seconds,
    Stage,
    ThreatInfo,
    WeightsInfo,
)
from robustkit.record.variants import VariantAccuracies
from robustkit.verify.flags import Flag, Reliability, reliability

__all__ = [
    "AuditInfo", "ClassAccuracy", "Commit", "DataInfo", "Flag", "LedgerDigests", "Points", "Record",
    "Stage", "Status", "ThreatInfo", "WeightsInfo", "load", "save",
]  # fmt: skip

SCHEMA: Literal["robustkit/record/1"] = "robustkit/record/1"
REPLAY, COMPLETE = "replay", "complete"  # the stages of earlier runs' inputs, of branch and bound


class Record(RecordDisplay, Part):
    """Everything that one evaluation found, and what it takes to repeat it.

    All accuracies are fractions of all n points. A certified point counts as robust.
    """

    schema_id: Literal["robustkit/record/1"] = Field(default=SCHEMA, alias="schema")
    robustkit: str
    """Version of the package."""
    defense: str
    data: DataInfo
    threat: ThreatInfo
    suite: str | None
    """None when attacks were named one by one."""
    attacks: list[str]
    """Canonical specs, in the order they ran."""
    seed: int
    arguments: dict[str, JsonValue]
    """What the user asked for."""
    weights: WeightsInfo
    certify: str | None
    """The certificate asked for; None: none was."""
    randomized: bool
    """Whether two forward passes of one input differ."""
    flags: list[Flag]
    notes: list[str]
    audit: AuditInfo | None = None
    """None where the suite has no audit."""
    stages: list[Stage]
    points: Points
    forwards: Count
    """Total over the run: clean pass, attacks, verification, diagnostics."""
    backwards: Count
    flips: Count
    """Candidates that an attack claimed and the float32 check did not confirm."""
    seconds: Seconds
    started: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    device: str
    device_peak_bytes: Count | None = None
    """Most memory that PyTorch held on the CUDA device of this process; None: there was none."""
    commit: Commit | None
    ledger: LedgerDigests | None = None
    """What the ledger of the run held when the record was written; None: an earlier robustkit's."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        # The digest follows from the rest; `load` compares it with what a file says.
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key != "digest"}
        return value

    @pydantic.field_validator("arguments", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        # Tuples and paths become what a reader of the file gets back; json refuses NaN.
        text = json.dumps(value, allow_nan=False, default=str, ensure_ascii=False)
        return json.loads(text.encode("utf-8", "replace"))

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Record:
        points = self.points
        if len(points.index) != self.n:
            raise ValueError(f"{self.n} points expected (data.n), got {len(points.index)}")
        if max(points.label) >= self.data.classes:
            raise ValueError(f"label {max(points.label)} of {self.data.classes} classes")
        if (names := self.data.class_names) and len(names) != self.data.classes:
            raise ValueError(f"{self.data.classes} class names expected, got {len(names)}")
        if self.certify is None and "certified" in points.status:
            raise ValueError("points are certified, but no certificate was asked for")
        if strangers := {a for a in points.attack if a} - {REPLAY, COMPLETE, *self.attacks}:
            raise ValueError(f"points were broken by {sorted(strangers)}, not among the attacks")
        if smaller := [eps for eps in points.carried or () if eps and eps <= self.threat.eps]:
            raise ValueError(f"points are carried from {smaller[0]}, which is not a larger eps")
        if any(len(right) != len(self.threat.variants or ()) for right in points.variants or ()):
            raise ValueError("every point has one sign for each variant of the threat model")
        eps, far = self.threat.eps, points.nearest or points.distance
        pairs = zip(points.status, far, strict=True)
        if near := [d for s, d in pairs if d is not None and d <= eps and s != "broken"]:
            raise ValueError(f"a point is not broken, yet an adversarial input lies at {near[0]}")
        return self

    @pydantic.computed_field  # type: ignore[prop-decorator]  # mypy knows no property below it
    @property
    def digest(self) -> str:
        """SHA-256 of everything else in the record; no signature, see `LedgerDigests`."""
        return content_digest(self.model_dump(mode="json", by_alias=True, exclude={"digest"}))

    @property
    def n(self) -> int:
        return self.data.n

    @property
    def clean(self) -> float:
        return (self.n - self.points.status.count("misclassified")) / self.n

    @property
    def robust(self) -> float:
        """Robust accuracy: no attack of the suite broke the point. An upper bound on the truth."""
        return sum(status in ROBUST for status in self.points.status) / self.n

    @property
    def expected(self) -> float | None:
        """Accuracy of one pass of a randomized model at the inputs its points are judged by.

        The mean over points and draws; an upper bound like `robust`, which asks of each point
        whether it errs more often than not. None for other models.
        """
        shares = [share for share in self.points.errors or () if share is not None]
        return math.fsum(1 - s for s in shares) / self.n if len(shares) == self.n else None

    @property
    def expected_interval(self) -> tuple[float, float] | None:
        """95% interval of `expected`, over the draw of the points and of the model's noise."""
        return interval.expected_interval(self)

    @property
    def certified(self) -> float | None:
        """Certified accuracy, a lower bound on the truth; None until a certificate is asked for."""
        return None if self.certify is None else self.points.status.count("certified") / self.n

    @property
    def undecided(self) -> float | None:
        """Share of the points neither proved nor broken; None until a certificate is asked for."""
        return None if self.certify is None else self.points.status.count("robust") / self.n

    @property
    def audit_bound(self) -> float | None:
        """How far the audit's full line-up would lower `robust` at most, as a fraction of n."""
        return None if self.audit is None else self.audit.missed / self.n

    @property
    def audit_halving(self) -> int | None:
        """Passes, forward and backward, of a larger random part that would halve `audit_bound`."""
        return None if self.audit is None else self.audit.halving(self.stages)

    @property
    def outcomes(self) -> dict[int, bool]:
        """Whether each point is robust, by its position in the data set, in ascending order."""
        pairs = zip(self.points.index, self.points.status, strict=True)
        found = {index: status in ROBUST for index, status in pairs}
        return {index: found[index] for index in sorted(found)}

    @property
    def corruptions(self) -> VariantAccuracies | None:
        """Accuracy under each variant of a finite threat model; None under a norm."""
        return VariantAccuracies.of(self)

    @property
    def per_class(self) -> dict[int, float]:
        """Robust accuracy of each class that has points, by label."""
        return robust_by_class(self.points)

    @property
    def worst_class(self) -> ClassAccuracy:
        """The class with the lowest robust accuracy; of equals, the one with the lowest label."""
        return self.tail[0]

    @property
    def tail(self) -> list[ClassAccuracy]:
        """The ⌈30%⌉ of the classes with the lowest robust accuracy, worst first."""
        return lowest(self.per_class)

    @property
    def tail_30(self) -> float:
        """Mean robust accuracy over `tail`: 3 of 10 classes, 30 of 100, 1 of 2 or 3."""
        return math.fsum(accuracy for _, accuracy in self.tail) / len(self.tail)

    @property
    def strongest_attack(self) -> str | None:
        """The attack that broke most points; of equals, the earlier one; None: none broke any."""
        broken = Counter(attack for attack in self.points.attack if attack is not None)
        return max([REPLAY, *self.attacks, COMPLETE], key=lambda a: broken[a]) if broken else None

    @property
    def reliability(self) -> Reliability:
        """Whether `robust` can be relied on, by the gravest flag; an answered one weighs less."""
        names = [flag.name for flag in self.flags]
        answered = [flag.name for flag in self.flags if flag.answered]
        return reliability([*names, "randomized"] if self.randomized else names, answered)

    @property
    def forwards_per_point(self) -> float:
        return self.forwards / self.n

    @property
    def backwards_per_point(self) -> float:
        return self.backwards / self.n

    @property
    def abstained(self) -> float | None:
        """Share of the clean points on which the model abstains; None where it cannot."""
        label = self.threat.goal.abstention if self.threat.criterion else None  # they import torch
        return None if label is None else self.points.predicted.count(label) / self.n

    def class_name(self, label: int) -> str:
        """Name of a class, or its number where the data set has no name for it."""
        return dict(enumerate(self.data.class_names or ())).get(label, str(label))


def save(record: Record, path: Path | str) -> None:
    """Write `record` as JSON: afterwards `path` holds all of it, or what it held before.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    json_files.write(record.model_dump(mode="json", by_alias=True), Path(path))


def load(path: Path | str) -> Record:
    """Read a record.

    Raises:
        UsageError: when the file is missing, is not JSON, has another or a newer schema, or
            contradicts itself.
        EvidenceAltered: when its contents do not have the digest that it names.
    """
    raw = json_files.read(Path(path))
    found = raw.get("schema") if isinstance(raw, dict) else None
    if found != SCHEMA:
        raise UsageError(f"{path}: expected schema {SCHEMA!r}, got {found!r}. {_cure(found)}")
    try:
        record = Record.model_validate(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise UsageError(
            f"{path}: expected a record of schema {SCHEMA!r}, got an error in {where}: "
            f"{first['msg']}. The file was changed after it was written: run the evaluation again."
        ) from None
    told, now = raw.pop("digest", None), content_digest(raw)
    if told is None and record.ledger is None:  # of an earlier robustkit
        return record
    if told != now:
        raise digests_differ(path, "its contents", str(told), now)
    return record


def content_digest(content: Any) -> str:
    """SHA-256 of a JSON value; the order of keys and the layout of the file do not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cure(found: object) -> str:
    family, _, version = str(found).rpartition("/")
    if family == "robustkit/record" and version.isdecimal():
        return f"It was written by a newer robustkit: `{install_command(upgrade=True)}`."
    return "It is not a record written by `robustkit evaluate`."
