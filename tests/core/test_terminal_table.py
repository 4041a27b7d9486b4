"""Tables fit the terminal: whole columns go, words stay."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustkit.core.terminal_table import TerminalTable, broken

NAME = "robustbench:cifar10/Linf/Carmon2019Unlabeled"
WORDS = ("robustbench:", "cifar10/", "Linf/", "Carmon2019Unlabeled")


def shown(table: TerminalTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().splitlines()


@pytest.fixture(params=[True, False], ids=["lined", "open"])
def table(request: pytest.FixtureRequest) -> TerminalTable:
    heads = ("model", "robust", "passes", "flags")
    table = TerminalTable(
        *heads, least=("passes", "flags"), whole=("robust", "passes"), lined=request.param
    )
    table.add_row(NAME, "0.810 [0.749, 0.862]", "123,456", "scaled_logits\nblack_box")
    return table


@pytest.mark.parametrize("width", range(46, 130, 3))
def test_it_fits_and_breaks_no_word(table: TerminalTable, width: int) -> None:
    lines = shown(table, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in (*WORDS, "0.810 [0.749, 0.862]"):
        assert word in text
    left_out = text.partition("Left out")[2]
    assert ("123,456" in text) is ("passes" not in left_out)
    assert ("scaled_logits" in text) is ("flags" not in left_out)


def test_the_least_needed_columns_go_and_are_named(table: TerminalTable) -> None:
    assert "Left out" not in "\n".join(shown(table, 120))
    assert "Left out for want of room: passes." in "\n".join(shown(table, 64))
    # Where the more needed one has no room, a narrower one may still have some.
    assert "Left out for want of room: flags." in "\n".join(shown(table, 54))
    assert "Left out for want of room: flags, passes." in "\n".join(shown(table, 48))


def test_a_name_is_whole_where_there_is_room(table: TerminalTable) -> None:
    assert any(NAME in line for line in shown(table, 120))


def test_what_fits_nowhere_is_cut_rather_than_lost() -> None:
    table = TerminalTable("model")
    table.add_row("x" * 100)
    lines = shown(table, 20)
    assert max(map(len, lines)) <= 20
    assert "".join(lines).count("x") == 100


def test_texts_break_after_blanks_then_marks() -> None:
    assert broken("arXiv:2003.01690 of Croce", 16).splitlines() == ["arXiv:2003.01690", "of Croce"]
    assert broken(NAME, 22).splitlines() == ["robustbench:cifar10/", "Linf/", "Carmon2019Unlabeled"]
    assert broken("a\nb", 9) == "a\nb"
