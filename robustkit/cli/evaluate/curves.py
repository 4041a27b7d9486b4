"""Security curves and distances in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from rich.console import RenderableType

from robustkit.core.terminal_table import TerminalTable

_ABREAST = 3  # models in one table
_QUANTILES = ("10%", "25%", "median", "75%", "90%")
_LEAST = ("F/pt", "clean", "25%", "75%")  # what a narrow terminal does without, the first first


def tables(found: Mapping[str, pd.DataFrame]) -> list[RenderableType]:
    """Return the tables of a run over several eps, or of one that sought distances."""
    if "distances" in found:
        return list(_distances(found["distances"]))
    return list(_curves(found["curve"])) if "curve" in found else []


def _curves(frame: pd.DataFrame) -> Iterator[TerminalTable]:
    """Eps downward, models abreast: robust accuracy with its interval, and the passes of all."""
    rows = frame.to_dict("records")
    for _, members in groupby(rows, key=lambda row: (row["data"], row["norm"])):
        group = list(members)
        names = list(dict.fromkeys(row["defense"] for row in group))
        for start in range(0, len(names), _ABREAST):
            yield _curve(group, names[start : start + _ABREAST])


def _curve(rows: Sequence[Mapping[Any, Any]], names: Sequence[str]) -> TerminalTable:
    first = rows[0]
    table = TerminalTable("eps", *names, whole=("eps",), lined=True)
    table.title = f"{first['data']}, {first['norm']}, n = {first['n']}: robust accuracy [95%]"
    of = {name: [row for row in rows if row["defense"] == name] for name in names}
    table.add_row("0", *(f"{of[name][0]['clean']:.3f}" for name in names))
    for eps in sorted({row["eps"] for row in rows}):
        cells = ["; ".join(_cell(r) for r in of[name] if r["eps"] == eps) for name in names]
        table.add_row(f"{eps:.6g}", *cells)
    passes = (sum(row["forwards_per_point"] for row in of[name]) for name in names)
    table.add_row("F/pt", *(f"{total:,.0f}" for total in passes))
    return table


def _cell(row: Mapping[Any, Any]) -> str:
    proved = "" if row["certified"] is None else f"{row['certified']:.3f} ≤ "
    return f"{proved}{row['robust']:.3f} [{row['robust_low']:.3f}, {row['robust_high']:.3f}]"


def _distances(frame: pd.DataFrame) -> Iterator[TerminalTable]:
    rows = frame.to_dict("records")
    for _, members in groupby(rows, key=lambda row: (row["data"], row["norm"])):
        group = list(members)
        first = group[0]
        title = f"{first['data']}, {first['norm']}, n = {first['n']}"
        heads = ("clean", f"robust at {first['eps']:.4g}", *_QUANTILES, "F/pt")
        table = TerminalTable("defense", *heads, least=_LEAST, whole=heads, lined=True)
        table.title = f"{title}: distance within which so many points are broken"
        for row in group:
            lengths = (row[key] for key in ("q10", "q25", "median", "q75", "q90"))
            table.add_row(
                row["defense"],
                f"{row['clean']:.3f}",
                f"{row['robust']:.3f}",
                *("–" if length is None else f"{length:.4g}" for length in lengths),
                f"{row['forwards_per_point']:,.0f}",
            )
        yield table
