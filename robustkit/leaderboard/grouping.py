"""Which rows are ranked together, in one table: those of one data set, norm and eps."""

from __future__ import annotations

from typing import Protocol


class Ranked(Protocol):
    """A row that has a place among others."""

    @property
    def data(self) -> str: ...
    @property
    def norm(self) -> str: ...
    @property
    def eps(self) -> float: ...


def group_of(row: Ranked) -> tuple[str, str, float]:
    """Return data set, norm and eps to six digits: 8/255 and 0.0313725 are one."""
    return row.data, row.norm, float(f"{row.eps:.6g}")


def title(data: str, norm: str, eps: float) -> str:
    """Name the rows of one group."""
    return f"{data}, {norm}, eps = {eps:.6g}"
