"""Attacks of other libraries: judged like ours, counted exactly, resumed, told apart."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.leaderboard import rows
from robustkit.record.ledger import Ledger
from robustkit.record.record import Record
from robustkit.registry import attacks, libraries
from robustkit.search.external import Batch, ExternalAttack, candidates, seeded
from robustkit.search.pass_counter import PassCounter

LINF = Threat("linf", 0.12)


def have(name: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(absent, reason=f"not installed: {name}")


@dataclass(frozen=True)
class Made(ExternalAttack):
    """A library with one attack: a step of `reach` · eps along the gradient's sign, plus noise."""

    package: ClassVar[str] = "made"
    seen: ClassVar[list[int]] = []
    stop_after: ClassVar[int] = 10**9

    def check(self, threat: Threat, classes: int) -> None:
        if threat.norm != "linf":
            raise UsageError(f"made supports linf, got {threat.norm}")

    def perturb(self, model: nn.Module, batch: Batch, threat: Threat) -> Tensor:
        if len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(batch.seed)
        x = batch.x.clone().requires_grad_(True)
        if self.given.get("blind"):  # behind the back of the counter
            model = cast(Any, model).model
        loss = nn.functional.cross_entropy(model(x), batch.y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        reach = self.given.get("reach", 1.0) * threat.eps
        noise = 1 - 0.3 * torch.rand_like(batch.x)
        found: Tensor = (batch.x + reach * gradient.sign() * noise).clamp(0, 1)
        return found

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        return {"steps": 1, "reach": self.given.get("reach", 1.0)}


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> type[Made]:
    libraries.entries()
    monkeypatch.setattr(libraries, "_entries", dict(libraries._entries))
    libraries.register("made")(Made)
    Made.seen.clear()
    Made.stop_after = 10**9
    return Made


def run(model: nn.Module, data: Dataset, folder: Path, specs: Sequence[str], **more: Any) -> Record:
    options = {"threat": LINF, "device": "cpu", **more}
    return evaluate(model, name="it", data=data, attacks=list(specs), folder=folder, **options)


class TestSpecs:
    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("torchattacks:PGD", "torchattacks:PGD"),
            (" torchattacks:PGD( steps=50, alpha = 2/255 )", "torchattacks:PGD("),
            ("autoattack:apgd-ce(steps=3)", "autoattack:apgd-ce(steps=3)"),
        ],
    )
    def test_are_read_and_written(self, text: str, canonical: str) -> None:
        spec = Spec.parse(text)
        assert str(spec).startswith(canonical)
        assert Spec.parse(str(spec)) == spec

    @pytest.mark.parametrize("text", ["a:b:c", "torchattacks:", "made:X(1)", "made:X(a=1) or 2"])
    def test_other_forms_are_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            Spec.parse(text)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("torchatacks:PGD", "Did you mean 'torchattacks'"),
            ("made:step(batch_size=0)", "expected batch_size"),
            ("made:step(batch_size=half)", "expected batch_size"),
        ],
    )
    def test_what_is_unknown_is_refused(self, text: str, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            attacks.build(text)


class Everything:
    """A certificate that proves every point: unsound."""

    name = "ibp"
    batch = 10

    def prove(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.ones(len(x), dtype=torch.bool)


class TestRuns:
    def test_counts_are_exact(self, nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
        record = run(nearest, blobs, tmp_path, ["made:step(batch_size=7)"])
        (stage,) = record.stages
        assert (
            stage.entered
            == stage.jobs
            == sum(
                label == predicted
                for label, predicted in zip(
                    record.points.label, record.points.predicted, strict=True
                )
            )
        )
        # One pass each way for the attack, one forward for the verdict on what moved.
        assert stage.backwards == stage.entered
        assert stage.entered < stage.forwards <= 2 * stage.entered
        assert 0 < stage.broken < stage.entered
        assert stage.strength == {"steps": 1, "reach": 1.0}
        assert record.flips == 0
        assert len(Made.seen) == len(set(Made.seen)) == -(-stage.entered // 7)

    def test_candidates_outside_the_ball_are_none(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        record = run(nearest, blobs, tmp_path, ["made:step(reach=3.0)"])
        assert record.stages[0].broken == 0
        flag = next(flag for flag in record.flags if flag.name == "outside")
        assert "candidates of made:step(reach=3" in flag.message
        near = run(nearest, blobs, tmp_path / "near", ["made:step"])
        assert "outside" not in [flag.name for flag in near.flags]

    def test_distances_are_those_of_the_stored_inputs(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        record = run(nearest, blobs, tmp_path, ["made:step"])
        with Ledger(tmp_path / "ledger.sqlite", None) as ledger:
            found = ledger.examples(blobs.shape)
        broken = dict(zip(record.points.index, record.points.distance, strict=True))
        assert len(found) == record.stages[0].broken
        for point, z in found.items():
            x, y = blobs.fetch([point])
            assert int(nearest(z[None]).argmax(1)) != int(y)
            assert float(LINF.distance(z[None], x)) == pytest.approx(broken[point], abs=1e-12)

    def test_a_killed_run_goes_on_at_the_next_batch(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        specs = ["made:step(batch_size=9)", "fgsm"]
        whole = run(nearest, blobs, tmp_path / "whole", specs)
        seeds = list(Made.seen)
        Made.seen.clear()
        Made.stop_after = 3
        with pytest.raises(KeyboardInterrupt):
            run(nearest, blobs, tmp_path / "killed", specs)
        Made.stop_after = 10**9
        again = run(nearest, blobs, tmp_path / "killed", specs)
        assert Made.seen == seeds
        assert again.points == whole.points
        assert [s.model_dump(exclude={"seconds"}) for s in again.stages] == [
            s.model_dump(exclude={"seconds"}) for s in whole.stages
        ]

    def test_a_certified_point_that_falls_stops_the_run(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = sys.modules["robustkit.evaluation.execute"]
        monkeypatch.setattr(module, "build_certifier", lambda *_, **__: Everything())
        with pytest.raises(RobustkitError, match="certificate refuted"):
            run(nearest, blobs, tmp_path, ["made:step"], certify="ibp", attack_certified=True)

    def test_the_fingerprint_is_in_the_row(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        record = run(nearest, blobs, tmp_path, ["made:step", "pgd(steps=3, restarts=2)"])
        ours = record.stages[1].strength
        assert (ours["steps"], ours["restarts"], ours["targets"]) == (3, 2, 0)
        line = rows.row(record, "r.json").strength
        assert line.startswith("made:step: steps=1, reach=1, F=")
        assert "pgd: steps=3" in line

    @pytest.mark.parametrize("blind", [False, True])
    def test_black_box_is_known_from_the_passes(
        self, blind: bool, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        """What gradients left is taken by an attack of which no gradient was seen."""
        specs = ["pgd(steps=1, step_size=0.01, random_start=False)", f"made:step(blind={blind})"]
        record = run(nearest, blobs, tmp_path, specs)
        assert record.stages[1].broken > 1
        assert ("black_box" in [flag.name for flag in record.flags]) == blind


class TestContainment:
    def test_errors_name_the_library(self, nearest: nn.Module, blobs: Dataset) -> None:
        x, y = blobs.fetch([0, 1])
        broken = Made("step", (("reach", None),))
        with pytest.raises(RobustkitError, match="made:step fails inside made: TypeError"):
            candidates(broken, nearest, Batch(x, y, 0, 4), LINF, "made:step")

    def test_generators_are_put_back(self) -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        wanted = (torch.rand(1), np.random.rand(), random.random())
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        draws = []
        for _ in range(2):
            with seeded(3):
                draws.append((float(torch.rand(1)), float(np.random.rand()), random.random()))
        assert draws[0] == draws[1]
        assert (torch.rand(1), np.random.rand(), random.random()) == wanted

    def test_fingerprints_read_on_one_line(self) -> None:
        strength = {"steps": 3, "step_size": 2 / 255, "inner": {"eot": 1}}
        assert rows.fingerprint(strength) == "steps=3, step_size=0.00784314, inner=[eot=1]"


class TestCounting:
    def test_gradients_are_counted_where_they_reach_the_input(self) -> None:
        counted = PassCounter(nn.Linear(3, 2))
        x = torch.rand(5, 3, requires_grad=True)
        counted(x)
        with torch.no_grad():
            counted(x)
        logits = counted(x)
        for column in range(2):
            torch.autograd.grad(logits[:, column].sum(), x, retain_graph=True)
        counted(x.detach()).sum().backward()
        assert (counted.forwards, counted.backwards) == (20, 10)


def stage_of(record: Record) -> Any:
    return record.stages[0]


@pytest.fixture(scope="module")
def some(bundled: Dataset) -> dict[str, Any]:
    return {"n": 40, "threat": Threat("linf", 0.05)}


@have("torchattacks")
class TestTorchattacks:
    @pytest.mark.slow
    def test_pgd_costs_what_it_says(
        self, hardened: nn.Module, bundled: Dataset, some: dict[str, Any], tmp_path: Path
    ) -> None:
        spec = "torchattacks:PGD(steps=7, alpha=0.02)"
        stage = stage_of(run(hardened, bundled, tmp_path, [spec], **some))
        assert stage.backwards == 7 * stage.entered
        assert stage.forwards == 8 * stage.entered  # and one for the verdict
        assert stage.broken > 0
        assert stage.strength == {"steps": 7, "step_size": 0.02}

    def test_its_autoattack_is_told_from_autoattack(self) -> None:
        """It runs ten steps where AutoAttack runs a hundred."""
        strength = attacks.build("torchattacks:AutoAttack").strength(LINF, 10)
        assert strength["APGD"]["steps"] == strength["APGDT"]["steps"] == 10
        assert strength["APGDT"]["targets"] == 9
        assert strength["Square"]["queries"] == 5000

    @pytest.mark.parametrize(
        ("text", "norm", "told"),
        [
            ("torchattacks:PDG", "linf", "Did you mean 'PGD'"),
            ("torchattacks:PGD(step=3)", "linf", "has no option 'step'. Its options: .*steps"),
            ("torchattacks:PGD(eps=0.3)", "linf", "has no option 'eps'"),
            ("torchattacks:PGD", "l2", "supports linf, got l2"),
            ("torchattacks:MultiAttack", "linf", "cannot run here: it takes other attacks"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, text: str, norm: Any, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            attacks.build(text).jobs(Threat(norm, 0.1), 10)

    @pytest.mark.parametrize("name", ["FGSM", "APGD(steps=3)", "Square(n_queries=20)"])
    def test_the_same_seed_gives_the_same_verdicts(
        self, name: str, hardened: nn.Module, bundled: Dataset, some: dict[str, Any],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        records = [
            run(hardened, bundled, tmp_path / str(i), [f"torchattacks:{name}"], **some)
            for i in range(2)
        ]
        assert records[0].points == records[1].points
        assert (stage_of(records[0]).backwards == 0) == name.startswith("Square")


@have("foolbox")
class TestFoolbox:
    def test_pgd_costs_what_it_says(
        self, hardened: nn.Module, bundled: Dataset, some: dict[str, Any], tmp_path: Path
    ) -> None:
        spec = "foolbox:LinfPGD(steps=6, rel_stepsize=0.3)"
        stage = stage_of(run(hardened, bundled, tmp_path, [spec], **some))
        assert stage.backwards == 6 * stage.entered
        assert stage.forwards == 8 * stage.entered  # its own check, and the verdict
        assert stage.broken > 0
        assert stage.strength["steps"] == 6
        assert stage.strength["relative_step_size"] == 0.3

    def test_a_minimum_norm_attack_is_judged_at_eps(
        self, hardened: nn.Module, bundled: Dataset, some: dict[str, Any], tmp_path: Path
    ) -> None:
        record = run(hardened, bundled, tmp_path, ["foolbox:LinfDeepFoolAttack(steps=10)"], **some)
        assert stage_of(record).broken > 0
        distances = [d for d in record.points.distance if d is not None]
        assert max(distances) <= 0.05 * (1 + 1e-6) + 1e-7

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("foolbox:LinfPDG", "Did you mean 'LinfPGD'"),
            ("foolbox:L2PGD", "supports l2, got linf"),
            ("foolbox:LinfPGD(stepz=3)", "Its options: .*steps"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, text: str, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            attacks.build(text).jobs(LINF, 10)


@have("pyautoattack")
class TestAutoAttack:
    def test_one_attack_with_options(
        self, hardened: nn.Module, bundled: Dataset, some: dict[str, Any], tmp_path: Path
    ) -> None:
        spec = "autoattack:apgd-t(steps=5, targets=2)"
        record = run(hardened, bundled, tmp_path, [spec], **some)
        stage = stage_of(record)
        assert stage.strength == {"steps": 5, "restarts": 1, "eot": 1, "targets": 2}
        assert stage.broken > 0
        assert stage.backwards > 0

    def test_versions_are_the_reference_settings(self) -> None:
        strength = attacks.build("autoattack:standard").strength(LINF, 10)
        assert list(strength) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert strength["apgd-ce"]["steps"] == 100
        assert strength["apgd-t"]["targets"] == strength["fab-t"]["targets"] == 9
        assert strength["square"]["queries"] == 5000
        few = attacks.build("autoattack:standard").strength(LINF, 5)
        assert few["apgd-t"]["targets"] == few["fab-t"]["targets"] == 4
        assert attacks.build("autoattack:rand").strength(LINF, 10)["apgd-ce"]["eot"] == 20

    @pytest.mark.parametrize(
        ("text", "classes", "told"),
        [
            ("autoattack:standart", 10, "Did you mean 'standard'"),
            ("autoattack:standard", 3, "fails on models with 3 classes"),
            ("autoattack:apgd-dlr", 2, "fails on models with 2 classes"),
            ("autoattack:apgd-ce(targets=3)", 10, "takes positive whole numbers for: steps"),
            ("autoattack:standard(steps=3)", 10, "for: none"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, text: str, classes: int, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            attacks.build(text).jobs(LINF, classes)

    def test_its_side_effects_stay_inside(self, blobs: Dataset, nearest: nn.Module) -> None:
        """It ends the tracing of debuggers, and flags every model after a dynamic one."""
        import pyautoattack.checks

        def trace(*_: Any) -> None:
            return None

        class Dynamic(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                with torch.enable_grad():
                    z = x.detach().requires_grad_(True)
                    torch.autograd.grad(z.sum(), z)
                logits: Tensor = nearest(x)
                return logits

        x, y = blobs.fetch(range(4))
        attack = attacks.build("autoattack:apgd-ce(steps=2)")
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            candidates(attack, Dynamic().eval(), Batch(x, y, 0, 4), LINF, "autoattack:apgd-ce")
            kept = sys.gettrace()
        finally:
            sys.settrace(before)
        assert kept is trace
        assert not any(pyautoattack.checks.funcs.values())
