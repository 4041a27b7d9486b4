"""Records as a report shows them: a row per model, with its runs; derived numbers have names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core.text import clean, posix, slug
from robustkit.errors import UsageError
from robustkit.leaderboard.grouping import group_of, shown_eps, shown_threat
from robustkit.leaderboard.models import Model, models
from robustkit.leaderboard.rows import Row
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


class Line:
    """One model, or one run of it, under an id and a label of its own.

    Attributes:
        id: unique in the page; of a run the same whatever else is in it, unless two are alike.
        label: unique in its group; of a run, among the runs of its model.
        record: of a model with several runs the lowest verdicts of those that are counted.
        runs: of a model, the run that counts most first; of a run, none.
        counted: so many of the runs are in the numbers; the rest are on other points.
        model: of a run, the id of its model.
    """

    def __init__(
        self,
        id: str,
        label: str,
        row: Row,
        record: Record,
        runs: Sequence[Line] = (),
        counted: int = 0,
        model: str = "",
    ) -> None:
        self.id, self.label, self.row, self.record = id, label, row, record
        self.runs, self.counted, self.model = list(runs), counted, model or id
        self.clean_low, self.clean_high = clean_interval(record)

    @property
    def name(self) -> str:
        return clean(self.row.defense)

    @property
    def suite(self) -> str:
        return clean(self.row.suite) if self.row.suite else "attacks by name"

    @property
    def eps(self) -> str:
        return shown_eps(self.row.eps)

    @cached_property
    def flags(self) -> list[Flag]:
        found = [
            Flag(name=clean(flag.name), message=clean(_told(flag))) for flag in self.record.flags
        ]
        if self.record.randomized and "randomized" not in {flag.name for flag in found}:
            told = "two passes of the same input through the model differ."
            found.insert(0, Flag(name="randomized", message=told))
        return found

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

    @cached_property
    def bars(self) -> list[Bar]:
        """Every attack in the order they ran."""
        return [
            Bar(clean(s.attack), s.entered, s.broken, s.forwards, s.backwards, s.seconds)
            for s in self.record.stages
        ]

    @cached_property
    def broken(self) -> Counter[str]:
        """Count the points of the row that each attack broke."""
        return Counter(clean(name) for name in self.record.points.attack if name is not None)

    @property
    def rest(self) -> tuple[int, int]:
        """Forward and backward passes outside the attacks: clean pass, checks, diagnostics."""
        forwards = self.record.forwards - sum(bar.forwards for bar in self.bars)
        backwards = self.record.backwards - sum(bar.backwards for bar in self.bars)
        return forwards, backwards


class Group(NamedTuple):
    """Models that are ranked together: same data, norm and eps."""

    id: str
    data: str
    threat: str
    lines: list[Line]

    @property
    def title(self) -> str:
        return f"{self.data}, {self.threat}"

    @property
    def runs(self) -> list[Line]:
        return [run for line in self.lines for run in line.runs]

    @property
    def front(self) -> list[Line]:
        """Lines that no other beats in clean and robust accuracy alike, clean accuracy rising."""
        front: list[Line] = []
        for line in sorted(self.lines, key=lambda line: (-line.row.clean, -line.row.robust)):
            if not front or line.row.robust > front[-1].row.robust:
                front.append(line)
        return front[::-1]


class Curve(NamedTuple):
    """Runs of one model on the same points by the same attacks, at several eps, rising."""

    name: str
    norm: str
    lines: list[Line]

    @property
    def rises(self) -> list[Line]:
        """Lines with more robust points than at a smaller eps: the attack missed some there."""
        pairs = zip(self.lines, self.lines[1:], strict=False)
        return [after for before, after in pairs if after.row.robust > before.row.robust]


class _Ids:
    """Names for the elements of a page: each is given once."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def __call__(self, *parts: str) -> str:
        name = slug("-".join(parts))
        self._used[name.lower()] += 1
        number = self._used[name.lower()]
        return name if number == 1 else self(name, str(number))


def arrange(records: Iterable[tuple[Path | str, Record]]) -> list[Group]:
    """Group and rank the models of records as `robustkit.leaderboard.models.models` does.

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
    name = _Ids()
    groups = []
    for members in models(found.items()):
        data, norm, eps = group_of(members[0].row)
        threat = shown_threat(norm, eps)
        labels = _labels(members)
        pairs = zip(members, labels, strict=True)
        lines = [_line(model, label, name, (data, norm, f"{eps:.6g}")) for model, label in pairs]
        groups.append(Group(name("table", data, norm, f"{eps:.6g}"), clean(data), threat, lines))
    return groups


def curves(groups: Sequence[Group]) -> list[Curve]:
    """Find the models that were evaluated at two or more eps, all else equal."""
    families: dict[tuple[Any, ...], dict[float, tuple[str, Line]]] = {}
    for line in (line for group in groups for line in group.lines):
        for run in line.runs:
            record = run.record
            family = (
                *(record.defense, record.weights.digest, record.data.name, record.data.digest),
                *(record.threat.kind, tuple(record.attacks), record.seed),
            )
            families.setdefault(family, {})[record.threat.eps] = line.name, run
    several = [sorted(found.items()) for found in families.values() if len(found) > 1]
    times = Counter(found[0][1][0] for found in several)
    return [
        Curve(
            name if times[name] == 1 else f"{name} ({run.label})",
            run.row.norm,
            [line for _, (_, line) in found],
        )
        for found in several
        for name, run in [found[0][1]]
    ]


def class_name(record: Record, label: int) -> str:
    """Name a class; a model may have outputs beyond the classes of the data: those by number."""
    return clean(record.class_name(label)) if label < record.data.classes else str(label)


def _labels(group: Sequence[Model]) -> list[str]:
    """Name each model; those of one name are told apart by the digest of their weights."""
    names = [clean(model.row.defense) for model in group]
    times = Counter(names)
    return [
        f"{name} (weights {clean(model.record.weights.digest[:8])})" if times[name] > 1 else name
        for name, model in zip(names, group, strict=True)
    ]


def _line(model: Model, label: str, name: _Ids, where: tuple[str, str, str]) -> Line:
    own = name("m")  # short: it stands at everything that belongs to the model
    told = [
        f"{clean(row.suite or 'attacks by name')}, seed {row.seed}, n = {row.n}"
        for row, _ in model.runs
    ]
    runs = [
        Line(name("run", row.defense, *where, row.suite or "attacks", f"s{row.seed}"),
             f"{words} #{number}" if told.count(words) > 1 else words, row, record, model=own)
        for number, ((row, record), words) in enumerate(zip(model.runs, told, strict=True), 1)
    ]  # fmt: skip
    return Line(own, label, model.row, model.record, runs, model.counted)


def _told(flag: Flag) -> str:
    return f"{flag.message} Answered: {flag.answered}." if flag.answered else flag.message
