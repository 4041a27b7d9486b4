"""No text of a model, of data, of a record or of a commit acts on a terminal or on a CI system."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.text import Text

from robustkit.cli.console import CleanConsole
from robustkit.cli.program import program as main
from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import clean, clean_lines, escape_orders, spreadsheet
from robustkit.record.record import Record, save
from robustkit.record.schema import Commit, DataInfo
from robustkit.verify.flags import Flag

MARKERS = {
    "color": "\x1b[35m",
    "title": "\x1b]0;x\x07",
    "eight bits": "\x9b35m",
    "back": "\x08\r",
    "null": "\x00",
    "bidi": "\u202e\u2066\u200f",
    "no width": "\u200b\u200d\u2060\ufeff\xad",
    "tag": "\U000e0041",
    "line": "\u2028\u0085",
    "command": "::error file=a,line=1::b",
    "group": "::group::b",
    "old command": "##[error]b",
    "azure": "##vso[task.complete result=Succeeded;]b",
    "teamcity": "##teamcity[b]",
    "gitlab": "section_start:1:b\r\x1b[0K",
    "line of a command": "\n::warning::b",
}
NASTY = "toy " + " ".join(MARKERS.values())
RAW = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
    r"|[\U000e0000-\U000e007f]|::(?:error|warning|group)|##(?:\[|vso\[|teamcity\[)"
    r"|section_(?:start|end):"
)


def raw(text: str | bytes) -> list[str]:
    """Return the markers that stand in `text` as they are."""
    return RAW.findall(text.decode() if isinstance(text, bytes) else text)


def ask(*words: str | Path, code: int | None = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert code is None or result.exit_code == code, result.output
    assert raw(result.stdout_bytes) == []
    assert raw(result.stderr_bytes) == []
    return result


@pytest.fixture
def room(
    tmp_path: Path, make_record: Callable[..., Record], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Two records whose every text is nasty; the later one has regressed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    points = {"good": "rrrrrbbmr" * 6, "bad": "bbrbrbbmr" * 6}
    for number, (name, letters) in enumerate(points.items()):
        n = len(letters)
        data = DataInfo(
            name=NASTY, digest=f"first {n}", n=n, total=100, classes=3, shape=[1, 4, 4],
            note=NASTY, class_names=[f"{NASTY}{label}" for label in range(3)],
        )  # fmt: skip
        record = make_record(
            NASTY, letters, data=data, suite=NASTY, attacks=[NASTY, f"b {NASTY}"],
            flags=[Flag(name=NASTY, message=NASTY)] * number, notes=[NASTY], device=NASTY,
            versions={NASTY: NASTY}, commit=Commit(hash=NASTY, dirty=False),
            started=f"2026-01-0{number + 1}T00:00:00+00:00",
            arguments={"data": NASTY, "reason": NASTY},
        )  # fmt: skip
        save(record, tmp_path / name / "record.json")
    return tmp_path


def test_the_test_sees_every_marker() -> None:
    for marker in MARKERS.values():
        assert raw(marker), marker


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
@pytest.mark.parametrize("tidy", [clean, clean_lines, spreadsheet])
def test_one_function_cleans_each(tidy: Callable[[str], str], marker: str) -> None:
    for text in (marker, f"a{marker}b", marker * 2):
        found = tidy(text)
        assert raw(found) == []
        assert tidy(found) == found
    assert tidy("plain ümlaut, tests.py::TestA::test_b #1") == (
        "plain ümlaut, tests.py::TestA::test_b #1"
    )


@pytest.mark.parametrize("marker", MARKERS.values(), ids=MARKERS)
def test_json_says_the_same_in_other_signs(marker: str) -> None:
    document = escape_orders(json.dumps({marker: [marker, f"\\{marker}\\"]}))
    assert raw(document) == []
    assert json.loads(document) == {marker: [marker, f"\\{marker}\\"]}


@pytest.mark.parametrize("width", [20, 33, 120])
def test_a_terminal_gets_styles_and_nothing_else(width: int) -> None:
    out = io.StringIO()
    console = CleanConsole(file=out, force_terminal=True, width=width, color_system="standard")
    table = TerminalTable("name", NASTY)
    table.add_row(Text(NASTY, "red"), NASTY)
    console.print(table)
    console.print(Text(NASTY))
    console.out(NASTY, highlight=False)
    styles = re.compile(r"\x1b\[(?:0|1|3|31|1;3)m")
    assert styles.search(out.getvalue())
    assert raw(styles.sub("", out.getvalue())) == []


@pytest.mark.parametrize("layout", ["table", "csv", "markdown", "latex", "json"])
def test_leaderboards(layout: str, room: Path) -> None:
    found = ask("leaderboard", "good", "bad", "--format", layout)
    ask("leaderboard", "good", "bad", "--format", layout, "--output", "out")
    assert raw((room / "out").read_bytes()) == []
    if layout == "json":
        assert {row["defense"] for row in json.loads(found.stdout)["rows"]} == {NASTY}


@pytest.mark.parametrize("layout", ["table", "csv", "markdown", "latex", "json"])
def test_published_results(layout: str, room: Path) -> None:
    told = {"name": NASTY, "authors": NASTY, "venue": NASTY, "dataset": "cifar10",
            "architecture": NASTY, "link": NASTY, "eps": "8/255", "clean_acc": "90.0",
            "reported": "50.0", "autoattack_acc": "50.0", "additional_data": False,
            "unreliable": False, "external": "50.0", "footnote": NASTY}  # fmt: skip
    place = room / "info" / "cifar10" / "Linf" / "Toy.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(told))
    found = ask("leaderboard", "--published", "info", "--format", layout)
    assert "toy" in found.stdout.lower()


def test_an_option_is_no_path_of_published_results(room: Path) -> None:
    found = CliRunner().invoke(main, ["leaderboard", "--published", "--format", "csv"])
    assert found.exit_code == 2
    assert "expected a path, got the option --format" in found.stderr


def test_histories(room: Path) -> None:
    ask("history", "good", "bad")
    ask("history", "good", "bad", "--format", "csv")
    ask("history", "good", "bad", "--output", "h.csv", "--plot", "h.svg")
    assert raw((room / "h.csv").read_bytes()) == []
    assert raw((room / "h.svg").read_bytes()) == []


def test_pages_and_figures(room: Path) -> None:
    ask("report", "good", "bad", "--title", NASTY, "--figures", "f", "--format", "svg")
    ask("report", "good", "bad", "--json")
    assert raw((room / "report.html").read_bytes()) == []
    drawn = list((room / "f").rglob("*.svg"))
    assert drawn
    for figure in drawn:
        assert raw(figure.read_bytes()) == []
        assert raw(figure.name) == []


@pytest.mark.parametrize("how", [(), ("--json",), ("--quiet",)])
def test_gates(how: tuple[str, ...], room: Path) -> None:
    reports = {"--junit": "j.xml", "--sarif": "s.sarif", "--markdown": "m.md"}
    words = [word for pair in reports.items() for word in pair]
    ask("check", "bad/record.json", "--baseline", "good", *words, *how, code=1)
    for name in reports.values():
        content = (room / name).read_text()
        assert "toy" in content
        assert raw(content) == []
    told = json.loads((room / "s.sarif").read_text())["runs"][0]["results"]
    assert raw(" ".join(result["message"]["text"] for result in told)) == []


def test_baselines_and_planning(room: Path) -> None:
    ask("baseline", "list", "good")
    ask("check", "--baseline", "good", code=2)
    ask("verify-record", "good", code=2)
    ask("plan", "--effect", "0.05", "--like", "good/record.json", "bad/record.json", code=None)


@pytest.mark.parametrize("command", ["leaderboard", "history", "report", "check", "power", "list"])
def test_what_was_typed_comes_back_clean(command: str, room: Path) -> None:
    ask(command, NASTY.replace("\x00", ""), code=2)
    ask(command, f"--{NASTY}".replace("\x00", ""), code=2)


MODEL = """
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError({nasty!r})
model = Model()
def late():
    raise ValueError({nasty!r})
"""


@pytest.mark.parametrize("how", [(), ("--debug",)])
@pytest.mark.parametrize("name", ["model", "late", "absent"])
def test_what_a_model_raises(name: str, how: tuple[str, ...], room: Path) -> None:
    (room / "models.py").write_text(MODEL.format(nasty=NASTY))
    words = ("--attack", "fgsm", "--n", "8", "--device", "cpu")
    result = ask("evaluate", f"models.py:{name}", *words, *how, code=None)
    assert result.exit_code in (2, 3)
    assert "toy" in result.stderr or name == "absent"


def test_a_model_that_cannot_be_checked_says_why_in_every_report(room: Path) -> None:
    (room / "models.py").write_text(MODEL.format(nasty=NASTY))
    ask("evaluate", "pgd_at", "--attack", "fgsm", "--n", "8", "--device", "cpu", "--out", "base")
    ask("check", "models.py:model", "--baseline", "base", "--json", "--junit", "j.xml",
        "--sarif", "s.sarif", "--markdown", "m.md", code=None)  # fmt: skip
    for name in ("j.xml", "s.sarif", "m.md"):
        assert "toy" in (room / name).read_text()
        assert raw((room / name).read_bytes()) == []


def test_packs(room: Path) -> None:
    (room / "pack.py").write_text(f"raise RuntimeError({NASTY!r})\n")
    ask("validate", "pack.py", code=None)
    ask("validate", "pack.py", "--json", code=None)


def test_what_shows_itself_in_python(room: Path) -> None:
    from robustkit.integrations.loggers import log_record
    from robustkit.record.record import load

    record = load(room / "bad" / "record.json")
    assert raw(repr(record)) == []
    assert raw(record._repr_html_()) == []
    logged = list[str]()

    class Writer:
        def add_scalar(self, *_: Any) -> None: ...

        def add_text(self, _: str, text: str, __: Any) -> None:
            logged.append(text)

    log_record(record, Writer())
    assert logged
    assert raw(logged[0]) == []
