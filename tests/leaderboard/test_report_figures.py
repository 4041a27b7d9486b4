"""Figures for a paper: all are written, in every format, the same each time, names as they are."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from robustkit import Record
from robustkit.cli.program import program as main
from robustkit.errors import UsageError
from robustkit.leaderboard.report import figures
from robustkit.leaderboard.report.figures import write_figures
from robustkit.leaderboard.report.gallery import Picture
from robustkit.leaderboard.report.style import COLUMN, styled
from robustkit.leaderboard.report.view import arrange
from robustkit.record.record import save
from robustkit.record.schema import Stage, WeightsInfo

EVIL = r"$\frac{1}$ \input{x} <b> 100%_^"
Make = Callable[..., Record]


@pytest.fixture(scope="module")
def records(make_record: Make) -> list[tuple[str, Record]]:
    one = {"weights": WeightsInfo(digest="w", parameters=1)}
    stage = Stage(attack=EVIL, jobs=9, entered=9, broken=3, forwards=60, backwards=30, seconds=0.5)
    return [
        ("a", make_record("one", "cccrrrbbbm", eps=0.1, **one)),
        ("b", make_record("one", "ccrbbbbbbm", eps=0.2, **one)),
        ("c", make_record(EVIL, "rrrrrrbbbm", attacks=[EVIL], stages=[stage])),
    ]


@pytest.mark.slow
def test_all_are_written_in_each_format(records: list[tuple[str, Record]], tmp_path: Path) -> None:
    heard: list[str] = []
    written = write_figures(records, tmp_path, formats=["png", "svg", "pdf"], advance=heard.append)
    assert written[0].name == "leaderboard.tex"
    assert r"\toprule" in written[0].read_text("utf-8")
    stems = {path.stem for path in written[1:]}
    assert stems == set(heard)
    assert {re.match(r"[a-z]+", stem)[0] for stem in stems} == {  # type: ignore[index]
        *("bracket", "tradeoff", "attacks", "cost", "classes", "security"),
    }
    assert len(written) == 1 + 3 * (4 * 2 + 3 + 1)
    assert sorted(written) == sorted(tmp_path.iterdir())
    for path in written[1:]:
        content = path.read_bytes()
        if path.suffix == ".png":
            image = Image.open(io.BytesIO(content))
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.width <= 300 * (COLUMN + 0.6)
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
        elif path.suffix == ".svg":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            assert content.startswith(b"%PDF")
            assert b"/Type3" not in content  # fonts that publishers refuse


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(
    records: list[tuple[str, Record]], tmp_path: Path
) -> None:
    kinds = ["png", "svg", "pdf"]
    one, two = (write_figures(records[2:], tmp_path / str(i), formats=kinds) for i in range(2))
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_a_name_is_no_formula(records: list[tuple[str, Record]]) -> None:
    group = next(g for g in arrange(records) if any(line.name == EVIL for line in g.lines))
    with styled():
        drawn = figures._bracket(group)
    (text,) = (text for axes in drawn.axes for text in axes.texts if text.get_text() == EVIL)
    assert text.get_parse_math() is False


def test_the_bracket_is_drawn_to_scale(records: list[tuple[str, Record]]) -> None:
    group = arrange(records[:1])[0]
    with styled():
        (axes,) = figures._bracket(group).axes
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches]
    assert bars == [(0, 0.3), (0.3, 0.3), (0.6, 0.3), (0, 0.9)]


def test_a_gallery_has_three_images_a_row() -> None:
    gray = np.zeros((4, 4), dtype=np.uint8)
    picture = Picture(7, "bear", "ball", "apgd", 0.1, 5.0, (gray, gray, gray))
    with styled():
        figure = figures._gallery([picture, picture])
    assert [axes.get_title() for axes in figure.axes] == ["bear", "ball", "change × 5"] * 2


@pytest.mark.slow
def test_a_name_in_a_script_without_glyphs_is_no_warning(make_record: Make, tmp_path: Path) -> None:
    write_figures([("a", make_record("堅牢", "rb"))], tmp_path, formats=["pdf"])


def test_the_users_own_settings_come_back(records: list[tuple[str, Record]]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}), styled():
        assert matplotlib.rcParams["font.size"] == 8
    with matplotlib.rc_context({"font.size": 31}):
        with styled():
            pass
        assert matplotlib.rcParams["font.size"] == 31


def test_what_cannot_be_written_is_refused(
    records: list[tuple[str, Record]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="Unknown format 'pgf'"):
        write_figures(records, tmp_path / "f", formats=["pgf"])
    assert not (tmp_path / "f").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; figures go into a folder"):
        write_figures(records, tmp_path / "file")


def test_the_command_writes_them(make_record: Make, tmp_path: Path) -> None:
    save(make_record("proved", "ccrbm"), tmp_path / "record.json")
    out = ["--out", str(tmp_path / "r.html"), "--figures", str(tmp_path / "figures")]
    told = CliRunner().invoke(main, ["report", str(tmp_path), *out, "--format", "svg"])
    assert told.exit_code == 0, told.output
    assert "(6 files)" in told.output
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".tex"}
