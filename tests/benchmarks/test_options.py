"""Bad requests of benchmarks: one sentence and exit code 2, before anything is made."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import adaptive_overhead, robust_nets
from benchmarks.gauntlet import __main__ as gauntlet
from benchmarks.masks import __main__ as masks
from benchmarks.options import some_of
from benchmarks.planted import __main__ as planted
from robustkit.errors import UsageError

AGAINST = ["--against", "HEAD", "--this", "HEAD"]


@pytest.mark.parametrize(
    ("main", "line", "said"),
    [
        (masks.main, ["--n", "0"], "'--n': 0 is not in the range x>=1"),
        (masks.main, ["--width", "0"], "'--width': 0 is not in the range x>=1"),
        (masks.main, ["--epochs", "0"], "'--epochs': 0 is not in the range x>=1"),
        (masks.main, ["--threat", "l0:10"], "expected a threat model in linf"),
        (masks.main, ["--data", "nosuch"], "Unknown dataset 'nosuch'"),
        (gauntlet.main, ["--n", "0"], "'--n': 0 is not in the range x>=1"),
        (adaptive_overhead.main, [*AGAINST, "--only", "nosuch"], "expected some of crossmax,"),
        (adaptive_overhead.main, [*AGAINST, "--n", "0"], "'--n': 0 is not in the range x>=1"),
        (adaptive_overhead.main, ["--against", "nosuch"], "expected a folder or a commit"),
        (planted.main, ["--columns", "nosuch"], "expected some of PGD-20; PGD-1000x10;"),
        (planted.main, ["--columns", "fast,complete"], "(separated by ';')"),
        (planted.main, ["--networks", "nosuch"], "expected some of hidden-0, hidden-1,"),
        (robust_nets.main, ["--suites", "nosuch"], "expected some of parity, fast"),
        (robust_nets.main, ["--n", "0"], "'--n': 0 is not in the range x>=1"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    main: click.Command, line: list[str], said: str, tmp_path: Path
) -> None:
    root = [] if main is planted.main else ["--data-root", str(tmp_path)]
    found = CliRunner().invoke(main, [*line, *root, "--out", str(tmp_path / "out")])
    assert found.exit_code == 2, found.output
    assert found.output.splitlines()[-1].startswith("Error: ")
    assert said in found.output
    assert "fatal" not in found.output  # what git says
    assert not any(tmp_path.iterdir())


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    few, out = tmp_path / "few.npz", tmp_path / "out"
    np.savez(few, x=np.zeros((2, 1, 8, 8), np.float32), y=np.arange(2))
    for main, line in (
        (masks.main, ["--data", f"npz:{few}"]), (planted.main, []), (robust_nets.main, []),
    ):  # fmt: skip
        found = CliRunner().invoke(main, [*line, "--out", str(out), "--report"])
        assert found.exit_code == 2, found.output
        assert f"under {out}, got none. Run the same command without --report" in found.output
        assert not out.exists()


def test_names_with_commas_are_separated_otherwise() -> None:
    known = ["PGD", "PGD, 9 targets", "fast"]
    assert some_of(known, "fast; PGD, 9 targets", ";") == known[1:]
    with pytest.raises(UsageError, match="separated by ','"):
        some_of(known, "PGD, 9 targets")
