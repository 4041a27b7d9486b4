"""A thousand bad inputs: each is answered by an exit code and a sentence, none by a surprise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from benchmarks.bad_inputs import mutate, run
from benchmarks.bad_inputs.__main__ import main
from benchmarks.bad_inputs.families import FAMILIES, Case


@pytest.mark.slow
def test_a_thousand_bad_inputs_are_answered() -> None:
    with run.project() as place:
        found = [run.try_case(place, 0, index) for index in range(1000)]
    assert [one.told() for one in found if one.trouble] == []
    # A generator whose inputs are all refused at the door, or all accepted, tests nothing.
    outcomes = Counter(one.outcome for one in found)
    assert set(outcomes) == {"exit 0", "exit 1", "exit 2", "exit 3", "refused", "accepted"}
    assert outcomes["exit 2"] > 300 and outcomes["exit 0"] > 100


def test_the_inputs_of_a_seed_are_always_the_same() -> None:
    with run.project() as place:
        first, again = ([run.try_case(place, 3, index).what for index in range(12)] for _ in "ab")
        other = [run.try_case(place, 4, index).what for index in range(12)]
    assert first == again != other


@pytest.mark.parametrize(
    ("code", "said", "trouble"),
    [
        (0, "fine", ""),
        (1, "", "exit 1 without a word"),
        (2, "error: x: expected a number, got y.", ""),
        (2, "error: y", "the message names no cause"),
        (2, "something", "no error is named"),
        (2, "error: expected that, got <x.Y object at 0x7f>", "the message is a bare repr"),
        (3, "error: KeyError: 0. robustkit did not expect this", "robustkit did not expect this"),
        (3, "Traceback (most recent call last):\nerror: it is so", "a traceback"),
        (139, "error: it is so and so", "exit codes are 0 to 3"),
    ],
)
def test_what_counts_as_an_answer(code: int, said: str, trouble: str) -> None:
    assert run._judge(code, said) == trouble


def test_a_failure_is_printed_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises() -> None:
        raise KeyError("x")

    def leaves() -> None:
        Path("left.tmp").touch()

    calls: Iterator[Callable[[], object]] = iter([raises, leaves, list])
    monkeypatch.setattr(run, "FAMILIES", (lambda rng: Case("a call", call=next(calls)),))
    result = CliRunner().invoke(main, ["--n", "3", "--seed", "5"])
    assert result.exit_code == 1
    assert "python -m benchmarks.bad_inputs --seed 5 --case 0\n  a call" in result.output
    assert "KeyError instead of a RobustkitError" in result.output
    assert "--seed 5 --case 1\n  a call\n  accepted; it left left.tmp behind" in result.output
    assert result.output.endswith("3 bad inputs: 2 accepted, 1 raised; 2 failed\n")


def test_what_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> None:
        while True:
            pass

    monkeypatch.setattr(run, "SECONDS", 0.01)
    monkeypatch.setattr(run, "FAMILIES", (lambda rng: Case("a call", call=hangs),))
    with run.project() as place:
        assert run.try_case(place, 0, 0).trouble


def test_every_family_makes_cases_and_mutants_differ() -> None:
    with run.project() as place:
        for family in dict.fromkeys(FAMILIES):
            run._restore(place / "valid", place / "work")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place / "work")
                case = family(Random(1))
            assert bool(case.words) != (case.call is not None)
    valid = b'{"schema": "robustkit/record/1", "n": [1, 2, {"x": null}]}'
    changed = {mutate.document(Random(seed), valid) for seed in range(200)}
    assert len(changed - {valid}) > 100
