"""Writes explanation/claims.md: published claims beside what the committed records say of them.

The claims stand in _claims.toml; every figure that was measured is computed from the records.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.core.spec import Spec
from robustkit.core.stats import clopper_pearson, mcnemar
from robustkit.leaderboard import boards
from robustkit.leaderboard.grouping import shown_eps, shown_threat
from robustkit.leaderboard.rows import load_records
from robustkit.record.interval import clean_interval, robust_interval, variants_interval
from robustkit.record.points import ROBUST
from robustkit.record.record import Record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "leaderboards" / "records"
SUITES = ("adaptive", "parity", "fast")  # of records that broke as many points, which one is shown
LEVEL = 0.05
HEADS = ("points", "figure", "here [95%]", "base", "difference", "p", "seen", "claimed",
         "strongest attack")  # fmt: skip


class Claim(NamedTuple):
    """One table of _claims.toml."""

    system: str
    defenses: list[str]
    base: str
    claim: str
    source: str
    threats: list[str]
    figures: dict[str, str]
    published: list[list[str]] = []  # noqa: RUF012  # a tuple's default; nobody changes it


class Case(NamedTuple):
    """The records of one model, and those of the base, on the same points under one threat model.

    Attributes:
        records: broken most first; the base's likewise.
    """

    records: list[Record]
    base: list[Record]


@functools.cache
def page() -> str:
    """Write the page from the committed records."""
    records = [record for _, record in load_records([RECORDS])]
    table = tomllib.loads((HERE / "_claims.toml").read_text(encoding="utf-8"))
    parts = (section(Claim(**told), records) for told in table["claim"])
    return "\n".join([table["text"], *parts])


def section(claim: Claim, records: Sequence[Record]) -> str:
    """Write one system: its claim, a line per figure, and what every suite left."""
    cases = list(cases_of(claim, records))
    lines = [line for case in cases for line in lines_of(claim, case)]
    heads = [head.replace("base", f"`{claim.base}`") for head in HEADS]
    suites = [f"- {line}" for line in map(_suites, cases) if line]
    return "\n".join([
        f"## {claim.system}\n",
        f"**Published:** {claim.claim} ({_linked(claim.source)})\n",
        *_published(claim),
        _table(heads, lines) if lines else "No record yet.\n",
        *([*suites, ""] if suites else []),
    ])  # fmt: skip


def cases_of(claim: Claim, records: Sequence[Record]) -> Iterator[Case]:
    """Find the models of a claim, by data, threat model and name."""
    asked = [r for r in records if _name(r) in claim.defenses
             and r.threat.norm.partition(":")[0] in claim.threats]  # fmt: skip
    keys = sorted({_key(record) for record in asked},
                  key=lambda key: (claim.threats.index(key[1].partition(":")[0]), key))  # fmt: skip
    for key in keys:
        base = [r for r in records if _name(r) == claim.base and _points(r) == key[:-1]]
        # Of several variants of the base the one that is nearest to its defaults.
        nearest = min((r.defense for r in base), key=lambda name: (name.count("="), name),
                      default="")  # fmt: skip
        yield Case(
            sorted((r for r in asked if _key(r) == key), key=_broken_most),
            sorted((r for r in base if r.defense == nearest), key=_broken_most),
        )


def lines_of(claim: Claim, case: Case) -> Iterator[list[str]]:
    """Write what each figure of a claim is here, beside the base, and the strongest attack."""
    first, where = case.records[0], _where(case.records[0])
    attack = strongest(first)
    for figure, said in claim.figures.items():
        mine, theirs = best(figure, case.records), best(figure, case.base)
        if mine is None:
            continue
        value = value_of(figure, mine)
        cells = ["", "", "", ""]
        if theirs is not None:
            known = f"{value_of(figure, theirs):.3f}{_by(figure, theirs)}"
            cells = [known, *compared(figure, mine, theirs)]
        here = _with_interval(figure, mine, value) + _by(figure, mine)
        yield [where, figure, here, *cells, said, attack]
        where = attack = ""


def best(figure: str, records: Sequence[Record]) -> Record | None:
    """Return the record whose word on a figure is closest to the truth; None: none has it."""
    if figure == "certified":
        proved = [record for record in records if record.certified is not None]
        return max(proved, key=lambda record: record.certified or 0, default=None)
    if figure == "mean":
        records = [record for record in records if record.corruptions is not None]
    return next(iter(records), None)


def value_of(figure: str, record: Record) -> float:
    """Return a figure of a record, a fraction."""
    if figure == "tail 30%":
        return record.tail_30
    shares = of_points(figure, record)
    return sum(shares.values()) / len(shares)


def of_points(figure: str, record: Record) -> dict[int, float]:
    """Return what a figure is the mean of, by position of the point."""
    if figure == "mean":
        found = record.corruptions
        assert found is not None  # `best` has seen to it
        return dict(zip(found.points, found.per_point.tolist(), strict=True))
    good = {
        "clean": (*ROBUST, "broken"),
        "robust": ROBUST,
        "certified": ("certified",),
    }[figure]
    pairs = zip(record.points.index, record.points.status, strict=True)
    return {index: float(status in good) for index, status in pairs}


def compared(figure: str, mine: Record, theirs: Record) -> list[str]:
    """Return difference, p and what is seen of it; the mean of some classes has no paired test."""
    difference = f"{value_of(figure, mine) - value_of(figure, theirs):+.3f}".replace("-", "−")
    if figure == "tail 30%":
        return [difference, "", ""]
    here, there = of_points(figure, mine), of_points(figure, theirs)
    gained = sum(here[point] > there[point] for point in here)
    lost = sum(here[point] < there[point] for point in here)
    p = mcnemar(gained, lost)
    seen = "not told apart" if p >= LEVEL else "more" if gained > lost else "less"
    return [difference, "< 0.001" if p < 0.001 else f"{p:.3f}", seen]


def strongest(record: Record) -> str:
    """Name the attack that broke most; of corruptions the one under which most are wrong."""
    if record.corruptions is not None:
        name, accuracy = record.corruptions.worst
        return f"{name} ({accuracy:.3f} right)"
    broken = Counter(attack for attack in record.points.attack if attack is not None)
    if record.strongest_attack is None:
        return "none broke any"
    name = record.strongest_attack.partition("(")[0]
    return f"`{name}` ({broken[record.strongest_attack]} of {broken.total()})"


def _with_interval(figure: str, record: Record, value: float) -> str:
    if figure == "tail 30%":
        return f"{value:.3f}"
    found = record.corruptions
    if figure == "mean" and found is not None:
        low, high = variants_interval(record, found)
    elif figure == "certified":
        low, high = clopper_pearson(record.points.status.count("certified"), record.n)
    else:
        low, high = (clean_interval if figure == "clean" else robust_interval)(record)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _by(figure: str, record: Record) -> str:
    """Name the certificate: a weaker one proves less of the same network."""
    return f" by `{record.certify}`" if figure == "certified" else ""


def _published(claim: Claim) -> Iterator[str]:
    """Say what the boards have of it: the claim, and what is known by now."""
    told = []
    for board, model in claim.published:
        (row,) = (row for row in boards.read(board).rows if row.model == model)
        claimed = "" if row.claimed is None else f"{row.claimed:.4f} claimed, "
        later = f", [{row.later_attack}]({row.later_source})" if row.later_source else ""
        told.append(f"`{model}` on `{board}`: {claimed}best known {row.best_known:.4f}{later}")
    if told:
        yield f"[Boards](../howto/published.md): {'; '.join(told)}.\n"


def _suites(case: Case) -> str:
    """Say what each suite left of a model, and the verdict on the row that is shown."""
    first = case.records[0]
    left = [f"`{record.suite}` {record.robust:.3f}" for record in case.records[::-1]]
    flags = ", ".join(f"`{flag.name}`" for flag in first.flags) or "no flag"
    if len(left) < 2 and not first.flags:
        return ""
    return f"{_where(first)}: {', '.join(left)} robust; {first.reliability}, {flags}."


def _where(record: Record) -> str:
    threat = shown_threat(record.threat.norm, record.threat.eps).replace(", eps =", "")
    # A name holds an eps in full: 0.00784313725490196 is 2/255.
    name = re.sub(r"=(0\.\d{7,})", lambda found: f"={shown_eps(float(found[1]))}", record.defense)
    return f"`{name}`, {record.data.title}, {threat}, n = {record.n}"


def _linked(source: str) -> str:
    number = source.removeprefix("arXiv:")[:10]
    return source.replace(f"arXiv:{number}", f"[arXiv:{number}](https://arxiv.org/abs/{number})")


def _name(record: Record) -> str:
    return Spec.parse(record.defense).name


def _points(record: Record) -> tuple[Any, ...]:
    return record.data.title, record.threat.text, record.data.digest


def _key(record: Record) -> tuple[Any, ...]:
    return *_points(record), record.defense


def _broken_most(record: Record) -> tuple[Any, ...]:
    suite = (record.suite or "").partition("(")[0]
    place = SUITES.index(suite) if suite in SUITES else len(SUITES)
    return record.robust, place, suite


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
