"""The page: every number and flag is in it, and no name is anything but text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from robustkit import Record
from robustkit.cli.program import program as main
from robustkit.errors import UsageError
from robustkit.leaderboard import formats, rows
from robustkit.leaderboard.report import optional, plots, security
from robustkit.leaderboard.report.html import MANY, write_page
from robustkit.leaderboard.report.view import arrange, curves
from robustkit.record.record import save
from robustkit.record.schema import DataInfo, Stage, ThreatInfo, WeightsInfo
from robustkit.verify.flags import Flag

EVIL = (
    """</script><script>window.hit=1</script><img src=x onerror="window.hit=1">'{{ 7*7 }}\u202e"""
)
Make = Callable[..., Record]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the texts of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = tag, {name: value or "" for name, value in attrs}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag, attributes in self._open:
            if "id" in attributes:
                self.texts[attributes["id"]] = self.texts.get(attributes["id"], "") + data
            if tag in ("td", "th") and not any("popover" in told for _, told in self._open):
                self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, *cells: str) -> list[str]:
        """The one row that has all these cells, white space squeezed."""
        squeezed = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        (found,) = (row for row in squeezed if set(cells) <= set(row))
        return found


def unpacked(text: str) -> str:
    return gzip.decompress(base64.b64decode(text)).decode()


def a_stage(attack: str) -> Stage:
    return Stage(attack=attack, jobs=1, entered=6, broken=3, forwards=1, backwards=1, seconds=1)


@pytest.fixture(scope="module")
def records(make_record: Make) -> list[tuple[str, Record]]:
    """Three models under one threat model, one of them hostile, and one under another."""
    stages = [
        Stage(attack="apgd", jobs=9, entered=9, broken=3, forwards=60, backwards=30, seconds=0.5),
        Stage(attack="square", jobs=6, entered=6, broken=1, forwards=40, backwards=0, seconds=0.25),
    ]
    evil = make_record(
        EVIL,
        "rrrbbbm",
        data=DataInfo(
            name="toys", digest="first 7", n=7, total=100, classes=3, shape=[1, 4, 4],
            class_names=[EVIL, "ball", "kite"], note=EVIL,
        ),
        suite=EVIL,
        attacks=[EVIL],
        stages=[a_stage(EVIL)],
        flags=[Flag(name=EVIL, message=EVIL)],
        notes=[EVIL],
        arguments={EVIL: EVIL},
        versions={EVIL: EVIL},
        device=EVIL,
    )  # fmt: skip
    masked = Flag(name="black_box", message="blind attacks took 4 points: gradients are masked.")
    shaky = make_record("shaky", "rrrrrrrmmm", flags=[masked], randomized=True)
    return [
        ("runs/proved/record.json", make_record("proved", "cccrrrbbbm", stages=stages)),
        ("runs/shaky/record.json", shaky),
        (f"runs/{EVIL}.json", evil),
        ("runs/far/record.json", make_record("proved", "crbbbbbbbm", eps=0.3)),
    ]


@pytest.fixture(scope="module")
def html(records: list[tuple[str, Record]], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(records, path, title=f"Toys {EVIL}")
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


class TestTheLeaderboard:
    def test_has_every_row_with_its_interval(
        self, page: Page, records: list[tuple[str, Record]]
    ) -> None:
        frame = rows.table(records)
        assert len(frame) == 4
        for _, row in frame.iterrows():
            interval = f"{row.robust:.3f} [{row.robust_low:.3f}, {row.robust_high:.3f}]"
            cells = page.row(interval, row.reliability, f"{row.clean:.3f}")
            assert row["rank"] in cells
        headings = [text for key, text in page.texts.items() if key.startswith("h-table")]
        assert headings == ["toys, linf, eps = 0.1", "toys, linf, eps = 0.3"]

    def test_explains_intervals_and_flags_to_mouse_keyboard_and_reader(self, page: Page) -> None:
        balloons = {b["id"]: page.texts[b["id"]] for b in page.all("span") if "popover" in b}
        buttons = [b for b in page.all("button") if "popovertarget" in b]
        assert {b["popovertarget"] for b in buttons} == set(balloons)
        assert all(b["aria-describedby"] == b["popovertarget"] for b in buttons)
        told = " ".join(page.texts.values())
        # shaky: 7 of 10; the ends are the beta quantiles B(.025; 7, 4) and B(.975; 8, 3).
        assert "7 of 10 points are robust. 95% interval 0.348 to 0.933" in told
        assert any(
            "black_box: blind attacks took 4 points: gradients are masked." in text
            for text in balloons.values()
        )
        assert any("two passes of the same input" in text for text in balloons.values())

    def test_draws_what_became_of_the_points_to_scale_and_says_it(self, page: Page) -> None:
        drawn = [svg for svg in page.all("svg") if svg.get("class") == "bar"]
        assert len(drawn) == 8  # each model among the others and under its own heading
        said = (
            "certified 0.300, robust, not proved 0.300, broken by square 0.300, misclassified "
            "0.100; 95% interval of robust 0.262 to 0.878"
        )
        assert said in [svg["aria-label"] for svg in drawn]
        mine = [(b["class"], b["x"], b["width"]) for b in page.all("rect") if "%" in b["width"]]
        for part in (
            ("certified", "0.00%", "30.00%"), ("robust", "30.00%", "30.00%"),
            ("broken", "60.00%", "30.00%"), ("wrong", "90.00%", "10.00%"),
        ):  # fmt: skip
            assert part in mine

    def test_can_be_taken_along_as_csv_and_latex(
        self, page: Page, records: list[tuple[str, Record]]
    ) -> None:
        links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
        frame = rows.table(records)
        for ending, write in (("csv", formats.to_csv), ("tex", formats.to_latex)):
            packed = links[f"leaderboard.{ending}"].partition(";base64,")[2]
            assert base64.b64decode(packed).decode() == write(frame)


class TestAnEvaluation:
    def test_says_what_each_attack_took_and_cost(self, page: Page) -> None:
        assert page.row("apgd", "30") == ["apgd", "9", "3", "60", "30", "30", "0.5"]
        assert page.row("square", "40") == ["square", "6", "1", "40", "0", "40", "0.2"]
        # 100 forward and 50 backward passes in all; the attacks account for 100 and 30.
        assert page.row("clean pass, checks, diagnostics", "20")[3:5] == ["0", "20"]

    def test_has_every_class(self, page: Page) -> None:
        # cccrrrbbbm in classes 0 1 2 0 1 2 0 1 2 0: of the four points of class 0 one is
        # certified, one robust, one broken, one misclassified.
        assert page.row("bear", "4", "0.250", "0.500") == ["bear", "4", "0.750", "0.500", "0.250"]
        assert page.row("kite", "0.333", "0.667") == ["kite", "3", "1.000", "0.667", "0.333"]

    def test_gives_its_provenance(self, page: Page) -> None:
        told = page.texts["run-proved-toys-linf-0.1-parity-s0"]
        for part in ("runs/proved/record.json", "2026-01-02T03:04:05", "first 10", "torch 2.0"):
            assert part in told
        assert "weights of proved" in told

    def test_says_why_there_are_no_pictures(self, page: Page) -> None:
        told = page.texts["run-proved-toys-linf-0.1-parity-s0"]
        assert "There is no ledger.sqlite beside the record" in told


class TestAHostileName:
    def test_is_no_markup(self, page: Page) -> None:
        assert not [image for image in page.all("img") if image.get("src") == "x"]
        handlers = [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
        assert not handlers
        kinds = [script.get("type") for script in page.all("script")]
        assert kinds == ["text/plain", "module"]

    def test_is_shown_as_it_is_everywhere(self, page: Page) -> None:
        shown = EVIL.replace("\u202e", " ").strip()
        row = page.row(shown, f"0.333 {shown}")
        # Model, flag, suite, strongest attack, and the name of the worst class.
        assert sum(shown in cell for cell in row) == 5
        identity = next(k for k, t in page.texts.items() if k.startswith("run-") and "</s" in t)
        assert page.texts[identity].count(shown) >= 10

    def test_turns_no_direction_of_writing(self, html: str) -> None:
        assert "\u202e" not in html
        assert "\\u202e" not in html

    def test_meets_a_policy_that_admits_the_own_script_and_style_alone(
        self, page: Page, html: str
    ) -> None:
        (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
        script = html.rpartition('<script type="module">')[2].partition("</script>")[0]
        style = html.partition("<style>")[2].partition("</style>")[0]
        for kind, text in (("script", script), ("style", style)):
            own = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{own}'" in policy
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not [name for name, attributes in page.elements if "style" in attributes]


class TestTheWholePage:
    def test_asks_no_server_for_anything(self, page: Page) -> None:
        for _, attributes in page.elements:
            for name in ("src", "href"):
                assert attributes.get(name, "#").startswith(("#", "data:"))

    def test_is_the_same_each_time(
        self, records: list[tuple[str, Record]], html: str, tmp_path: Path
    ) -> None:
        write_page(records[::-1], tmp_path / "r.html", title=f"Toys {EVIL}")
        assert (tmp_path / "r.html").read_text("utf-8") == html

    def test_is_small_enough_to_mail(self, html: str) -> None:
        assert len(html.encode()) < 150_000

    def test_calls_robust_accuracy_exact_only_where_all_inputs_were_tried(
        self, make_record: Make, tmp_path: Path
    ) -> None:
        threat = ThreatInfo(norm="style:mean,scale", eps=1)
        write_page([("style.json", make_record("a", "rb", threat=threat))], tmp_path / "s.html")
        text = (tmp_path / "s.html").read_text(encoding="utf-8")
        assert "all were tried" not in text
        assert "robust accuracy is an upper bound" in text

    def test_of_many_records_stays_small_and_whole(self, make_record: Make, tmp_path: Path) -> None:
        def written(number: int) -> Page:
            made = [(str(i), make_record(f"model {i}", "ccrrrrrbbm")) for i in range(number)]
            write_page(made, tmp_path / "r.html")
            return Page((tmp_path / "r.html").read_text("utf-8"))

        few, size = written(MANY), (tmp_path / "r.html").stat().st_size
        many = written(MANY + 1)
        assert (tmp_path / "r.html").stat().st_size < size - 2000 * MANY
        (more,) = json.loads(unpacked(many.texts["data-more"])).values()
        assert "data-more" not in few.texts
        assert [tag for tag, _ in Page(more).elements].count("dl") == MANY + 1
        assert unpacked(many.texts["data-leaderboard.csv"]).count("\n") == MANY + 2

    def test_has_landmarks_headings_captions_and_names(self, page: Page) -> None:
        tags = [tag for tag, _ in page.elements]
        assert [tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
        assert tags.count("table") == tags.count("caption")
        assert all(image.get("alt") for image in page.all("img"))
        charts = [svg for svg in page.all("svg") if svg.get("class") in ("drawing", "bar")]
        # One trade-off, the curves, classes of each run, two bars a model.
        assert len(charts) == 1 + 1 + 4 + 8
        assert all(svg["aria-label"] and svg["role"] == "img" for svg in charts)
        identities = [a["id"] for _, a in page.elements if "id" in a]
        assert len(identities) == len(set(identities))
        targets = {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")}
        assert targets <= set(identities)


def same_model(make_record: Make, points: str, eps: float, **changes: Any) -> Record:
    return make_record(
        "one", points, eps=eps, weights=WeightsInfo(digest="w", parameters=1), **changes
    )


class TestTheView:
    def test_the_front_holds_what_no_other_row_beats(self, make_record: Make) -> None:
        rows = {
            "best": "rrrrrrrbbm",
            "clean": "rrbbbbbbbb",
            "worse": "rrrrrrbbbm",
            "low": "rmmmmmmmmm",
        }
        (group,) = arrange((name, make_record(name, points)) for name, points in rows.items())
        assert [line.name for line in group.front] == ["best", "clean"]

    def test_a_curve_joins_one_model_on_the_same_points(self, make_record: Make) -> None:
        found = [
            ("a", same_model(make_record, "rrbb", 0.2)),
            ("b", same_model(make_record, "rrrb", 0.1)),
            ("c", same_model(make_record, "rrrr", 0.3)),
            ("d", same_model(make_record, "rrrr", 0.4, attacks=["apgd"])),
            ("e", make_record("another", "rrrr", eps=0.4)),
        ]
        (curve,) = curves(arrange(found))
        assert [line.row.eps for line in curve.lines] == [0.1, 0.2, 0.3]
        assert [line.row.eps for line in curve.rises] == [0.3]
        marks = [mark for mark in Page(security.interactive([curve])).all("circle")]
        across, heights = ([float(mark[key]) for mark in marks] for key in ("cx", "cy"))
        assert across == pytest.approx(
            [62 + share * (across[3] - 62) / 3 for share in range(4)], abs=0.1
        )
        # clean 1, then 0.75, 0.5 and 1 again: down is less.
        assert heights[0] == heights[3] < heights[1] < heights[2]
        assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)

    def test_a_curve_with_certificates_shows_what_is_undecided(self, make_record: Make) -> None:
        found = [
            ("a", same_model(make_record, "ccrb", 0.1, certify="ibp")),
            ("b", same_model(make_record, "crbb", 0.2, certify="ibp")),
        ]
        (curve,) = curves(arrange(found))
        assert security.certified_steps(curve) == [(0.0, 1.0), (0.1, 0.5), (0.2, 0.25)]
        (line,) = (
            path["d"] for path in Page(security.interactive([curve])).all("path")
            if "certified-curve" in path["class"]
        )  # fmt: skip
        points = [tuple(map(float, point.split(","))) for point in line[1:].split("L")]
        # Between two radii only what is proved at the larger one is proved: down, then across.
        assert [a[0] == b[0] for a, b in pairwise(points)] == [True, False, True, False]

    def test_models_of_one_name_are_told_apart_by_their_weights(self, make_record: Make) -> None:
        other = WeightsInfo(digest="0123456789", parameters=1)
        found = [("a", make_record("x", "rb")), ("b", make_record("x", "rr", weights=other))]
        (group,) = arrange(found)
        assert [ln.label for ln in group.lines] == ["x (weights 01234567)", "x (weights weights )"]

    def test_names_in_a_plot_do_not_lie_on_each_other(self, make_record: Make) -> None:
        found = [(name, make_record(name, "rrrrrrrrrm")) for name in "abcdefgh"]
        (group,) = arrange(found)
        heights = [height for _, height in plots.spread(group.lines)]
        gaps = [after - before for before, after in pairwise(heights)]
        assert min(gaps) > 0.0649
        assert max(heights) <= 1.04

    def test_many_attacks_share_one_color(self, make_record: Make) -> None:
        stages = [a_stage(f"a{i}") for i in range(12)]
        (group,) = arrange([("x", make_record("x", "rb", stages=stages))])
        names = plots.attacks_of(group.lines)
        assert [len(some) for some in names] == [1] * 7 + [5]
        assert plots.title(names[-1]) == "5 other attacks"

    def test_a_plot_fits_its_data_and_its_names_lie_on_nothing(self, make_record: Make) -> None:
        points = ["r" * (90 + i) + "b" * (20 - i) + "m" * (i % 3) for i in range(8)]
        found = [(str(i), make_record(f"model {i}", told)) for i, told in enumerate(points)]
        (group,) = arrange(found)
        drawn = Page(plots.tradeoff(group))
        dots = [(float(c["cx"]), float(c["cy"])) for c in drawn.all("circle")]
        assert len(dots) == 8
        heights = [y for _, y in dots]
        # Robust accuracies from 0.82 to 0.88 fill the plot, less room for their intervals.
        assert max(heights) - min(heights) > 60
        names = [text for text in drawn.all("text") if text["class"] == "name"]
        assert names
        for text in names:
            assert min(abs(float(text["y"]) - 4 - y) for _, y in dots) < 60
            assert not any(
                float(text["x"]) < x < float(text["x"]) + 40 and abs(float(text["y"]) - 4 - y) < 5
                for x, y in dots
            )

    def test_what_cannot_be_shown_is_refused(self, make_record: Make) -> None:
        with pytest.raises(UsageError, match="at least one record"):
            arrange([])
        with pytest.raises(UsageError, match="one record a path, got two for 'a'"):
            arrange([("a", make_record("x", "rb")), (Path("a"), make_record("y", "rb"))])


class TestTheCommand:
    @pytest.fixture
    def folder(self, make_record: Make, tmp_path: Path) -> Path:
        save(make_record("proved", "ccrbm"), tmp_path / "runs" / "proved" / "record.json")
        return tmp_path

    def test_writes_a_page_and_says_why_pictures_are_missing(self, folder: Path) -> None:
        done = CliRunner().invoke(main, ["report", str(folder), "--out", str(folder / "r.html")])
        assert done.exit_code == 0, done.output
        assert (folder / "r.html").read_text("utf-8").startswith("<!doctype html>")
        assert "no pictures of proved: There is no ledger.sqlite beside the record" in done.output

    def test_published_rows_stand_in_the_table_and_what_is_left_out_is_named(
        self, folder: Path
    ) -> None:
        told = {"dataset": "toys", "eps": "0.1", "clean_acc": "90", "autoattack_acc": "61"}
        told |= {"link": "https://example.org/x", "venue": "V &amp; W", "external": "59.5"}
        corruptions = {key: text for key, text in told.items() if key != "autoattack_acc"}
        for place, content in (("Linf/Made2026Up", told), ("corruptions/Noise", corruptions)):
            path = folder / "info" / "toys" / f"{place}.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(content))
        places = [str(folder / "runs"), "--published", str(folder / "info")]
        done = CliRunner().invoke(main, ["report", *places, "--out", str(folder / "r.html")])
        assert done.exit_code == 0, done.output
        page = Page((folder / "r.html").read_text("utf-8"))
        # Own: 3 of 5 points. Neither has a rank among the other's rows.
        assert page.row("proved", "own")[1:4] == ["1", "proved", "own"]
        assert page.row("Made2026Up")[1:3] == ["–", "Made2026Up"]
        assert "-0.005 proved" in page.row("Made2026Up")
        assert "+0.005 Made2026Up" in page.row("proved", "own")
        (paper,) = [a for a in page.all("a") if a["href"].startswith("http")]
        assert paper["title"].endswith("Made2026Up, V & W")
        assert any("left out" in text and "toys/corruptions/Noise" in text
                   for text in page.texts.values())  # fmt: skip

    def test_a_reason_is_given_once(self, folder: Path, make_record: Make) -> None:
        save(make_record("weak", "rb"), folder / "runs" / "weak" / "record.json")
        done = CliRunner().invoke(main, ["report", str(folder), "--out", str(folder / "r.html")])
        assert done.output.count("no pictures of ") == 1
        assert "weak (2 records): There is no ledger.sqlite" in done.output

    def test_answers_in_json(self, folder: Path) -> None:
        arguments = ["report", str(folder), "--out", str(folder / "r.html"), "--json"]
        told = json.loads(CliRunner().invoke(main, arguments).stdout)
        assert told["schema"] == "robustkit/report/1"
        assert told["bytes"] == (folder / "r.html").stat().st_size
        assert [row["defense"] for row in told["rows"]] == ["proved"]

    def test_quiet_says_nothing(self, folder: Path) -> None:
        arguments = ["report", str(folder), "--out", str(folder / "r.html"), "--quiet"]
        assert CliRunner().invoke(main, arguments).output == ""

    def test_refuses_a_format_without_a_folder(self, folder: Path) -> None:
        done = CliRunner().invoke(main, ["report", str(folder), "--format", "png"])
        assert done.exit_code == 2
        assert "--format goes with --figures" in done.output

    def test_says_when_there_is_no_record_or_no_room(self, folder: Path) -> None:
        done = CliRunner().invoke(main, ["report", str(folder / "nowhere")])
        assert done.exit_code == 2
        (folder / "file").write_text("")
        out = str(folder / "file" / "r.html")
        done = CliRunner().invoke(main, ["report", str(folder), "--out", out])
        assert done.exit_code == 2  # before any work was done
        assert "cannot be written" in done.output


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r'needs jinja2.*pip install "robustkit-eval\[report\]"'):
        optional.need("jinja2")


@pytest.mark.slow
def test_importing_it_does_not_import_what_draws() -> None:
    code = "import json, sys\n"
    code += "import robustkit.leaderboard.report.html, robustkit.leaderboard.report.figures\n"
    code += "print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"jinja2", "matplotlib"}.isdisjoint(json.loads(done.stdout))
