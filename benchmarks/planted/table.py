"""The table: what every search finds and proves, by construction, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.planted.run import ALL, DEEP, NETWORKS, Finding
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
    told = [str(len(cell.found)) if cell else "–" for cell in cells]
    if not (whole := cells[-1]):
        return [column, *told, "–", "–"]
    passes = f"{whole.passes / whole.points:,.0f}" if whole.passes else "–"
    return [column, *told, str(whole.proved), passes]


def _sum(found: Found, column: str, nets: Sequence[str]) -> Finding | None:
    """Return a column's finding on several networks, whose points count on; None: not all there."""
    parts = [found[net, column] for net in nets if (net, column) in found]
    if len(parts) < len(nets):
        return None
    points = frozenset(PLANTS * k + point for k, part in enumerate(parts) for point in part.found)
    return Finding(
        points=sum(part.points for part in parts),
        found=points,
        proved=sum(part.proved for part in parts),
        passes=sum(part.passes for part in parts),
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Lay the rows out in Markdown."""
    lines = [table[0], ["---", *["---:"] * (len(table[0]) - 1)], *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def account(found: Found, starts: Mapping[str, Sequence[float]]) -> list[str]:
    """Say what the rows come to: the target, the price of depth, the proofs.

    Args:
        starts: by maze and point, the share of random starts on the planted cone.
    """
    lines = []
    whole = {column: total for column in ALL if (total := _sum(found, column, NETWORKS))}
    for suite in ("parity", "adaptive"):
        if suite in whole:
            count = len(whole[suite].found)
            word = "reached" if count >= TARGET else "missed"
            lines.append(f"{suite} finds {count}; target {TARGET}: {word}")
    for name in (column for column in whole if column in DEEP):
        each = survivor(name)
        lines.append(
            f"{name} finds {len(whole[name].found)} and costs {each:,} passes for a point that "
            f"survives, {each / 1000:,.1f} million for 1,000 of them"
        )
    if whole:
        one = next(iter(whole.values())).points
        anything = frozenset().union(*(total.found for total in whole.values()))
        lines.append(f"found by anything in the table: {len(anything)} of {one}")
    for name, parts in starts.items():
        told = ", ".join(f"{100 * part:.1f}" for part in parts)
        lines.append(f"{name}: of 100 random starts, so many lie on the planted cone: {told}")
    proved = sum(finding.proved for finding in found.values())
    lines.append(f"points proved robust by anything: {proved} (each is a false proof)")
    return lines


def survivor(name: str) -> int:
    """Return the passes of a deep search, forward and backward, on a point that survives it."""
    search = attacks.build(DEEP[name])
    return 2 * (int(search.steps) + 1) * len(search.jobs(THREAT, CLASSES))
