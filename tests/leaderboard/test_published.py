"""Published results, read from made-up files in RobustBench's layout: no number here is real."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit import Record
from robustkit.cli.program import program as main
from robustkit.errors import UsageError
from robustkit.leaderboard import beside, published
from robustkit.leaderboard.formats import Link, to_lines
from robustkit.leaderboard.rows import row
from robustkit.record.record import save
from robustkit.record.schema import DataInfo, ThreatInfo

MADE_UP = {
    "link": "https://example.org/made-up",
    "name": "A Made-Up Paper",
    "authors": "Nobody",
    "additional_data": False,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "Nowhere 2026",
    "architecture": "Made-Up-18",
    "eps": "8/255",
    "clean_acc": "90.50",
    "reported": "61.0",
    "autoattack_acc": "60.25",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three linf models, one of them with a stronger attack known; one l2; one tells nothing."""
    files: dict[str, dict[str, Any]] = {
        "cifar10/Linf/MadeUp2026A": {},
        "cifar10/Linf/MadeUp2026B": {
            "autoattack_acc": "70.0", "external": "55.5", "unreliable": True, "reported": "null",
        },
        "cifar10/Linf/MadeUp2026C": {"autoattack_acc": "60.25", "clean_acc": "80", "external": ""},
        "cifar10/L2/MadeUp2026D": {"eps": "0.5", "footnote": "=cmd()"},
    }  # fmt: skip
    for name, changes in files.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(MADE_UP | changes))
    noise = {key: value for key, value in MADE_UP.items() if key != "autoattack_acc"}
    (tmp_path / "cifar10" / "corruptions").mkdir()
    text = json.dumps(noise | {"eps": None})
    (tmp_path / "cifar10" / "corruptions" / "MadeUp2026E.json").write_text(text)
    return tmp_path


def test_rows_are_fractions_ranked_by_the_best_known_result(folder: Path) -> None:
    rows, left_out = published.load([folder])
    told = {row.model.rpartition("/")[2]: row for row in rows}
    assert left_out == ["cifar10/corruptions/MadeUp2026E"]
    assert [row.model for row in rows] == [
        "robustbench:cifar10/L2/MadeUp2026D",
        "robustbench:cifar10/Linf/MadeUp2026A",
        "robustbench:cifar10/Linf/MadeUp2026C",
        "robustbench:cifar10/Linf/MadeUp2026B",
    ]
    assert [row.rank for row in rows] == [1, 1, 1, 3]  # a tie, and the external result last
    first = told["MadeUp2026A"]
    assert (first.clean, first.autoattack, first.best_known) == (0.905, 0.6025, 0.6025)
    assert (first.norm, first.eps, first.reported) == ("linf", 8 / 255, 0.61)
    second = told["MadeUp2026B"]
    assert (second.autoattack, second.best_known, second.unreliable) == (0.70, 0.555, True)
    assert second.reported is None
    assert {row.label for row in rows} == {"published"}
    assert {row.source for row in rows} == {"https://example.org/made-up"}


def test_a_single_file_will_do(folder: Path) -> None:
    rows, _ = published.load([folder / "cifar10" / "Linf" / "MadeUp2026B.json"])
    assert rows[0].file.endswith("MadeUp2026B.json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clean_acc": "lots"}, "expected clean_acc in percent"),
        ({"autoattack_acc": "160"}, "expected autoattack_acc in percent, from 0 to 100, got '160'"),
        ({"autoattack_acc": ""}, "expected numbers in clean_acc and autoattack_acc"),
        ({"eps": "8/0"}, "expected eps as a number or fraction"),
        ({"eps": None}, "expected eps as a number or fraction"),
    ],
)
def test_what_is_damaged_is_named(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "Linf" / "MadeUp.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MADE_UP | changes))
    with pytest.raises(UsageError, match=told) as caught:
        published.load([path])
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "robustkit/record/1"}')
    with pytest.raises(UsageError, match="another kind of JSON"):
        published.load([tmp_path / "other.json"])
    with pytest.raises(UsageError, match="no such path"):
        published.load([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="got none in"):
        published.load([folder / "cifar10" / "corruptions"])
    (tmp_path / "flat.json").write_text(json.dumps(MADE_UP))
    with pytest.raises(UsageError, match="folder named after its threat model"):
        published.load([tmp_path / "flat.json"])


def test_corruptions_are_read_as_published_and_stand_beside_own_means(
    tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    told = {key: value for key, value in MADE_UP.items() if key != "autoattack_acc"}
    place = tmp_path / "cifar10" / "corruptions"
    place.mkdir(parents=True)
    for name, share in (("MadeUp2026F", "73.46"), ("MadeUp2026G", "88.82")):
        text = json.dumps(told | {"eps": None, "corruptions_acc": share, "reported": ""})
        (place / f"{name}.json").write_text(text)
    rows, left_out = published.load([tmp_path])
    assert left_out == [] and [row.best_known for row in rows] == [0.8882, 0.7346]
    first = rows[0]
    assert (first.norm, first.eps, first.autoattack) == ("corruption:all", 5, None)
    assert (first.rank, first.clean, first.reported) == (1, 0.905, None)
    data = DataInfo(name="cifar10", digest="d", n=4, total=4, classes=3, shape=[3, 2, 2])
    record = make_record("mine", "rbbm", data=data)
    threat = ThreatInfo(norm="corruption:all", eps=5, variants=["fog@1", "fog@2"])
    points = record.points.model_copy(update={"variants": ["11", "10", "01", "11"]})
    own = row(record.model_copy(update={"threat": threat, "points": points}), "x")
    (group,) = beside.tables([own], rows)
    assert [(line.source, line.robust, line.rank) for line in group] == [
        ("published", 0.8882, "1"), ("own", 0.75, ""), ("published", 0.7346, "2")
    ]  # fmt: skip
    assert group[1].difference == pytest.approx(0.0154)
    assert "mean accuracy over corruptions and severities" in beside.to_markdown([group])
    assert "MadeUp2026F" in published.to_csv(rows)


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["leaderboard", *arguments])


class TestCommand:
    RECORDS = str(Path(__file__).parents[2] / "leaderboards" / "records")

    def test_csv_is_labeled_and_harmless(self, folder: Path) -> None:
        result = ask("--published", str(folder), "--format", "csv")
        assert result.exit_code == 0, result.stderr
        rows = list(csv.DictReader(result.stdout.splitlines()))
        assert {row["label"] for row in rows} == {"published"}
        assert rows[0]["footnote"] == "'=cmd()"
        assert "robust accuracy (1): cifar10/corruptions/MadeUp2026E" in result.stderr.replace(
            "\n", " "
        )

    @pytest.mark.parametrize("layout", ["table", "csv", "markdown", "latex"])
    def test_measured_and_published_rows_stand_in_one_table_per_threat_model(
        self, layout: str, folder: Path, tmp_path: Path, make_record: Callable[..., Record]
    ) -> None:
        data = DataInfo(
            name="cifar10", digest="d", n=10, total=10, classes=3, shape=[3, 2, 2]
        )  # fmt: skip
        rounded = float(np.float32(8 / 255))  # not 8/255, and with six digits not its six
        own = make_record("mine", "rrrrrrbbbm", data=data, eps=rounded)
        save(own, tmp_path / "runs" / "record.json")
        found = ask(
            str(tmp_path / "runs"), "--published", str(folder / "cifar10"), "--format", layout
        )
        assert found.exit_code == 0, found.stderr
        lines = found.stdout.splitlines()
        (mine,) = [at for at, line in enumerate(lines) if "mine" in line and "own" in line]
        # 0.6025 of A and C, 0.600 of mine, 0.555 of B: sorted together.
        others = [at for at, line in enumerate(lines) if "published" in line]
        assert min(others) < mine < max(others)
        assert "-0.0025" in lines[mine]
        assert found.stdout.count("eps = 8/255") == (layout != "csv")

    def test_json_keeps_them_apart(self, folder: Path) -> None:
        answer = json.loads(
            ask(self.RECORDS, "--published", str(folder), "--format", "json").stdout
        )
        assert len(answer["rows"]) == len(list(Path(self.RECORDS).glob("*.json")))
        assert all("label" not in row for row in answer["rows"])
        assert len(answer["published"]) == 4
        assert {row["source"] for row in answer["beside"]} == {"own", "published"}
        assert answer["published_schema"] == "robustkit/published/1"

    def test_something_must_be_named(self) -> None:
        assert ask().exit_code == 2


@pytest.mark.parametrize("footnote", ["＝cmd()", " ＋1", "\x00=cmd()", "\x85@x"])  # noqa: RUF001
def test_no_cell_of_what_others_published_is_a_formula(footnote: str, tmp_path: Path) -> None:
    path = tmp_path / "Linf" / "MadeUp.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MADE_UP | {"footnote": footnote}))
    (row,) = csv.DictReader(published.to_csv(published.load([path])[0]).splitlines())
    assert row["footnote"].startswith("'")
    assert row["footnote"].isprintable()


def test_links_lead_somewhere_and_venues_are_text() -> None:
    address = "https://example.org/a_b?x=(1)&y=[2]|<3>"
    cells: list[str | Link] = [
        "A & B*",
        Link("Made_Up *Conf* | 2026", address),
        Link("x", "javascript:alert(1)"),
    ]
    text = to_lines("t", ["a", "b", "c"], [cells], "markdown")
    assert text.splitlines()[-1] == (
        r"| A &amp; B\* | [Made_Up \*Conf\* \| 2026]"
        "(https://example.org/a_b?x=%281%29&y=%5B2%5D%7C%3C3%3E) | x |"
    )
    latex = to_lines("t", ["a", "b", "c"], [cells], "latex")
    assert r"\href{https://example.org/a_b?x=\%281\%29\&y=\%5B2\%5D\%7C\%3C3\%3E}{Made\_Up" in latex


def test_what_was_written_for_a_web_page_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "Linf" / "MadeUp.json"
    path.parent.mkdir()
    told = {"venue": "Vision &amp; Made-Up, <i>2026</i>", "name": "It&#39;s 1 < 2"}
    path.write_text(json.dumps(MADE_UP | told))
    (row,), _ = published.load([path])
    assert (row.venue, row.title) == ("Vision & Made-Up, 2026", "It's 1 < 2")
    assert "Vision &amp; Made-Up, 2026" in beside.to_markdown(beside.tables([], [row]))


def test_the_nearest_is_of_the_other_source_and_ranks_stay_apart(
    folder: Path, make_record: Callable[..., Record]
) -> None:
    data = DataInfo(name="cifar10", digest="d", n=10, total=10, classes=3, shape=[3, 2, 2])
    made = [make_record("a", "rrrrrrbbbm", data=data), make_record("b", "rrrrrbbbbm", data=data)]
    own = [row(record, "x")._replace(eps=8 / 255) for record in made]
    (l2, linf) = beside.tables(own, published.load([folder])[0])
    assert [line.nearest for line in l2] == [None]
    told = [(line.model.rpartition("/")[2], line.rank, line.difference) for line in linf]
    assert told == [
        ("MadeUp2026A", "1", 0.0025), ("MadeUp2026C", "1", 0.0025), ("a", "1", -0.0025),
        ("MadeUp2026B", "3", -0.045), ("b", "1", -0.055),
    ]  # fmt: skip
