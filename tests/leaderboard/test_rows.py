from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from robustkit.errors import UsageError
from robustkit.leaderboard.formats import (
    OF_PROMPTS,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_rich,
)
from robustkit.leaderboard.rows import OF_FINITE, Row, load_records, row, table
from robustkit.record.points import Points, Status
from robustkit.record.record import Record, save
from robustkit.record.schema import DataInfo, Stage, ThreatInfo, WeightsInfo
from robustkit.verify.flags import Flag

# Of a table of norms.
COLUMNS = tuple(name for name in Row._fields if name not in (*OF_FINITE, *OF_PROMPTS))


def a_record(
    defense: str = "trades",
    standing: int = 15,
    broken: int = 3,
    wrong: int = 2,
    proved: int = 0,
    **changes: Any,
) -> Record:
    """Points of four classes in turn: first `proved`, then `standing`, `broken` and `wrong`."""
    n = proved + standing + broken + wrong
    labels = [i % 4 for i in range(n)]
    status: list[Status] = ["certified"] * proved
    status += ["robust"] * standing
    status += ["broken"] * broken
    status += ["misclassified"] * wrong
    points = Points(
        index=list(range(n)),
        label=labels,
        predicted=[(y + (i >= n - wrong)) % 4 for i, y in enumerate(labels)],
        status=status,
        attack=[None] * (proved + standing) + ["apgd(loss=dlr)"] * broken + [None] * wrong,
        distance=[None] * n,
    )
    data = DataInfo(
        name="fashion_mnist",
        digest=f"first {n}",
        n=n,
        total=1000,
        classes=4,
        shape=[1, 28, 28],
        class_names=["Bag", "Coat", "Shirt", "T-shirt/top"],
    )
    fields: dict[str, Any] = {
        "robustkit": "0.1.0",
        "defense": defense,
        "data": data,
        "threat": ThreatInfo(norm="linf", eps=8 / 255),
        "suite": "parity",
        "attacks": ["apgd(loss=ce)", "apgd(loss=dlr)"],
        "seed": 0,
        "arguments": {},
        "weights": WeightsInfo(digest="w", parameters=1),
        "certify": "ibp" if proved else None,
        "randomized": False,
        "flags": [],
        "notes": [],
        "stages": [],
        "points": points,
        "forwards": 100 * n,
        "backwards": 50 * n,
        "flips": 0,
        "seconds": 1.25,
        "started": "2026-01-02T03:04:05+00:00",
        "versions": {},
        "device": "cpu",
        "commit": None,
    }
    return Record(**(fields | changes))


def hand_made() -> pd.DataFrame:
    flags = [Flag(name="zero_gradients", message="m"), Flag(name="at_chance", message="m")]
    undefended = a_record("undefended", 0, 20, 0, flags=flags, randomized=True, seconds=61.04)
    twin = a_record("pgd_at(steps=10)", seed=1, suite=None)
    proved = a_record("ibp", 4, 4, 4, proved=8, threat=ThreatInfo(norm="l2", eps=0.5))
    return table(
        [
            ("records/undefended.json", undefended),
            (Path("records/trades.json"), a_record()),
            ("records/ibp.json", proved),
            ("records/twin.json", twin),
        ]
    )


@pytest.mark.parametrize(
    ("write", "kind"),
    [(to_csv, "csv"), (to_markdown, "md"), (to_latex, "tex"), (to_json, "json")],
)
def test_every_format_to_the_byte(write: Callable[[pd.DataFrame], str], kind: str) -> None:
    golden = Path(__file__).parents[1] / "golden" / f"leaderboard.{kind}"
    assert write(hand_made()).encode() == golden.read_bytes()


def test_a_row_is_what_its_record_says() -> None:
    # 15 of 20: the Clopper–Pearson ends are the beta quantiles B(.025; 15, 6) = .508954 and
    # B(.975; 16, 5) = .913429. Labels go 0 1 2 3 0 1 2 3 ..., so that 4 of the 5 points of each
    # class stand, but 3 of the last one; the tail is 2 of the 4 classes, (.6 + .8) / 2.
    line = row(a_record(), Path("a") / "record.json")
    assert line == Row(
        rank="1",
        defense="trades",
        data="fashion_mnist",
        norm="linf",
        eps=8 / 255,
        n=20,
        clean=0.9,
        robust=0.75,
        robust_low=0.508954,
        robust_high=0.913429,
        audit_bound=None,
        certified=None,
        worst_class=0.6,
        worst_class_name="T-shirt/top",
        tail_30=0.7,
        randomized=False,
        flags="",
        strongest_attack="apgd(loss=dlr)",
        suite="parity",
        forwards_per_point=100.0,
        backwards_per_point=50.0,
        seconds=1.25,
        seed=0,
        record="a/record.json",
        strength="",
        reliability="reliable",
    )


def test_the_strength_of_every_attack_is_written_out() -> None:
    stage: dict[str, Any] = {"jobs": 20, "entered": 10, "broken": 3, "backwards": 0, "seconds": 1.0}
    power: dict[str, Any] = {"steps": 10, "step_size": 2 / 255, "inner": {"targets": 9}}
    stages = [
        Stage(attack="apgd(loss=ce)", forwards=125, strength=power, **stage),
        Stage(attack="apgd(loss=dlr)", forwards=0, **{**stage, "entered": 0, "broken": 0}),
    ]
    # 125 passes over 10 points that entered; an attack that got no points spent none on them.
    assert row(a_record(stages=stages), "r").strength == (
        "apgd: steps=10, step_size=0.00784314, inner=[targets=9], F=12.5; apgd: F=0.0"
    )


def test_one_total_order_whatever_the_order_of_the_records() -> None:
    records = [
        ("r1", a_record("b", 10, 8, 2)),
        ("r2", a_record("a", 10, 8, 2)),
        ("r3", a_record("c", 10, 9, 1)),
        ("r4", a_record("d", 11, 5, 4)),
        ("r5", a_record("e", 20, 0, 0, threat=ThreatInfo(norm="l2", eps=2.0))),
        ("r6", a_record("f", 1, 19, 0, threat=ThreatInfo(norm="l2", eps=0.5))),
    ]
    frame = table(records)
    assert list(frame["defense"]) == ["f", "e", "d", "c", "a", "b"]
    assert list(frame.columns) == list(COLUMNS)
    for turn in range(1, len(records)):
        assert to_csv(table(records[turn:] + records[:turn])) == to_csv(frame)


def test_ties_are_ranges_and_groups_are_ranked_apart() -> None:
    other = a_record("other", 1, 19, 0, threat=ThreatInfo(norm="linf", eps=0.1))
    close = [a_record("one"), a_record("two"), a_record("three", 14, 4, 2)]
    far = a_record("far", 0, 18, 2)
    frame = table([(r.defense, r) for r in [other, *close, far]])
    ranks = dict(zip(frame["defense"], frame["rank"], strict=True))
    assert ranks == {"one": "1-3", "two": "1-3", "three": "1-3", "far": "4", "other": "1"}
    # The same eps, typed in two ways, is one group.
    typed = a_record("typed", threat=ThreatInfo(norm="linf", eps=0.0313725490196))
    assert set(table([("a", a_record()), ("b", typed)])["rank"]) == {"1-2"}


def test_an_empty_table_can_be_written() -> None:
    frame = table([])
    assert to_csv(frame) == ",".join(COLUMNS) + "\n"
    assert json.loads(to_json(frame)) == {"schema": "robustkit/rows/1", "rows": []}
    assert to_markdown(frame) == to_latex(frame) == shown(frame) == ""


def test_csv_and_json_come_back_as_numbers() -> None:
    back = pd.read_csv(io.StringIO(to_csv(hand_made())))
    assert back["robust"].tolist() == [0.6, 0.75, 0.75, 0.0]
    assert back["randomized"].tolist() == [False, False, False, True]
    assert back["certified"].isna().tolist() == [False, True, True, True]
    rows = json.loads(to_json(hand_made()))["rows"]
    assert rows[1]["eps"] == 8 / 255
    assert rows[3]["flags"] == ["zero_gradients", "at_chance"]
    assert (rows[0]["certified"], rows[1]["certified"], rows[1]["suite"]) == (0.4, None, None)


@pytest.mark.parametrize(
    "name",
    ["=cmd()", "+1", "-1", "@sum", "\t=cmd()", "  =cmd()", "\r\n=cmd()", "\uff1dcmd()", "\x00-1"],
)
def test_no_cell_is_a_formula(name: str) -> None:
    text = to_csv(table([("=path", a_record(name))]))
    _, line = csv.reader(io.StringIO(text))
    cells = dict(zip(COLUMNS, line, strict=True))
    assert cells["defense"].startswith("'")
    assert cells["record"] == "'=path"
    assert text.count("\n") == 2


def test_no_name_is_markdown() -> None:
    name = "a|b\n**c** <b>&`x` [l](http://u) _i_ snake_case $m$ \\ ~~"
    line = to_markdown(table([("r", a_record(name))])).splitlines()[-1]
    assert re.split(r"(?<!\\)\|", line)[2].strip() == (
        r"a\|b \*\*c\*\* &lt;b&gt;&amp;\`x\` \[l\](http\://u) \_i\_ snake_case \$m\$ \\ \~\~"
    )
    assert len(re.findall(r"(?<!\\)\|", line)) == 17


def test_no_name_is_latex() -> None:
    name = "\\input{x} & 5% $m$ #1 a_b ~ ^ < > |\n\\\\"
    line = to_latex(table([("r", a_record(name))])).splitlines()[5]
    assert line.startswith(
        r"1 & \textbackslash{}input\{x\} \& 5\% \$m\$ \#1 a\_b \textasciitilde{} "
        r"\textasciicircum{} \textless{} \textgreater{} \textbar{} "
        r"\textbackslash{}\textbackslash{} & 20 & "
    )
    assert line.count(" & ") == 15


def test_no_name_is_terminal_markup() -> None:
    text = shown(table([("r", a_record("[red]x[/red] \x1b[2J :smile: [/]"))]), width=200)
    assert "[red]x[/red]  [2J :smile: [/]" in text
    assert "\x1b" not in text


def test_the_terminal_table_fits_100_columns_and_keeps_numbers_whole() -> None:
    flags = [Flag(name=f"a_rather_long_flag_{i}", message="m") for i in range(3)]
    name = "some.package.module:a_model_with_a_very_long_name_and_options"
    wide = a_record(name, 800, 150, 50, proved=200, flags=flags, forwards=1200 * 12_345)
    lines = shown(table([("r", wide), ("s", a_record("ibp", 1000, 200, 0))])).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].strip() == "fashion_mnist, linf, eps = 8/255, n = 1200"
    whole = next(line for line in lines if "[0." in line and "12,345" in line)
    for number in ("0.958", "0.833 [0.811, 0.854]", "0.167"):
        assert number in whole


def test_a_table_of_80_columns_keeps_names_and_numbers_whole() -> None:
    flags = [Flag(name="randomized", message="m"), Flag(name="transfer", message="m")]
    record = a_record("mixednuts(beta=90.0)", 800, 150, 50, proved=200, flags=flags)
    lines = shown(table([("r", record)]), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    for text in ("mixednuts", "0.833 [0.811, 0.854]", "0.167", "suspicious", "transfer"):
        assert any(text in line for line in lines)
    assert "worst class" not in lines[2]
    assert "Left out for want of room" in lines[-1]


def test_records_are_found_in_files_and_folders(tmp_path: Path) -> None:
    places = ["runs/one/record.json", "runs/two/record.json", "leaderboards/records/three.json"]
    for seed, place in enumerate(places):
        save(a_record(seed=seed), tmp_path / place)
    (tmp_path / "runs" / "one" / "notes.json").write_text("{}")

    def seeds(*paths: Path) -> list[int]:
        return [record.seed for _, record in load_records(paths)]

    assert seeds(tmp_path / "runs") == [0, 1]
    assert seeds(tmp_path) == [2, 0, 1]
    assert seeds(tmp_path / "leaderboards") == seeds(tmp_path / "leaderboards" / "records") == [2]
    assert seeds(tmp_path / places[1], tmp_path / "runs") == [1, 0]
    shutil.copy(tmp_path / places[0], tmp_path / "copy.json")
    assert seeds(tmp_path / "copy.json", tmp_path) == [0, 2, 1]
    assert load_records([tmp_path / "copy.json"])[0][0] == tmp_path / "copy.json"


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got none in .*\. `robustkit evaluate` makes them"):
        load_records([tmp_path])
    with pytest.raises(UsageError, match="got none in nothing"):
        load_records([])
    with pytest.raises(UsageError, match="absent: expected a record or a folder of records"):
        load_records([tmp_path / "absent"])
    bad = tmp_path / "records" / "bad.json"
    bad.parent.mkdir()
    bad.write_text("{")
    with pytest.raises(UsageError, match=r"bad\.json: expected JSON"):
        load_records([tmp_path])


def shown(frame: pd.DataFrame, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(to_rich(frame), end="")
    return capture.get()
