"""The page of models under every threat model: its cells, its worst column, and what all leave."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from robustkit import Record
from robustkit.record.schema import DataInfo, ThreatInfo

SITE = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def across() -> ModuleType:
    """The script of the site, which is no package."""
    spec = importlib.util.spec_from_file_location("_across", SITE / "_across.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def data(n: int) -> DataInfo:
    return DataInfo(name="toy", digest=f"{n}", n=n, total=12, classes=3, shape=[1, 2, 2])


def test_a_line_is_a_model_with_its_least_cell_and_what_no_threat_breaks(
    across: ModuleType, make_record: Callable[..., Record]
) -> None:
    l2, patch = ThreatInfo(norm="l2", eps=0.5), ThreatInfo(norm="patch:2x2", eps=1.0)
    records = [
        make_record("a", "rrrrrrrbbb", data=data(10), suite="fast"),
        make_record("a", "rrrrrrbrbb", data=data(10), suite="adaptive"),
        make_record("a", "brrr", data=data(4), threat=l2),
        make_record("b", "rbbbbbbbbb", data=data(10)),
        make_record("b", "rrrr", data=data(4), threat=l2),
        make_record("b", "rrrr", data=data(4), threat=patch),  # of one model alone
    ]
    named = ((f"{i}.json", record) for i, record in enumerate(records))
    lines = across.table(across.columns(named)).splitlines()
    assert lines[0] == "| model | clean | linf 0.1 | l2 0.5 | worst | all |"
    assert lines[2:] == [
        "| `a` | 1.000 | 0.600 (n = 10) | 0.750 (n = 4) | 0.600 linf 0.1 | 0.750 (n = 4) |",
        "| `b` | 1.000 | 0.100 (n = 10) | 1.000 (n = 4) | 0.100 linf 0.1 | 0.250 (n = 4) |",
    ]


def test_the_page_is_of_the_committed_records(across: ModuleType) -> None:
    page = across.page()
    assert "linf 8/255" in page and "| `pgd_at` |" in page
