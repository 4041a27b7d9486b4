"""Runs in parts: the same verdicts, budgets that are kept, nothing lost in between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset, digest, shuffled
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation import budget
from robustkit.evaluation.budget import Budget, Interim, StoppingRule, parts
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.leaderboard.rows import robust_interval, row
from robustkit.record import provenance
from robustkit.record.ledger_reader import LedgerReader
from robustkit.record.record import Record, load

LINE_UP = ["apgd(steps=10)", "square(queries=20)"]


class Stop(StoppingRule):
    """Ends a run after so many parts."""

    left = 1

    def enough(self, progress: Interim) -> str | None:
        self.left -= 1
        return "that will do" if self.left <= 0 else None


def run(
    model: nn.Module, data: Dataset, folder: Path, given: StoppingRule | None, **more: object
) -> Record:
    return evaluate(
        model,
        name="toy",
        data=data,
        threat=Threat.parse("linf:0.06"),
        folder=folder,
        attacks=LINE_UP,
        device="cpu",
        budget=given,
        **more,  # type: ignore[arg-type]
    )


def after(count: int) -> Stop:
    stop = Stop()
    stop.left = count
    return stop


def test_parts_cover_everything_once_and_do_not_depend_on_where_one_starts() -> None:
    points = list(range(100, 900))
    whole = parts(points, 0)
    assert [point for part in whole for point in part] == points
    assert [len(part) for part in whole[:5]] == [16, 32, 64, 128, 128]
    assert parts(points, 48) == whole[2:]
    assert parts(points, 50)[0] == points[50:112]
    assert parts(points, 800) == []
    assert parts([7], 0) == [[7]]


def test_parts_grow_so_that_looks_stay_few() -> None:
    looks = [sum(np.cumsum([len(p) for p in parts(range(n), 0)])) for n in (25_000, 50_000)]
    assert looks[1] < 2.2 * looks[0]  # points looked at, over all looks
    sizes = [len(part) for part in parts(range(50_000), 0)]
    assert max(sizes) <= 50_000 // 16
    assert len(sizes) < 100


def test_a_run_in_parts_reads_no_point_again_for_the_others(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_read(most: int) -> int:
        read, of_points = [0], LedgerReader._of_points

        def counted(self: LedgerReader, *given: Any) -> list[tuple[Any, ...]]:
            rows = of_points(self, *given)
            read[0] += len(rows)
            return rows

        with monkeypatch.context() as patch:
            patch.setattr(LedgerReader, "_of_points", counted)
            patch.setattr(budget, "_FIRST", most)
            patch.setattr(budget, "_MOST", most)
            run(nearest, blobs, tmp_path / str(most), StoppingRule())
        return read[0]

    assert rows_read(2) <= 1.1 * rows_read(80)  # forty parts, and one


def test_the_order_is_random_fixed_by_the_seed_and_blind_to_the_other_points() -> None:
    some, more = shuffled(range(0, 50), 3), shuffled(range(0, 100), 3)
    assert sorted(some) == list(range(50))
    assert [point for point in more if point < 50] == some
    assert shuffled(range(0, 50), 4) != some
    places = Counter(shuffled(range(8), seed).index(0) for seed in range(400))
    assert max(places.values()) < 2 * min(places.values())


def test_parts_end_in_the_verdicts_of_one_go(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    whole = run(nearest, blobs, tmp_path / "whole", None)
    part = run(nearest, blobs, tmp_path / "parts", StoppingRule())
    assert part.points == whole.points
    assert part.data == whole.data
    assert [s.model_dump(exclude={"seconds"}) for s in part.stages] == [
        s.model_dump(exclude={"seconds"}) for s in whole.stages
    ]
    assert (part.forwards, part.backwards) == (whole.forwards, whole.backwards)


def test_a_run_that_ends_early_speaks_of_the_head_of_the_order(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    whole = run(nearest, blobs, tmp_path / "whole", None)
    given = after(2)
    part = run(nearest, blobs, tmp_path / "part", given)
    assert given.reason == "that will do"
    assert sorted(shuffled(range(80), 0)[:48]) == part.points.index
    assert (part.n, part.data.planned, part.data.total) == (48, 80, 80)
    assert part.data.digest == digest(blobs, part.points.index)
    assert all(part.outcomes[p] == whole.outcomes[p] for p in part.outcomes)
    first, second = part.stages
    correct = part.n - part.points.status.count("misclassified")
    assert (first.entered, second.entered) == (correct, correct - first.broken)
    assert first.broken == part.points.attack.count(LINE_UP[0])


def test_what_is_stopped_goes_on_and_ends_alike(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    whole = run(nearest, blobs, tmp_path / "whole", None)
    first = run(nearest, blobs, tmp_path / "part", after(1))
    second = run(nearest, blobs, tmp_path / "part", after(2))
    assert (first.n, second.n) == (16, 48)
    assert run(nearest, blobs, tmp_path / "part", None).points == whole.points
    assert run(nearest, blobs, tmp_path / "part", after(1)).n == 80  # all is done: it stays done


def test_the_peak_of_the_device_is_stated_and_no_reason_to_write_a_record_anew(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(nearest, blobs, tmp_path / "cpu", None).device_peak_bytes is None
    monkeypatch.setattr(provenance, "device_peak", lambda _: 4096)
    first = run(nearest, blobs, tmp_path / "cuda", None)
    assert first.device_peak_bytes == load(tmp_path / "cuda" / "record.json").device_peak_bytes
    assert first.device_peak_bytes == 4096
    monkeypatch.setattr(provenance, "device_peak", lambda _: 8192)
    assert run(nearest, blobs, tmp_path / "cuda", None) == first


def test_a_part_that_was_cut_off_is_no_part_of_the_record(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    class Late(Stop):
        checks = 0

        def check_time(self) -> None:
            self.checks += 1
            if self.checks > 6:
                raise budget.BudgetExhausted

    late = Late()
    late.left = 9
    cut = run(nearest, blobs, tmp_path / "cut", late, batch_size=8)
    assert late.reason == "the time is up"
    assert cut.n in (16, 48)
    whole = run(nearest, blobs, tmp_path / "whole", None)
    assert run(nearest, blobs, tmp_path / "cut", None).points == whole.points


def test_a_budget_of_forwards_is_kept_up_to_one_part(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    whole = run(nearest, blobs, tmp_path / "whole", None)
    given = StoppingRule(Budget(forwards=whole.forwards // 3))
    part = run(nearest, blobs, tmp_path / "part", given)
    assert part.n < 80
    assert part.forwards >= whole.forwards // 3
    assert given.reason is not None
    assert given.reason.endswith("forward passes are used, as counted between parts")
    again = run(
        nearest, blobs, tmp_path / "part", StoppingRule(Budget(forwards=whole.forwards // 3))
    )
    assert again.points == part.points


def test_no_time_at_all_is_an_error_that_loses_nothing(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(RobustkitError, match=r"the budget .1e-09 s. was used up before"):
        run(nearest, blobs, tmp_path / "part", StoppingRule(Budget(seconds=1e-9)))
    assert not (tmp_path / "part" / "record.json").exists()
    assert run(nearest, blobs, tmp_path / "part", None).n == 80


def test_the_interval_of_a_stopped_run_holds_whenever_it_stops(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    part = run(nearest, blobs, tmp_path / "part", after(2))
    low, high = robust_interval(part)
    assert low < part.robust < high
    line = row(part, "r")
    assert (line.robust_low, line.robust_high) == (round(low, 6), round(high, 6))
    fixed = robust_interval(run(nearest, blobs, tmp_path / "whole", None, points=part.points.index))
    assert high - low > fixed.high - fixed.low


def test_the_watcher_hears_of_parts(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []

    class Ears(Watcher):
        def part(self, done: int, points: int) -> None:
            heard.append((done, points))

    run(nearest, blobs, tmp_path / "part", StoppingRule(), watcher=Ears())
    assert heard == [(16, 80), (48, 80), (80, 80)]


@pytest.mark.parametrize("points", [[3, 1, 2, 3], np.array([1, 2, 3])])
def test_points_can_be_named(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path, points: list[int]
) -> None:
    record = run(nearest, blobs, tmp_path / "part", None, points=points)
    assert record.points.index == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"points": [80]}, "points from 0 to 79"),
        ({"points": []}, "an empty list"),
        ({"points": [1], "n": 1}, "got both"),
    ],
)
def test_points_that_are_not_there_are_refused(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path, given: dict[str, object], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        run(nearest, blobs, tmp_path / "part", None, **given)
    assert not (tmp_path / "part").exists()


def test_a_random_model_is_judged_in_parts_too(blobs: Dataset, tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :4] + 0.5 * torch.rand(len(x), 4)

    record = run(Noisy().eval(), blobs, tmp_path / "part", after(1))
    assert record.randomized
    assert record.n == 16
