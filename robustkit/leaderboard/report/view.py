"""Records as a report shows them: grouped as they are ranked, with every derived number named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core.text import clean, posix
from robustkit.errors import UsageError
from robustkit.leaderboard.rows import Row, ranked
from robustkit.record.interval import clean_interval
from robustkit.record.record import Record
from robustkit.verify.flags import Flag


class ClassBar(NamedTuple):
    """One class of one record: fractions of its n points."""

    name: str
    n: int
    clean: float
    robust: float
    certified: float | None


class Bar(NamedTuple):
    """One attack of one record, over the points that were still robust."""

    attack: str
    entered: int
    broken: int
    forwards: int
    backwards: int
    seconds: float


class Line(NamedTuple):
    """One record, under an id and a label that are unique in the report or in its group."""

    id: str
    label: str
    row: Row
    record: Record
    clean_low: float
    clean_high: float
    flags: list[Flag]

    @property
    def name(self) -> str:
        return clean(self.row.defense)

    @property
    def classes(self) -> list[ClassBar]:
        """Every class that has points, by label."""
        record, status = self.record, self.record.points.status
        pairs = list(zip(record.points.label, status, strict=True))
        size = Counter(record.points.label)
        right = Counter(label for label, state in pairs if state != "misclassified")
        proved = Counter(label for label, state in pairs if state == "certified")
        return [
            ClassBar(
                class_name(record, label),
                size[label],
                right[label] / size[label],
                robust,
                None if record.certify is None else proved[label] / size[label],
            )
            for label, robust in record.per_class.items()
        ]

    @property
    def bars(self) -> list[Bar]:
        """Every attack in the order they ran."""
        return [
            Bar(clean(s.attack), s.entered, s.broken, s.forwards, s.backwards, s.seconds)
            for s in self.record.stages
        ]

    @property
    def rest(self) -> tuple[int, int]:
        """Forward and backward passes outside the attacks: clean pass, checks, diagnostics."""
        forwards = self.record.forwards - sum(bar.forwards for bar in self.bars)
        backwards = self.record.backwards - sum(bar.backwards for bar in self.bars)
        return forwards, backwards


class Group(NamedTuple):
    """Records that are ranked together: same data, norm and eps."""

    id: str
    data: str
    threat: str
    lines: list[Line]

    @property
    def title(self) -> str:
        return f"{self.data}, {self.threat}"

    @property
    def front(self) -> list[Line]:
        """Lines that no other beats in clean and robust accuracy alike, clean accuracy rising."""
        front: list[Line] = []
        for line in sorted(self.lines, key=lambda line: (-line.row.clean, -line.row.robust)):
            if not front or line.row.robust > front[-1].row.robust:
                front.append(line)
        return front[::-1]


class Curve(NamedTuple):
    """One model on the same points under the same attacks and norm, at several eps, rising."""

    name: str
    norm: str
    lines: list[Line]

    @property
    def rises(self) -> list[Line]:
        """Lines with more robust points than at a smaller eps: the attack missed some there."""
        pairs = zip(self.lines, self.lines[1:], strict=False)
        return [after for before, after in pairs if after.row.robust > before.row.robust]


def arrange(records: Iterable[tuple[Path | str, Record]]) -> list[Group]:
    """Group and rank records as `robustkit.leaderboard.rows.table` does.

    Raises:
        UsageError: when two records are said to lie at one path, or there is none.
    """
    found: dict[str, Record] = {}
    for path, record in records:
        place = posix(path)
        if place in found:
            raise UsageError(f"expected one record a path, got two for {place!r}.")
        found[place] = record
    if not found:
        raise UsageError("expected at least one record, got none.")
    groups, ids = [], count(1)
    for number, members in enumerate(ranked(found.items()), 1):
        labels = _labels([row for row, _ in members])
        lines = [
            _line(f"record-{next(ids)}", label, row, record)
            for (row, record), label in zip(members, labels, strict=True)
        ]
        first = lines[0].row
        threat = f"{first.norm}, eps = {first.eps:.6g}"
        groups.append(Group(f"group-{number}", clean(first.data), threat, lines))
    return groups


def curves(groups: Sequence[Group]) -> list[Curve]:
    """Find the models that were evaluated at two or more eps, all else equal."""
    families: dict[tuple[Any, ...], dict[float, Line]] = {}
    for line in (line for group in groups for line in group.lines):
        record = line.record
        family = (
            *(record.defense, record.weights.digest, record.data.name, record.data.digest),
            *(record.threat.norm, tuple(record.attacks), record.seed),
        )
        families.setdefault(family, {})[record.threat.eps] = line
    several = [sorted(found.items()) for found in families.values() if len(found) > 1]
    return [
        Curve(found[0][1].name, found[0][1].row.norm, [line for _, line in found])
        for found in several
    ]


def class_name(record: Record, label: int) -> str:
    """Name a class; a model may have outputs beyond the classes of the data: those by number."""
    return clean(record.class_name(label)) if label < record.data.classes else str(label)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Name each row; rows of one defense are told apart by suite and n, then by their place."""
    names = [clean(row.defense) for row in rows]
    longer = [
        f"{name} ({clean(row.suite or 'attacks')}, n = {row.n})" if names.count(name) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]
    return [
        f"{label} #{number}" if longer.count(label) > 1 else label
        for number, label in enumerate(longer, 1)
    ]


def _line(identity: str, label: str, row: Row, record: Record) -> Line:
    low, high = clean_interval(record)
    flags = [Flag(name=clean(flag.name), message=clean(_told(flag))) for flag in record.flags]
    if record.randomized and "randomized" not in {flag.name for flag in flags}:
        told = "two passes of the same input through the model differ."
        flags.insert(0, Flag(name="randomized", message=told))
    return Line(identity, label, row, record, low, high, flags)


def _told(flag: Flag) -> str:
    return f"{flag.message} Answered: {flag.answered}." if flag.answered else flag.message
