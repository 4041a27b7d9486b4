"""From settings to rows: the truth, the verdicts that were asked for, and those that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gauntlet import reference
from benchmarks.gauntlet.families import ENTRIES
from benchmarks.gauntlet.rows import Cell, Row, cell
from benchmarks.gauntlet.setting import Points, Setting
from benchmarks.gauntlet.truth import Truth
from benchmarks.gauntlet.wrapper import FAMILIES, Entry
from robustkit.core.types import Images
from robustkit.errors import RobustkitError, UsageError
from robustkit.record import record as records
from robustkit.record.adversarial import adversarial_inputs

REFERENCES: tuple[reference.Version, ...] = ("standard", "rand")
SUITES = ("parity", "adaptive")
COLUMNS = (*REFERENCES, *SUITES)


def chosen(only: Sequence[str], skip: Sequence[str]) -> list[Entry]:
    """Return wrappers by name or family, all when none is named.

    Raises:
        UsageError: for a name that is unknown.
    """
    known = {*ENTRIES, *(entry.family for entry in ENTRIES.values())}
    if strangers := {*only, *skip} - known:
        raise UsageError(f"expected wrappers or families ({', '.join(sorted(known))}), "
                         f"got {sorted(strangers)[0]!r}.")  # fmt: skip
    ordered = sorted(ENTRIES.values(), key=lambda entry: FAMILIES.index(entry.family))
    return [
        entry
        for entry in ordered
        if (not only or {entry.name, entry.family} & {*only})
        and not {entry.name, entry.family} & {*skip}
    ]


def attack(
    setting: Setting,
    points: Points,
    entries: Sequence[Entry],
    columns: Sequence[str],
    report: Callable[[str], None],
) -> list[str]:
    """Run the evaluations of `columns` that are not there yet, wrapper by wrapper.

    Returns:
        What could not finish, and why; the others do.
    """
    failed = []
    for number, entry in enumerate(entries, 1):
        for column in columns:
            report(f"{number} of {len(entries)}: {entry.name}, {column}")
            try:
                _evaluate(setting, points, entry, column)
            except RobustkitError as error:
                failed.append(f"{entry.name}, {column}: {error}")
    return failed


def _evaluate(setting: Setting, points: Points, entry: Entry, column: str) -> None:
    wrapped = entry.build(setting.bare).eval()
    for version in REFERENCES:
        if column == version:
            reference.judge(setting, wrapped, entry.name, points.chosen, version)
    if column in SUITES:
        setting.evaluate(wrapped, f"{entry.name}/{column}", points.chosen, suite=column)


def rows(
    setting: Setting,
    points: Points,
    entries: Sequence[Entry],
    report: Callable[[str], None],
) -> list[Row]:
    """Gather what has been found: the rows of every wrapper, with the columns that are there."""
    truth = Truth(setting, points)
    for entry in ENTRIES.values():  # whatever was found on any of them speaks of the bare model
        if entry.truth == "equal":
            truth.sharpen(_found(setting, points, entry))
    gathered = []
    for entry in entries:
        report(f"{entry.name}, truth")
        wrapped = entry.build(setting.bare).eval()
        standing = truth.of(entry, wrapped, _found(setting, points, entry))
        elsewhere = points.kept - len(points.controls)
        cells = _cells(setting, points, entry, standing, elsewhere)
        share = 100 * (elsewhere + sum(standing.values())) / setting.n
        gathered.append(Row(entry.name, entry.family, entry.truth, entry.random, share, cells))
    return gathered


def _cells(
    setting: Setting, points: Points, entry: Entry, truth: dict[int, bool], elsewhere: int
) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for version in REFERENCES:
        if raw := reference.kept(setting.folder / entry.name, version, points.chosen):
            verdict = dict(zip(points.chosen, raw["standing"], strict=False))
            found[version] = cell(verdict, truth, elsewhere, setting.n) if verdict else Cell(
                None, None, None, error=raw["error"])  # fmt: skip
    for suite in SUITES:
        path = setting.folder / entry.name / suite / "record.json"
        if not path.exists():
            continue
        record = records.load(path)
        if record.points.index == points.chosen:
            found[suite] = cell(record.outcomes, truth, elsewhere, setting.n)
            found[suite].flags = [flag.name for flag in record.flags]
            found[suite].verdict = record.reliability
    return found


def _found(setting: Setting, points: Points, entry: Entry) -> list[dict[int, Images]]:
    """Return every adversarial input that a finished evaluation claims for a wrapper."""
    folder: Path = setting.folder / entry.name
    found = [reference.claims(folder, version, points.chosen) for version in REFERENCES]
    ready = [folder / suite for suite in SUITES if (folder / suite / "record.json").exists()]
    return [*found, *(adversarial_inputs(path) for path in ready)]
