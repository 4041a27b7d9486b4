"""The tables of a page: one per threat model, with own and published rows, and their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from robustkit.leaderboard import beside, grouping
from robustkit.leaderboard.beside import Beside
from robustkit.leaderboard.formats import Link
from robustkit.leaderboard.grouping import group_of, named
from robustkit.leaderboard.published import Published
from robustkit.leaderboard.report import plots
from robustkit.leaderboard.report.view import Group, Line


class Column(NamedTuple):
    """A column: what its cells are called, what it means, and whether it is shown at first."""

    name: str
    heading: str
    meaning: str
    first: bool = False


COLUMNS = (
    Column("rank", "rank", "Place among the own rows of this table; a range is a tie. Published "
           "rows have none: no test tells them apart.", True),
    Column("model", "model", "The model; its runs are folded beneath it.", True),
    Column("source", "source", "Own: measured here. Published: read, with no verdicts per point.",
           True),
    Column("clean", "clean", "Share of points classified correctly without an attack.", True),
    Column("robust", "robust [95% interval]", "Share of points that no run broke, an upper bound, "
           "with its 95% interval.", True),
    Column("mean", "mean under corruption", "Mean accuracy over corruptions and severities, with "
           "its 95% interval over points; published and own rows are compared by it.", True),
    Column("hardest", "worst corruption", "The lowest mean over severities, and where.", True),
    Column("certified", "certified", "Share of points proved robust: a lower bound.", True),
    Column("undecided", "undecided", "Share of points neither proved nor broken.", True),
    Column("verdict", "verdict", "Whether the robust accuracy can be relied on, by the gravest "
           "flag.", True),
    Column("difference", "to the nearest", "Robust accuracy less that of the nearest row of the "
           "other source.", True),
    Column("flags", "flags", "Reasons to distrust the row."),
    Column("suite", "suite", "The line-ups of attacks that ran."),
    Column("strongest", "strongest attack", "The attack that broke most points."),
    Column("n", "points evaluated", "Points evaluated."),
    Column("worst", "worst class", "Robust accuracy of the weakest class."),
    Column("tail", "tail 30%", "Mean robust accuracy over the weakest 30% of the classes."),
    Column("passes", "forward passes per point", "Forward passes per point, over all runs."),
    Column("bound", "may miss", "How much lower the full line-up would put robust at most."),
)  # fmt: skip


class Entry(NamedTuple):
    """One row: of an own model, or of a published result, for which `line` is None."""

    line: Line | None
    beside: Beside

    @property
    def link(self) -> str:
        """The address of the paper, where it is one."""
        return Link("", self.beside.link).safe

    @property
    def short(self) -> str:
        """The name of a published row without what the tab says."""
        return self.beside.model.rpartition("/")[2]

    @property
    def near(self) -> str:
        return (self.beside.nearest or "").removeprefix("robustbench:").rpartition("/")[2]


class Table(NamedTuple):
    """All rows under one threat model; `group` holds the own models, None where there are none."""

    id: str
    title: str
    entries: list[Entry]
    group: Group | None

    @property
    def columns(self) -> list[Column]:
        """Those that have something to say here."""
        lines = [entry.line for entry in self.entries if entry.line]
        empty = {
            "source": not any(entry.line is None for entry in self.entries),
            "difference": not any(entry.beside.nearest for entry in self.entries),
            "certified": not any(line.row.certified is not None for line in lines),
            "undecided": not any(line.row.undecided is not None for line in lines),
            "bound": not any(run.row.audit_bound is not None for ln in lines for run in ln.runs),
            "flags": not any(line.flags for line in lines),
            "mean": not self.finite,
            "hardest": not self.finite or not lines,
        }
        alone = {"rank", "model", "source", "clean", "robust", "mean", "verdict"}
        return [c for c in COLUMNS if not empty.get(c.name) and (lines or c.name in alone)]

    @property
    def finite(self) -> bool:
        """Whether all inputs of the threat model were tried; published rows are of norms, or so."""
        return any(
            named(entry.beside.norm) if entry.line is None
            else entry.line.row.mean_corrupted is not None
            for entry in self.entries
        )  # fmt: skip

    @property
    def published(self) -> list[Beside]:
        return [entry.beside for entry in self.entries if entry.line is None]

    @property
    def states(self) -> list[str]:
        """The states of points that occur, the safest first."""
        lines = self.group.lines if self.group else []
        found = {state for line in lines for state, _, _ in plots.outcome(line)}
        return [state for state in ("certified", "robust", "broken", "wrong") if state in found]

    @property
    def tradeoff(self) -> str:
        """The plot of accuracy against robustness; empty where it would be a single dot."""
        if self.group is None or len(self.entries) < 2:
            return ""
        return plots.tradeoff(self.group, self.published)


def tables(groups: Sequence[Group], published: Sequence[Published]) -> list[Table]:
    """Set own models and published results in one table per threat model, own tables first."""
    lines = {line.row.record: line for group in groups for line in group.lines}
    own = {group_of(group.lines[0].row): group for group in groups}
    found: list[Table] = []
    rows = [line.row for line in lines.values()]
    for members in beside.tables(rows, published):
        data, norm, eps = key = group_of(members[0])
        group = own.get(key)
        name = group.id if group else f"table-published-{len(found)}"
        title = grouping.title(data, norm, eps)
        entries = [Entry(lines.get(row.record) if row.source == "own" else None, row)
                   for row in members]  # fmt: skip
        found.append(Table(name, group.title if group else title, entries, group))
    return sorted(found, key=lambda table: table.group is None)
