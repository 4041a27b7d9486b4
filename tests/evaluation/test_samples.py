"""An estimate is of the data's own distribution, and a model that shirks is seen to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from robustkit.cli.program import program
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.review import majority
from robustkit.leaderboard.rows import row, table
from robustkit.record.record import Record, load

SIZES = (955, 45)
Y = np.random.default_rng(0).permutation(np.repeat([0, 1], SIZES))
X = np.random.default_rng(1).random((1000, 1, 3, 3), dtype=np.float32)


class Always(nn.Module):
    """Answers class 0, unless the input is far brighter than any here."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1)
        return torch.stack([2 - bright, bright * 0.1], 1)


def run(folder: Path, **options: Any) -> Record:
    given: dict[str, Any] = {"data": from_arrays("rare", X, Y, layout="nchw"),
                             "threat": "linf:0.01", "attacks": ["fgsm"],
                             "device": "cpu"}  # fmt: skip
    return evaluate(Always().eval(), folder=folder, **{**given, **options})


def names(record: Record) -> list[str]:
    return [flag.name for flag in record.flags]


def test_a_sample_estimates_the_accuracy_on_the_data(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert (whole.clean, whole.data.sample) == (0.955, None)
    part = run(tmp_path / "part", n=200)
    assert abs(part.clean - 0.955) <= 1 / 200  # a class has its share, rounded up or down
    low, high = row(part, "p").robust_low, row(part, "p").robust_high
    assert low <= whole.robust <= high
    assert (part.data.sample, row(part, "p").data) == (None, "rare")


def test_a_balanced_sample_is_another_figure_and_says_so(tmp_path: Path) -> None:
    even = run(tmp_path / "even", n=90, sample="balanced")
    assert even.clean == 0.5
    assert even.data.sample == "balanced" and even.data.name == "rare"
    assert row(even, "e").data == "rare (class-balanced)" and "(class-balanced)" in repr(even)
    part = run(tmp_path / "part", n=90)
    ranks = table([("e", even), ("p", part)])
    assert list(ranks["rank"]) == ["1", "1"]  # they are not ranked against each other
    record = load(tmp_path / "even" / "record.json")
    assert record.data.sample == "balanced"


def test_the_interval_holds_for_samples(tmp_path: Path) -> None:
    """Of 95% intervals from proportional samples, at least 95% cover the accuracy on the data."""
    from robustkit.core.stats.intervals import clopper_pearson
    from robustkit.data.sampling import select

    data = from_arrays("rare", X, Y, layout="nchw")
    right = np.random.default_rng(2).random(1000) < np.where(Y == 0, 0.9, 0.2)
    covered = 0
    for seed in range(300):
        found = clopper_pearson(int(right[select(data, 60, seed)].sum()), 60)
        covered += found.low <= right.mean() <= found.high
    assert covered >= 0.95 * 300


class TestMajority:
    def test_a_model_that_always_answers_it(self, tmp_path: Path) -> None:
        record = run(tmp_path, n=200)
        assert "majority_class" in names(record)
        told = next(flag.message for flag in record.flags if flag.name == "majority_class")
        assert "always answering class 0" in told and "recognizes 0 of the" in told

    @pytest.mark.parametrize(
        ("others", "lost", "raised"),
        [
            (0, 0, True),  # of 45 points of other classes, none is recognized
            (2, 5, True),  # nearly always
            (20, 19, True),  # as good as answering one class
            (15, 0, False),  # better than that
            (45, 10, False),
            (30, 25, False),  # most of the others are recognized, at a price
        ],
    )
    def test_it_is_compared_with_the_share(self, others: int, lost: int, raised: bool) -> None:
        labels = [0] * 955 + [1] * 45
        predicted = [1] * lost + [0] * (955 - lost) + [1] * others + [0] * (45 - others)
        assert bool(majority(labels, predicted)) == raised

    def test_what_tells_nothing(self) -> None:
        assert majority([3] * 20, [3] * 20) == []  # one class alone
        assert majority([0] * 99 + [1], [0] * 99 + [1]) == []  # all is right

    def test_it_makes_a_record_suspicious(self, tmp_path: Path) -> None:
        assert run(tmp_path, n=100).reliability != "reliable"


class TestBox:
    @pytest.mark.parametrize("box", [(1.0, 0.0), (0.5, 0.5), (0.0, float("nan")), (0, np.inf)])
    def test_lower_is_below_upper(self, box: tuple[float, float]) -> None:
        with pytest.raises(UsageError, match="lower < upper"):
            Threat("linf", 0.1, *box)

    def test_a_box_that_excludes_a_point_is_an_error_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"holds .* outside the box \[0\.2, 0\.8\]"):
            run(tmp_path / "set", threat=Threat("linf", 0.1, 0.2, 0.8))
        with pytest.raises(UsageError, match=r"float images in \[0\.2, 0\.8\], got .*lower and"):
            run(tmp_path / "pair", data=(X[:, 0], Y), threat=Threat("l2", 1, 0.2, 0.8))
        assert not (tmp_path / "set").exists()

    def test_data_in_another_box_is_evaluated_like_the_same_data_in_ours(
        self, tmp_path: Path
    ) -> None:
        inner = Always()

        def signed(x: Tensor) -> Tensor:
            logits: Tensor = inner(x * 0.5 + 0.5)
            return logits

        given: dict[str, Any] = {"attacks": ["pgd(steps=3)"], "device": "cpu", "n": 40}
        x = (X * 2 - 1).astype(np.float32)
        threat = Threat("linf", 0.5, -1.0, 1.0)
        there = evaluate(signed, data=(x[:, 0], Y), threat=threat, folder=tmp_path / "a", **given)
        here = evaluate(inner, data=(X[:, 0], Y), threat="linf:0.25", folder=tmp_path / "b",
                        **given)  # fmt: skip
        assert there.points.status == here.points.status
        assert (there.threat.lower, there.threat.upper) == (-1, 1)


def test_the_command_line_takes_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("rare.npz", x=X[:, 0], y=Y)
    Path("model.py").write_text(
        "import torch\n"
        "class Always(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        b = x.flatten(1).mean(1)\n"
        "        return torch.stack([2 - b, b * 0.1], 1)\n"
    )
    given = ["evaluate", "model.py:Always", "--data", "npz:rare.npz", "--threat", "linf:0.01",
             "--attack", "fgsm", "--device", "cpu", "--n", "40"]  # fmt: skip
    even = CliRunner().invoke(program, [*given, "--sample", "balanced", "--out", "even"])
    assert even.exit_code == 0, even.stderr
    assert "npz:rare.npz (class-balanced)" in even.stdout and "0.500" in even.stdout
    part = CliRunner().invoke(program, [*given, "--out", "part"])
    assert part.exit_code == 0, part.stderr
    assert "class-balanced" not in part.stdout and "majority_class" in part.stdout + part.stderr
    other = CliRunner().invoke(program, [*given, "--out", "even"])
    assert other.exit_code == 2 and "sample" in other.stderr
