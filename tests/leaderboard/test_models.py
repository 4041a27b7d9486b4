"""One row per model: the lowest verdict of each point, and what counts where suites differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from robustkit import Record
from robustkit.leaderboard.grouping import group_of, shown_eps
from robustkit.leaderboard.models import models
from robustkit.leaderboard.rows import row
from robustkit.record.schema import DataInfo
from robustkit.verify.flags import Flag

Make = Callable[..., Record]


def test_a_point_is_what_the_worst_run_says(make_record: Make) -> None:
    one = make_record("x", "crrrbm", certify="ibp")
    two = make_record("x", "rcbrbm", seed=1, certify="ibp")
    ((model,),) = models([("a", one), ("b", two)])
    status = ["certified", "certified", "broken", "robust", "broken", "misclassified"]
    assert model.record.points.status == status
    assert (model.row.robust, model.row.certified) == (3 / 6, 2 / 6)
    assert model.row.forwards_per_point == one.forwards_per_point + two.forwards_per_point
    assert model.row.suite == "parity"
    assert model.row.rank == "1"  # its runs do not compete with each other
    assert [run.record for run, _ in model.runs] == ["b", "a"]


def test_adaptive_counts_and_so_does_its_verdict(make_record: Make) -> None:
    masked = Flag(name="black_box", message="m")
    quick = make_record("x", "rrrrbm", suite="quick", flags=[masked])
    adaptive = make_record("x", "rrrbbm", suite="adaptive")
    ((model,),) = models([("a", quick), ("b", adaptive)])
    assert (model.row.robust, model.row.reliability) == (3 / 6, "reliable")
    parity = make_record("x", "rrrbbm", suite="parity")
    ((other,),) = models([("a", quick), ("b", parity)])
    assert other.row.reliability == "unreliable"  # nothing answers the flag


def test_runs_on_other_points_are_shown_and_not_counted(make_record: Make) -> None:
    few = make_record("x", "rbbbbb", suite="adaptive")
    many = make_record("x", "rrrrrrrrrrrb", suite="quick")
    ((model,),) = models([("many", many), ("few", few)])
    assert (model.row.n, model.row.robust, model.counted) == (6, 1 / 6, 1)
    assert [run.record for run, _ in model.runs] == ["few", "many"]


def test_a_proof_that_an_attack_contradicts_is_told(make_record: Make) -> None:
    runs = [("a", make_record("x", "cc", seed=0)), ("b", make_record("x", "rb", seed=1))]
    ((model,),) = models(runs)
    assert model.record.points.status == ["certified", "broken"]
    assert "1 points are certified in one run and broken in another" in model.record.notes


@pytest.mark.parametrize("eps", [8 / 255, 0.0313725, 0.03137255087494850])
def test_eps_that_differ_by_rounding_are_one(eps: float, make_record: Make) -> None:
    line = row(make_record("x", "rb"), "a")._replace(eps=eps)
    assert group_of(line) == ("toys", "linf", 8 / 255)
    assert shown_eps(eps) == "8/255"


def test_eps_that_differ_are_two(make_record: Make) -> None:
    lines = [row(make_record("x", "rb"), "a")._replace(eps=eps) for eps in (0.031, 8 / 255, 0.0315)]
    assert len(set(map(group_of, lines))) == 3


def test_points_of_one_digest_in_another_order_are_the_same(make_record: Make) -> None:
    one = make_record("x", "rbrm")
    points = one.points
    names = ("index", "label", "predicted", "status", "attack", "distance")
    turned = {name: getattr(points, name)[::-1] for name in names}
    two = one.model_copy(update={"points": type(points)(**turned), "seed": 1})
    ((model,),) = models([("a", one), ("b", two)])
    assert model.record.points == one.points
    data = DataInfo(**(one.data.model_dump() | {"name": "others"}))
    assert len(models([("a", one), ("b", one.model_copy(update={"data": data}))])) == 2
