"""Randomized models: one lucky draw is no verdict, and noise is part of the interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from robustkit import Record, Threat, evaluate
from robustkit.core.stats.intervals import mean_interval
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.eps_grid import evaluate_grid
from robustkit.record.ledger import Ledger
from robustkit.record.record import load
from robustkit.verify.candidates import measure

EPS, SIGMA = 0.1, 0.05


class NoisyLevel(nn.Module):
    """Class 1 above brightness 0.5, seen through Gaussian noise: at x it errs with a known share.

    At the worst point of the ball around level 0.5 + m that is Phi((eps - m) / sigma).
    """

    def __init__(self) -> None:
        super().__init__()
        self.draw = torch.Generator().manual_seed(7)

    def __deepcopy__(self, _: object) -> NoisyLevel:
        return NoisyLevel()

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(1) - 0.5
        level = level + SIGMA * torch.randn(len(x), generator=self.draw)
        return torch.stack([-level, level], 1)


def margin_for(share: float) -> float:
    """How far from the boundary a point lies whose worst neighbor fools so many passes."""
    return float(EPS - SIGMA * norm.ppf(share))


def points(share: float, n: int = 40) -> Dataset:
    sides = np.where(np.arange(n) % 2, 1.0, -1.0)
    level = 0.5 + sides * margin_for(share)
    x = np.broadcast_to(level[:, None, None, None], (n, 1, 2, 2)).astype(np.float32)
    return from_arrays("levels", x, (sides > 0).astype(np.int64), classes=2)


def run(share: float, folder: Path) -> Record:
    return evaluate(
        NoisyLevel(), name="noisy", data=points(share), threat=Threat("linf", EPS),
        attacks=["pgd(steps=40)"], folder=folder,
    )  # fmt: skip


def test_an_input_that_fools_one_pass_in_four_takes_no_point(tmp_path: Path) -> None:
    record = run(0.25, tmp_path)
    assert record.randomized
    assert record.robust == record.clean  # though many of its queries fooled one pass
    assert record.flips > 0


def test_a_point_that_stands_is_judged_by_what_fooled_the_model_most_often(tmp_path: Path) -> None:
    """Its clean input errs in 0.4% of the passes, its worst neighbor in 25%."""
    record = run(0.25, tmp_path)
    shares = [share for share in record.points.errors or () if share is not None]
    assert len(shares) == record.n
    # Chosen for lucky passes, measured by others: not above the truth but by chance.
    assert 0.12 < float(np.mean(shares)) < 0.29
    assert record.expected == pytest.approx(1 - float(np.mean(shares)))
    with Ledger(tmp_path / "ledger.sqlite", None) as ledger:
        refused = ledger.refused()
    assert len(refused) > 0.8 * record.n  # of the others, nothing that was found fooled it again


def test_what_was_refused_is_measured_once_when_the_search_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counted(model: NoisyLevel, z: Tensor, *judged: Any) -> Tensor:
        rows.append(len(z))
        return measure(model, z, *judged)

    monkeypatch.setattr("robustkit.evaluation.stages.judge.measure", counted)
    run(0.25, tmp_path)
    with Ledger(tmp_path / "ledger.sqlite", None) as ledger:
        assert sum(rows) == len(ledger.refused()) > 0


def test_an_input_that_fools_nine_in_ten_takes_it_and_the_share_is_told(tmp_path: Path) -> None:
    record = run(0.9, tmp_path)
    assert record.robust == 0
    shares = [e for e, s in zip(record.points.errors or (), record.points.status, strict=True)
              if s == "broken"]  # fmt: skip
    # 40 points times 20 fresh passes; the first query that passes may lie short of the worst one.
    assert 0.6 < float(np.mean([e for e in shares if e is not None])) <= 0.95
    assert record.expected is not None and record.expected_interval is not None
    assert record.expected_interval[0] < record.expected < record.expected_interval[1]
    assert record.expected < record.clean
    assert load(tmp_path / "record.json").points.errors == record.points.errors
    assert record.to_pandas()["errors"].between(0, 1).all()
    assert "one pass" in repr(record)


def test_a_grid_carries_the_shares_down(tmp_path: Path) -> None:
    """What fell at the larger eps within the smaller one is as likely an error there."""
    low, high = evaluate_grid(
        NoisyLevel(), name="noisy", data=points(0.97), threat="linf:1", grid=(0.8 * EPS, EPS),
        attacks=["pgd(steps=10)"], folder=tmp_path,
    )  # fmt: skip
    assert high.expected is not None and low.expected is not None
    assert high.robust <= low.robust < low.clean
    assert high.expected <= low.expected + 0.05
    fallen = [e for e, s in zip(low.points.errors or (), low.points.status, strict=True)
              if s == "broken"]  # fmt: skip
    assert fallen and min(e for e in fallen if e is not None) > 0.3


def test_other_models_have_no_share(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
    record = evaluate(nearest, name="nearest", data=blobs, threat=Threat("linf", 0.05),
                      attacks=["fgsm"], folder=tmp_path)  # fmt: skip
    assert record.points.errors is None
    assert record.expected is None and record.expected_interval is None
    assert "errors" not in record.to_pandas()


class TestMeanInterval:
    def test_golden(self) -> None:
        # Mean 0.5, standard error sqrt(0.5 / 3 / 4) = 0.2041, t(3 degrees, 97.5%) = 3.1824.
        mean, (low, high) = mean_interval([0.0, 0.25, 0.75, 1.0])
        assert mean == 0.5
        assert (low, high) == (0.0, 1.0)
        mean, (low, high) = mean_interval([0.4, 0.5, 0.5, 0.6])
        assert mean == pytest.approx(0.5)
        assert low == pytest.approx(0.5 - 3.18245 * 0.0408248, abs=1e-5)
        assert high == pytest.approx(0.5 + 3.18245 * 0.0408248, abs=1e-5)

    def test_covers_the_mean_of_noisy_shares(self) -> None:
        draw = np.random.default_rng(0)
        covered = 0
        for _ in range(400):
            shares = draw.beta(2, 1, 100)  # of the points; then twenty passes on each
            low, high = mean_interval(list(draw.binomial(20, shares) / 20))[1]
            covered += low <= 2 / 3 <= high
        assert covered >= 0.92 * 400

    def test_refuses_what_is_no_share(self) -> None:
        for values in ([], [0.5, 1.5]):
            with pytest.raises(UsageError, match="from 0 to 1"):
                mean_interval(values)
        assert mean_interval([0.3]) == (0.3, (0.0, 1.0))
