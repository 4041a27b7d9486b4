"""The shipped boards of published results: facts with a source, never mixed with measured ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from benchmarks.published import main as generate
from robustkit.cli.program import program as main
from robustkit.errors import UsageError
from robustkit.leaderboard import boards

ROOT = Path(__file__).parents[2]
RECORDS = str(ROOT / "leaderboards" / "records")
ALL = [boards.read(name) for name in boards.names()]
WITHDRAWN = [(board.name, row) for board in ALL for row in board.rows if row.later is not None]


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["leaderboard", "--published", *arguments])


def test_there_is_a_board_for_each_folder_and_it_names_its_source() -> None:
    assert boards.names() == [
        "cifar10-corruptions", "cifar10-l2", "cifar10-linf", "cifar100-corruptions",
        "cifar100-linf", "imagenet-corruptions", "imagenet-linf",
    ]  # fmt: skip
    for board in ALL:
        assert len(board.facts["commit"]) == 40
        assert board.facts["date"].startswith("20")
        assert board.facts["link"].startswith("https://github.com/")
        assert (ROOT / "leaderboards" / "published" / "ROBUSTBENCH_LICENSE").is_file()


@pytest.mark.parametrize("board", ALL, ids=lambda board: board.name)
def test_rows_are_ranked_by_the_lowest_figure_known(board: boards.Board) -> None:
    known = [row.best_known for row in board.rows]
    assert known == sorted(known, reverse=True)
    assert [row.rank for row in board.rows] == [1 + sum(k > own for k in known) for own in known]
    for row in board.rows:
        figures = [row.clean, row.claimed, row.autoattack, row.best_known, row.later]
        assert all(0 <= figure <= 1 for figure in figures if figure is not None)
        assert row.best_known <= (row.autoattack or 1)
        assert row.source.startswith("http")


@pytest.mark.parametrize(("board", "row"), WITHDRAWN, ids=lambda value: getattr(value, "model", ""))
def test_a_withdrawn_claim_carries_both_figures_and_their_sources(
    board: str, row: boards.BoardRow
) -> None:
    assert row.claimed is not None and row.later is not None
    assert row.later < row.claimed
    assert row.best_known == row.later
    assert row.later_attack
    assert row.later_source.startswith("https://")
    assert row.title and row.source.startswith("https://")
    assert (row.autoattack is None) == (row.label == "elsewhere")


def test_the_claims_that_fell_are_there() -> None:
    fallen = {row.model.partition("_")[0] for _, row in WITHDRAWN}
    assert {"Amini2024MeanSparse", "Fort2024Ensemble", "Wang2024New"} <= fallen


class TestCommand:
    @pytest.mark.parametrize("layout", ["table", "csv", "markdown", "latex", "json"])
    def test_every_format_says_that_nothing_was_measured(self, layout: str) -> None:
        shown = ask("cifar10-l2", "--published", "cifar100-linf", "--format", layout)
        assert shown.exit_code == 0, shown.stderr
        assert "MeanSparse" in shown.stdout
        assert "0.8433" in shown.stdout and "0.4225" in shown.stdout
        if layout == "json":
            told = json.loads(shown.stdout)
            assert told["schema"] == boards.SCHEMA
            assert [board["name"] for board in told["boards"]] == ["cifar10-l2", "cifar100-linf"]
            assert "rows" not in told
        elif layout == "csv":
            lines = list(csv.DictReader(shown.stdout.splitlines()))
            assert {line["label"] for line in lines} == {"RobustBench", "elsewhere"}
            assert {line["date"] for line in lines} == {ALL[0].facts["date"]}
        else:
            assert " ".join(shown.stdout.split()).count("not measured here") == 2

    def test_sources_are_links(self) -> None:
        shown = ask("cifar10-linf", "--format", "markdown").stdout
        assert "[0.2952 DAWA](https://arxiv.org/abs/2603.29182)" in shown
        assert "Fort2024Ensemble (not on RobustBench)" in shown
        assert "Xiao2020Enhancing (eps = 0.031, unreliable)" in shown

    def test_it_goes_to_a_file(self, tmp_path: Path) -> None:
        assert ask("cifar10-l2", "--output", str(tmp_path / "board.txt")).stdout == ""
        assert "MeanSparse" in (tmp_path / "board.txt").read_text(encoding="utf-8")

    @pytest.mark.parametrize("other", [[RECORDS], ["--published", RECORDS]])
    def test_it_is_not_mixed_with_anything(self, other: list[str]) -> None:
        refused = ask("cifar10-linf", *other)
        assert refused.exit_code == 2
        assert "not mixed with" in refused.stderr and refused.stdout == ""

    def test_an_unknown_board_lists_the_boards(self) -> None:
        refused = ask("cifar10-lin")
        assert refused.exit_code == 2
        assert "Did you mean 'cifar10-linf'?" in refused.stderr
        assert "imagenet-corruptions" in refused.stderr
        with pytest.raises(UsageError, match="Unknown board 'cifar10'"):
            boards.read("cifar10")


def test_a_board_is_written_from_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR-100 by its folder, since a file there may say cifar10; prose stays away."""
    told = {
        "dataset": "cifar10", "clean_acc": "59.23", "reported": "33.5", "autoattack_acc": "28.42",
        "external": "28.00", "eps": "8/255", "name": "A Title", "link": "https://example.org/p",
        "venue": "V 2026", "footnote": "words of others", "unreliable": False,
    }  # fmt: skip
    place = tmp_path / "model_info" / "cifar100" / "Linf"
    place.mkdir(parents=True)
    for name in ("B2026", "A2026"):
        (place / f"{name}.json").write_text(json.dumps(told))
    monkeypatch.setattr("benchmarks.published.git", lambda *_: f"{'c' * 40} 2026-01-02")
    done = CliRunner().invoke(generate, [str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "cifar100-linf.csv").read_text(encoding="utf-8")
    assert f"# commit: {'c' * 40}\n# date: 2026-01-02\n" in text
    assert text.endswith(
        "A2026,8/255,0.5923,0.335,0.2842,0.28,false,false,,V 2026,A Title,https://example.org/p\n"
        "B2026,8/255,0.5923,0.335,0.2842,0.28,false,false,,V 2026,A Title,https://example.org/p\n"
    )
    assert "words of others" not in text
