"""The table of transfer attacks: sources by targets, with what each attack breaks counted."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks import transfer
from robustkit.models.load import Subject


def test_every_pair_is_asked_and_the_model_itself_stands_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[tuple[str, str]]()

    def broken(
        target: Subject, name: str, question: object, attack: str, suite: str = ""
    ) -> transfer.Broken:
        asked.append((name, suite or attack))
        return {0: True, 1: "mi" in attack or bool(suite)}

    monkeypatch.setattr(transfer, "broken", broken)
    given = ["--model", "undefended", "--model", "at=pgd_at", "--attack", "mi"]
    done = CliRunner().invoke(transfer.main, given)
    assert done.exit_code == 0, done.output
    assert len(set(asked)) == len(asked) == 10  # two attacks on four pairs, and `fast` on both
    assert ("at", "pgd(steps=50, surrogate='source:undefended')") in asked
    assert "| `mi` | 100.0 | +2 -0, p = 0.5 |" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `undefended`")]
    assert rows[0].startswith("| `undefended` | (50.0 [1, 99]) | 50.0 [1, 99] | 50.0 |")
    assert rows[1].endswith("| 100.0 |")


def test_counts_are_of_points_that_one_of_two_attacks_breaks() -> None:
    pair = ("a", "b")
    found, plain = {pair: {0: True, 1: True, 2: False}}, {pair: {0: False, 1: True, 2: False}}
    assert transfer.against(found, plain) == "+1 -0, p = 1"
    assert transfer.average([found[pair]]) == pytest.approx(200 / 3)
    assert transfer.share([plain[pair]]).startswith("33.3 [")
