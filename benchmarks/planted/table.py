"""The table: what every search finds and proves, by construction, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.planted.run import ALL, COLUMNS, NETWORKS, Finding
from benchmarks.planted.setting import CLASSES, PLANTS, THREAT
from robustkit.registry import attacks

TARGET = 45  # of 50, that `parity` and `adaptive` are to find
Found = Mapping[tuple[str, str], Finding]


def groups() -> dict[str, list[str]]:
    """Return the networks of every column of the table."""
    found = {"hidden": [name for name in NETWORKS if name.startswith("hidden")]}
    found |= {name.replace("-", " "): [name] for name in NETWORKS if name.startswith("maze")}
    return found | {"all": NETWORKS}


def rows(found: Found) -> list[list[str]]:
    """Return one row for each search: found of how many, proved, passes per point."""
    heads = [f"{name} ({PLANTS * len(nets)})" for name, nets in groups().items()]
    return [["search", *heads, "proved", "passes a point"], *(_row(found, c) for c in ALL)]


def _row(found: Found, column: str) -> list[str]:
    cells = [_sum(found, column, nets) for nets in groups().values()]
    told = [str(cell.found) if cell.points else "–" for cell in cells]
    whole = cells[-1]
    passes = f"{whole.passes / whole.points:,.0f}" if whole.passes else "–"
    return [column, *told, str(whole.proved) if whole.points else "–", passes]


def _sum(found: Found, column: str, nets: Sequence[str]) -> Finding:
    """Add up, or return a finding of no points where a network is missing."""
    parts = [found[net, column] for net in nets if (net, column) in found]
    return Finding(*map(sum, zip(*parts, strict=True))) if len(parts) == len(nets) else Finding(
        0, 0, 0
    )  # fmt: skip


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Lay the rows out in Markdown."""
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def account(found: Found) -> list[str]:
    """Say what the rows come to: the target, the price of depth, the proofs."""
    lines = []
    for suite in ("parity", "adaptive"):
        whole = _sum(found, suite, NETWORKS)
        if whole.points:
            word = "reached" if whole.found >= TARGET else "missed"
            lines.append(f"{suite} finds {whole.found} of {whole.points}; target {TARGET}: {word}")
    for name in (name for name in COLUMNS if "x" in name):
        each = survivor(name)
        lines.append(
            f"{name} costs {each:,} passes for a point that survives, {each / 1000:,.1f} million "
            "for 1,000 of them"
        )
    proved = sum(finding.proved for finding in found.values())
    lines.append(f"points proved robust by anything: {proved} (each is a false proof)")
    return lines


def survivor(column: str) -> int:
    """Return forward and backward passes of a column's one attack on a point that survives."""
    (spec,) = COLUMNS[column]["attacks"]
    search = attacks.build(spec)
    return 2 * (int(search.steps) + 1) * len(search.jobs(THREAT, CLASSES))
