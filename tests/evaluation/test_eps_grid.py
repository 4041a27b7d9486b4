"""One run, many eps: monotone, as strong as single runs where it attacks, never attacked twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation import eps_grid as room
from robustkit.evaluation.eps_grid import descending, evaluate_grid, folder_of
from robustkit.evaluation.evaluate import evaluate
from robustkit.record.adversarial import adversarial_inputs
from robustkit.record.record import Record, load

LINE = ("apgd(steps=10)", "apgd(loss=targeted_dlr, steps=8, targets=2)", "square(queries=20)")
GRID = (0.02, 0.04, 0.06, 0.08)


@pytest.fixture
def run(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> Callable[..., list[Record]]:
    """`evaluate_grid` with defaults for all that a test does not care about."""

    def call(model: Any = nearest, folder: str = "out", **options: Any) -> list[Record]:
        defaults: dict[str, Any] = {
            "name": "toy", "data": blobs, "threat": Threat("linf", 1.0), "attacks": LINE,
            "grid": GRID, "device": "cpu",
        }  # fmt: skip
        return evaluate_grid(model, folder=tmp_path / folder, **{**defaults, **options})

    return call


@pytest.fixture(params=[False, True], ids=["short", "scouted"])
def scouted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without a search that goes ahead."""
    if request.param:
        monkeypatch.setattr(room, "_LONG", 2)
    return bool(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_curve_falls_and_every_verdict_has_its_evidence(
    norm: Norm, scouted: bool, run: Callable[..., list[Record]], nearest: nn.Module,
    blobs: Dataset, tmp_path: Path,
) -> None:  # fmt: skip
    grid = {"linf": GRID, "l2": (0.1, 0.2, 0.3), "l1": (0.4, 0.8, 1.2), "l0": (1, 2, 4)}[norm]
    name = {"l1": "apgd_l1(steps=10)", "l0": "sigma_zero(steps=30)"}.get(norm, "apgd(steps=10)")
    records = run(threat=Threat(norm, 1.0), grid=grid, attacks=[name])
    assert [record.threat.eps for record in records] == list(grid)
    assert [record.clean for record in records] == [records[0].clean] * len(grid)
    for smaller, larger in itertools.pairwise(records):
        assert smaller.robust >= larger.robust
        assert all(smaller.outcomes[p] for p, stands in larger.outcomes.items() if stands)
    assert records[0].robust > records[-1].robust
    for record in records:
        threat = Threat(norm, record.threat.eps)
        folder = folder_of(tmp_path / "out", threat)
        assert load(folder / "record.json") == record
        status = dict(zip(record.points.index, record.points.status, strict=True))
        examples = adversarial_inputs(folder)
        assert set(examples) == {p for p, what in status.items() if what == "broken"}
        if not examples:
            continue
        x, y = blobs.fetch(list(examples))
        z = torch.stack(list(examples.values()))
        assert bool(threat.contains(z, x).all())
        assert bool((nearest(z).argmax(1) != y).all())
        distance = dict(zip(record.points.index, record.points.distance, strict=True))
        assert threat.distance(z, x).tolist() == [distance[p] for p in examples]


@pytest.mark.slow
def test_verdicts_are_those_of_single_runs_or_carried(
    scouted: bool, run: Callable[..., list[Record]], nearest: nn.Module, blobs: Dataset,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Where both attack, both say the same; else the grid knows a closer input, or has carried."""
    closer = carried = 0
    for record in run():
        eps = record.threat.eps
        single = evaluate(
            nearest, name="toy", data=blobs, threat=Threat("linf", eps), attacks=LINE,
            folder=tmp_path / str(eps), device="cpu",
        )  # fmt: skip
        origins = record.points.carried or [None] * 80
        for index, origin in zip(record.points.index, origins, strict=True):
            if origin is not None:
                assert record.outcomes[index]
                assert origin > eps
                carried += 1
            elif record.outcomes[index] != single.outcomes[index]:
                assert single.outcomes[index]
                closer += 1
    assert carried > 0
    assert closer <= 4


def test_what_stood_at_an_eps_is_not_attacked_again(run: Callable[..., list[Record]]) -> None:
    records = run()
    for smaller, larger in itertools.pairwise(records):
        fell = larger.points.status.count("broken")
        assert smaller.stages[0].entered <= fell
        stood = {p for p, stands in larger.outcomes.items() if stands}
        origins = smaller.points.carried or ()
        carried = {p for p, o in zip(smaller.points.index, origins, strict=True) if o is not None}
        assert carried == stood
    assert records[-1].points.carried is None
    origins = records[0].points.carried or ()
    assert set(origins) - {None} == set(GRID[1:])


@pytest.mark.slow
def test_the_cost_is_that_of_about_one_survival(
    run: Callable[..., list[Record]], nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    """Every pass is counted in one record, and no point is attacked in vain twice."""
    rows = [0]

    def counting(x: Tensor) -> Tensor:
        rows[0] += len(x)
        logits: Tensor = nearest(x)
        return logits

    records = run(counting, batch_size=1, save_adversarial=False)
    total = sum(record.forwards for record in records)
    assert 0.9 * rows[0] <= total <= rows[0]  # a forward-only search has a second slot that waits
    survival = 11 + 2 * 9 + 21
    broken = [record.points.status.count("broken") for record in records]
    spent = sum(stage.forwards for record in records for stage in record.stages)
    assert spent <= 80 * survival + sum(broken) * survival / 2


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_to_the_same_records(
    scouted: bool, run: Callable[..., list[Record]], nearest: nn.Module
) -> None:
    weight, bias = nearest[1].weight.detach(), nearest[1].bias.detach()  # type: ignore[index]
    left = [10**9]

    def model(x: Tensor) -> Tensor:  # every row's bits are its own
        left[0] -= 1
        if left[0] <= 0:
            raise KeyboardInterrupt
        logits: Tensor = (x.flatten(1)[:, None] * weight).sum(2) + bias
        return logits

    whole = run(model, n=40, batch_size=11)
    cuts, again = 0, list[Record]()
    while not again:
        left[0] = (30, 70, 110)[cuts % 3]
        try:
            again = run(model, folder="cut", n=40, batch_size=5)
        except KeyboardInterrupt:
            cuts += 1
    assert cuts >= 4
    assert [record.points for record in again] == [record.points for record in whole]
    attacks = [[(s.attack, s.entered, s.broken) for s in r.stages] for r in again]
    assert attacks == [[(s.attack, s.entered, s.broken) for s in r.stages] for r in whole]
    left[0] = 10**9
    assert run(model, folder="cut", n=40) == again  # nothing is left to do


def test_a_folder_of_another_grid_is_refused(run: Callable[..., list[Record]]) -> None:
    run(grid=(0.02, 0.06), n=20)
    with pytest.raises(UsageError, match=r"eps_grid was .*0\.06.*, now .*0\.04"):
        run(grid=(0.04, 0.06), n=20)
    assert len(run(grid=(0.04, 0.06), n=20, fresh=True)) == 2


class TestCertificates:
    def test_hold_at_every_smaller_eps(self, run: Callable[..., list[Record]]) -> None:
        records = run(grid=(0.01, 0.03, 0.05), certify="ibp", n=40)
        proved = [
            {p for p, s in zip(r.points.index, r.points.status, strict=True) if s == "certified"}
            for r in records
        ]
        assert proved[0] >= proved[1] >= proved[2]
        assert proved[2]
        assert len(proved[0]) > len(proved[2])
        for record in records:
            assert record.certified is not None
            assert record.certified <= record.robust

    def test_are_refuted_by_what_a_larger_eps_has_found(
        self, run: Callable[..., list[Record]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With --attack-certified the points that fell before are looked at as well."""

        def prove(self: Any, x: Tensor, y: Tensor) -> Tensor:
            return torch.full((len(x),), self.threat.eps < 0.1)  # true nowhere else

        monkeypatch.setattr("robustkit.certify.certifier.Bounds.prove", prove)
        options: dict[str, Any] = {"attacks": ["fmn(steps=30)"], "certify": "ibp", "n": 40}
        with pytest.raises(RobustkitError, match="refuted: the attack at a larger eps broke"):
            run(grid=(0.08, 0.3), attack_certified=True, **options)


@pytest.mark.parametrize(
    ("norm", "grid", "told"),
    [
        ("linf", (), "at least one eps in the grid, got none"),
        ("linf", (0.1, 0.1), r"the grid holds linf:0.1 twice"),
        ("linf", (0.1, 0.10000000001), r"the grid holds linf:0.1 twice \(to six digits\)"),
        ("l2", (0.5, -1), "eps must be positive and finite, got -1.0"),
        ("l0", (3, 2.5), "a whole number, got 2.5"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(
    norm: Norm, grid: tuple[float, ...], told: str, run: Callable[..., list[Record]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        run(threat=Threat(norm, 1.0), grid=grid)
    assert not (tmp_path / "out").exists()


def test_the_largest_comes_first() -> None:
    threats = descending(Threat("l2", 9.0, -1.0, 1.0), [1, 3, 2])
    assert threats == [Threat("l2", eps, -1.0, 1.0) for eps in (3.0, 2.0, 1.0)]
