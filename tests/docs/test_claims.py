"""The page of claims: what it says was measured is computed from records, as anybody would."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import binomtest

from robustkit import Record, registry
from robustkit.record.schema import DataInfo

SITE = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    """The script of the site, which is no package."""
    spec = importlib.util.spec_from_file_location("_claims", SITE / "_claims.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("_claims", loaded)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def claim(claims: ModuleType) -> Any:
    return claims.Claim(
        "System", ["mine"], "base", "A claim.", "arXiv:2408.05446, abstract", ["linf"],
        {"clean": "as much", "robust": "more", "certified": "", "mean": "more"},
    )  # fmt: skip


def data(digest: str) -> DataInfo:
    return DataInfo(name="toy", digest=digest, n=12, total=12, classes=3, shape=[1, 2, 2])


def test_a_line_is_the_record_that_broke_most_beside_the_base_on_the_same_points(
    claims: ModuleType, claim: Any, make_record: Callable[..., Record]
) -> None:
    records = [
        make_record("mine(a=1)", "rrrrrrrrrrbm", data=data("here"), suite="parity"),
        make_record("mine(a=1)", "rrrrrrrrrbbm", data=data("here"), suite="adaptive"),
        make_record("base", "rrbbbbbbbbbm", data=data("here")),
        make_record("base", "rrrrrrrrrrrr", data=data("there")),
        make_record("other", "rrrrrrrrrrrr", data=data("here")),
    ]
    (case,) = claims.cases_of(claim, records)
    lines = {line[1]: line for line in claims.lines_of(claim, case)}
    clean, robust = lines["clean"], lines["robust"]
    assert clean[0] == "`mine(a=1)`, toy, linf 0.1, n = 12"
    assert clean[3:7] == ["0.917", "+0.000", "1.000", "not told apart"]
    p = binomtest(7, 7).pvalue  # robust where the base is not: 7 points, the other way none
    assert robust[2].startswith("0.750 [")
    assert robust[3:8] == ["0.167", "+0.583", f"{p:.3f}", "more", "more"]
    assert clean[8] == "`square` (2 of 2)"
    text = claims.section(claim, records)
    assert "`parity` 0.833, `adaptive` 0.750 robust; reliable, no flag." in text
    assert "[arXiv:2408.05446](https://arxiv.org/abs/2408.05446), abstract" in text


def test_certified_is_the_most_that_was_proved_and_a_lone_row_has_no_base(
    claims: ModuleType, claim: Any, make_record: Callable[..., Record]
) -> None:
    records = [
        make_record("mine", "rrrrrrrrbbmm", data=data("x"), suite="adaptive", certify="ibp"),
        make_record("mine", "ccccrrrrrrmm", data=data("x"), suite="parity", certify="auto"),
    ]
    (case,) = claims.cases_of(claim, records)
    lines = {line[1]: line for line in claims.lines_of(claim, case)}
    assert lines["robust"][2].startswith("0.667 [")
    assert lines["certified"][2].startswith("0.333 [")
    assert lines["certified"][3:7] == ["", "", "", ""]
    assert "mean" not in lines  # that of variants: this threat model has none
    assert "No record yet." in claims.section(claim, [])


def test_every_claim_names_what_is_registered_and_where_it_stands(claims: ModuleType) -> None:
    page = claims.page()
    told = claims.tomllib.loads((SITE / "_claims.toml").read_text(encoding="utf-8"))["claim"]
    assert {name for entry in told for name in [*entry["defenses"], entry["base"]]} <= set(
        registry.defenses
    )
    for entry in told:
        assert "arXiv:" in entry["source"]
        assert f"## {entry['system']}\n" in page
    assert "No record yet." not in page


def test_crossmax_is_shown_as_the_adaptive_suite_left_it(claims: ModuleType) -> None:
    part = claims.page().split("## CrossMax, the self-ensemble")[1].split("\n## ")[0]
    records = [record for _, record in claims.load_records([claims.RECORDS])]
    mine = [r for r in records if r.defense == "crossmax" and r.threat.text == "linf:0.1"
            and r.data.name == "bundled"]  # fmt: skip
    least = min(record.robust for record in mine)
    assert next(record.suite for record in mine if record.robust == least) == "adaptive"
    assert f"|  | robust | {least:.3f} [" in part
