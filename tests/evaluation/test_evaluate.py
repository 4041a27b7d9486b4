"""The whole line, from a model and data to a record."""

from __future__ import annotations

import copy
import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit
import robustkit.registry as registry
from robustkit.core.threat import Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.record import Record
from robustkit.search.protocol import Job, Reply, Tasks
from robustkit.verify.diagnostics.probe import examine

LINE = ("apgd(steps=10)", "apgd(loss=targeted_dlr, steps=8, targets=2)", "square(queries=20)")
THREAT = Threat("linf", 0.06)


class Listener(Watcher):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.counts: list[tuple[int, int, int]] = []
        self.notes: list[str] = []

    def stage(self, name: str, tasks: int) -> None:
        self.stages.append((name, tasks))

    def advance(self, done: int, robust: int, points: int) -> None:
        self.counts.append((done, robust, points))

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def run(nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> Callable[..., Record]:
    """`evaluate` with defaults for all that a test does not care about."""

    def call(model: Any = nearest, folder: str = "out", **options: Any) -> Record:
        defaults: dict[str, Any] = {
            "name": "toy", "data": blobs, "threat": THREAT, "attacks": LINE, "device": "cpu"
        }  # fmt: skip
        if "suite" in options:
            defaults.pop("attacks")
        return evaluate(model, folder=tmp_path / folder, **{**defaults, **options})

    return call


def verdicts(record: Record) -> dict[int, tuple[str, str | None]]:
    points = record.points
    return dict(zip(points.index, zip(points.status, points.attack, strict=True), strict=True))


def test_a_record_is_consistent(
    run: Callable[..., Record], blobs: Dataset, nearest: nn.Module, tmp_path: Path
) -> None:
    rows = [0]

    def counting(x: Tensor) -> Tensor:
        rows[0] += len(x)
        logits: Tensor = nearest(x)
        return logits

    listener = Listener()
    record = run(counting, watcher=listener, arguments={"n": None}, notes=["as a test"])
    points, stages = record.points, record.stages
    assert points.index == list(range(80))
    assert points.label == blobs.labels.tolist()
    x, y = blobs.fetch(range(80))
    assert points.predicted == nearest(x).argmax(1).tolist()
    assert 0.9 < record.clean < 1
    assert 0.1 < record.robust < 0.9
    assert record.certified is None
    assert not record.randomized
    assert record.flags == []
    assert (record.notes[0], record.arguments) == ("as a test", {"n": None})

    assert [stage.attack for stage in stages] == record.attacks == [str(s) for s in LINE]
    assert stages[0].entered == round(80 * record.clean)
    for before, after in itertools.pairwise(stages):
        assert after.entered == before.entered - before.broken
    assert round(80 * record.robust) == stages[-1].entered - stages[-1].broken
    assert [stage.jobs for stage in stages] == [
        s.entered * j for s, j in zip(stages, (1, 2, 1), strict=True)
    ]
    taken = [points.attack.count(stage.attack) for stage in stages]
    assert taken == [stage.broken for stage in stages]
    assert record.strongest_attack == LINE[0]

    with Ledger(tmp_path / "out" / "ledger.sqlite", _identity(tmp_path)) as ledger:
        costs = ledger.costs().values()
        examples = ledger.examples((1, 6, 6))
    assert record.forwards == sum(cost.forwards for cost in costs)
    assert record.backwards == sum(cost.backwards for cost in costs)
    assert record.forwards <= rows[0] <= 1.05 * record.forwards  # slots that wait are not counted
    assert record.forwards > sum(stage.forwards for stage in stages)
    assert stages[-1].backwards == 0
    robust = points.status.count("robust")
    assert stages[0].forwards >= 11 * robust
    assert stages[2].forwards >= 21 * robust

    broken = [
        p for p, status in zip(points.index, points.status, strict=True) if status == "broken"
    ]
    assert sorted(examples) == broken
    z = torch.stack([examples[point] for point in broken])
    assert bool((nearest(z).argmax(1) != y[broken]).all())
    assert bool(THREAT.contains(z, x[broken]).all())
    measured = THREAT.distance(z, x[broken]).tolist()
    assert [points.distance[point] for point in broken] == measured

    assert [name for name, _ in listener.stages] == ["clean", *LINE]
    assert listener.counts[-1][1:] == (robust, 80)
    assert all(total == 80 for _, _, total in listener.counts)
    assert listener.notes == []


def test_passes_are_counted_one_by_one(
    run: Callable[..., Record], nearest: nn.Module, blobs: Dataset
) -> None:
    """A single slot never waits, so that every row the model sees is in the record."""
    rows = [0]

    def counting(x: Tensor) -> Tensor:
        rows[0] += len(x)
        logits: Tensor = nearest(x)
        return logits

    record = run(counting, n=12, sample="balanced", batch_size=1)
    assert record.forwards == rows[0]
    x, _ = blobs.fetch(record.points.index)
    looked = examine(nearest, x, 4, "toy").backwards + 3 * len(x)  # see robustkit.evaluation.resume
    assert record.backwards == looked + sum(stage.backwards for stage in record.stages)


def _identity(tmp_path: Path) -> dict[str, Any]:
    with sqlite3.connect(tmp_path / "out" / "ledger.sqlite") as plain:
        rows = plain.execute("SELECT key, value FROM meta").fetchall()
    plain.close()
    return {key: json.loads(value) for key, value in rows}


def test_the_same_command_again_returns_the_same_record(
    run: Callable[..., Record], nearest: nn.Module, tmp_path: Path
) -> None:
    first = run()
    content = (tmp_path / "out" / "record.json").read_bytes()

    listener = Listener()
    again = run(watcher=listener)
    assert again == first
    assert listener.stages == []
    assert (tmp_path / "out" / "record.json").read_bytes() == content

    (tmp_path / "out" / "record.json").unlink()
    rebuilt = run()
    assert verdicts(rebuilt) == verdicts(first)
    assert (rebuilt.forwards, rebuilt.stages) == (first.forwards, first.stages)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"n": 40}, "n was 80, now 40"),
        ({"threat": Threat("linf", 0.05)}, "threat was .*0.06.*, now .*0.05"),
        ({"attacks": ["fgsm"]}, r'attacks was .*, now \["fgsm"\]'),
        ({"name": "other"}, 'defense was "toy", now "other"'),
    ],
)
def test_a_folder_of_another_configuration_is_refused(
    run: Callable[..., Record], change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    first = run(attacks=["fgsm", "pgd(steps=2)"])
    content = (tmp_path / "out" / "record.json").read_bytes()
    with pytest.raises(UsageError, match=f"holds a run of another configuration: .*{sentence}"):
        run(**{"attacks": ["fgsm", "pgd(steps=2)"], **change})
    assert (tmp_path / "out" / "record.json").read_bytes() == content
    assert run(attacks=["fgsm", "pgd(steps=2)"]) == first


def test_other_weights_and_other_data_are_refused(
    run: Callable[..., Record], nearest: nn.Module, blobs: Dataset
) -> None:
    run(attacks=["fgsm"])
    other: Any = copy.deepcopy(nearest)
    with torch.no_grad():
        other[1].bias[0] += 1e-3
    with pytest.raises(UsageError, match="the weights have changed"):
        run(other, attacks=["fgsm"])
    x, y = blobs.fetch(range(80))
    x[3, 0, 0, 0] = 0.5
    data = from_arrays("blobs", x.numpy(), y.numpy(), classes=4)
    with pytest.raises(UsageError, match="data was"):
        run(data=data, attacks=["fgsm"])


def test_fresh_starts_over(run: Callable[..., Record]) -> None:
    run(attacks=["fgsm"])
    record = run(attacks=["pgd(steps=3)"], fresh=True)
    assert record.attacks == ["pgd(steps=3)"]
    assert run(attacks=["pgd(steps=3)"]) == record


def test_a_record_of_an_earlier_configuration_is_never_returned(
    run: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is ended between its last verdict and its record."""
    run(attacks=["fgsm"])
    with monkeypatch.context() as patch:
        patch.setattr(
            "robustkit.evaluation.settle_record.save",
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            run(attacks=["pgd(steps=3)"], fresh=True)
    assert run(attacks=["pgd(steps=3)"]).attacks == ["pgd(steps=3)"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_verdicts_do_not_depend_on_the_batch_size(
    run: Callable[..., Record], batch_size: int
) -> None:
    reference, other = run(n=40), run(n=40, folder="other", batch_size=batch_size)
    assert verdicts(other) == verdicts(reference)


def test_a_smaller_n_gives_the_same_verdicts_on_its_points(run: Callable[..., Record]) -> None:
    small, large = run(n=20), run(folder="large", n=40)
    assert (small.n, large.n, len(small.points.index)) == (20, 40, 20)
    assert verdicts(small).items() <= verdicts(large).items()
    assert set(np.bincount(small.points.label)) <= {4, 5, 6}


def test_a_stage_without_points_costs_nothing(run: Callable[..., Record]) -> None:
    record = run(threat=Threat("linf", 0.9), attacks=["apgd(steps=10)", "square(queries=9)"])
    assert record.robust == 0
    assert (record.stages[1].entered, record.stages[1].forwards) == (0, 0)


def test_a_suite_is_recorded_by_name(run: Callable[..., Record]) -> None:
    record = run(suite="quick", n=12)
    assert record.suite == "quick"
    assert record.attacks[0].startswith("relay(first=15")
    assert record.stages[0].jobs == record.stages[0].entered


def test_more_targets_than_ten(tmp_path: Path) -> None:
    """Every class can be a target, however many there are."""
    y = torch.arange(40) % 20
    x = torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(1))[y]
    linear = nn.Linear(25, 20)
    with torch.no_grad():
        linear.weight.copy_(2 * x[:20].flatten(1))
        linear.bias.copy_(-x[:20].flatten(1).square().sum(1))
    record = evaluate(
        nn.Sequential(nn.Flatten(), linear).eval(),
        name="toy",
        data=from_arrays("twenty", x.numpy(), y.numpy(), classes=20),
        threat=Threat("linf", 1e-3),
        folder=tmp_path,
        attacks=["apgd(loss=targeted_dlr, steps=1, targets=15)"],
        device="cpu",
    )
    assert record.stages[0].jobs == 15 * 40
    assert record.stages[0].forwards == 15 * 40 * 2


class Restless(nn.Module):
    """Changes its buffers in every forward pass."""

    passes: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm2d(1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.inner(self.norm(x))
        return logits


def test_the_model_of_the_user_is_not_touched(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    model = Restless(nearest).eval()
    model.inner.train()  # a linear layer answers the same in either mode
    model.norm.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [layer.training for layer in model.modules()]
    run(model, n=16, attacks=["apgd(steps=3)"])
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes
    assert all(p.requires_grad == (p is not model.norm.weight) for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_in_training_mode_is_refused(
    run: Callable[..., Record], nearest: nn.Module, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nearest).train()
    with pytest.raises(UsageError, match=r"toy is in training mode.*BatchNorm2d.*\.eval\(\)"):
        run(model)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_model_in_mid_run_is_the_models(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.passes = nearest, 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            if self.passes > 120:
                raise KeyError("lost")
            logits: Tensor = self.net(x)
            return logits

    told = r"toy raised an error in the middle of the run \(test_evaluate.py, line \d+\): KeyError"
    with pytest.raises(RobustkitError, match=told):
        run(Brittle().eval(), attacks=["apgd(steps=200)"])

    class Listening(Watcher):
        def advance(self, done: int, robust: int, points: int) -> None:
            raise KeyError("of the watcher")

    with pytest.raises(KeyError, match="of the watcher"):
        run(nearest, folder="other", watcher=Listening())


def test_a_coupled_model_is_refused(run: Callable[..., Record], nearest: nn.Module) -> None:
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    with pytest.raises(UsageError, match="answers differently to a point alone and in a batch"):
        run(nn.Sequential(norm, nearest).eval())


def test_too_few_classes_are_refused(run: Callable[..., Record]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with pytest.raises(UsageError, match="toy returns 3 logits, but the data has 4 classes"):
        run(model)


def test_other_image_sizes_are_refused(run: Callable[..., Record]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(35, 4)).eval()
    with pytest.raises(UsageError, match=r"toy failed on a batch of inputs of shape \[1, 6, 6\]"):
        run(model)


def test_nan_on_clean_points_names_them(
    run: Callable[..., Record], nearest: nn.Module, blobs: Dataset
) -> None:
    x, _ = blobs.fetch(range(80))
    bad = x.flatten(1).sum(1)[[7, 33]]  # neither is among the sixteen points looked at first

    def model(z: Tensor) -> Tensor:
        total = z.flatten(1).sum(1, keepdim=True)
        hit = (total - bad).abs().amin(1, keepdim=True) < 1e-5
        logits: Tensor = nearest(z)
        return logits.where(~hit, torch.nan)

    with pytest.raises(RobustkitError, match=r"NaN or infinite logits on the clean points 7, 33\."):
        run(model)


def test_nan_inside_the_threat_model_names_the_points(
    run: Callable[..., Record], nearest: nn.Module, blobs: Dataset
) -> None:
    x, _ = blobs.fetch([12])

    def model(z: Tensor) -> Tensor:
        moved = (z - x).abs().flatten(1).amax(1, keepdim=True)
        logits: Tensor = nearest(z)
        return logits.where((moved == 0) | (moved > 0.061), torch.nan)

    with pytest.raises(RobustkitError, match=r"threat model of points 12\."):
        run(model)


def test_a_model_that_cannot_be_copied_is_refused(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    model: Any = nearest
    model.batches = iter(x for x in range(3))  # nothing copies what is half read
    with pytest.raises(UsageError, match=r"^toy cannot be copied \("):
        run()


def test_clean_accuracy_at_chance_is_flagged(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    listener = Listener()
    record = run(nn.Sequential(nearest, Roll()).eval(), watcher=listener)
    assert [flag.name for flag in record.flags] == ["chance"]
    assert len(listener.notes) == 1
    assert listener.notes[0].startswith("toy: chance: clean accuracy 0.0")


class Roll(nn.Module):
    """Takes every class for the next one."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.roll(1, 1)


class Hidden(nn.Module):
    """The gradient says nothing: the input is rounded."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 255).round() / 255)
        return logits


def test_masked_gradients_are_flagged(run: Callable[..., Record], nearest: nn.Module) -> None:
    record = run(
        Hidden(nearest).eval(), attacks=["fgsm", "square(queries=100)"], threat=Threat("linf", 0.12)
    )
    found = [flag.name for flag in record.flags]
    assert found == ["no_gradient", "piecewise_constant", "huge_eps", "black_box"]
    assert record.strongest_attack == "square(queries=100)"


class Noisy(nn.Module):
    """Adds noise to the input, from the global generator."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
        return logits


def test_a_randomized_model_is_judged_by_majority(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        record = run(Noisy(nearest).eval(), n=40, attacks=["apgd(steps=5)"])
    assert record.randomized
    assert [flag.name for flag in record.flags] == ["randomized"]
    assert record.flips > 0
    assert record.forwards >= 10 * 40 + 6 * record.points.status.count("robust")


def test_out_of_memory_halves_the_batch_and_goes_on(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    sizes: list[int] = []

    def model(x: Tensor) -> Tensor:
        if len(x) > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(x))
        logits: Tensor = nearest(x)
        return logits

    assert verdicts(run(model, folder="small")) == verdicts(run())
    assert max(sizes) <= 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"suite": "quick", "attacks": ["fgsm"]}, "expected either a suite or a list of attacks"),
        ({"attacks": ["apdg"]}, "Unknown attack 'apdg'. Did you mean 'apgd'"),
        ({"attacks": ["fgsm", "fgsm"]}, "attack 'fgsm' is listed twice"),
        ({"attacks": ["apgd(steps=0)"]}, "option steps"),
        ({"attacks": ["apgd"], "threat": Threat("l1", 1.0)}, "apgd supports linf and l2, got l1"),
        ({"suite": "paritty"}, "Unknown suite 'paritty'. Did you mean 'parity'"),
        ({"n": 0}, "expected n from 1 to 80"),
        ({"n": 81}, "expected n from 1 to 80"),
        ({"device": "tpu"}, "expected device auto, cpu"),
        ({"device": "cuda:99"}, "device 'cuda:99' does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    run: Callable[..., Record], options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        run(**options)
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_attack_that_does_not_take_the_inputs_is_refused_before_any_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, tasks: Tasks, threat: Threat) -> None:
        raise UsageError(f"expected inputs of 5 pixels, got {list(tasks.x.shape[1:])}")

    monkeypatch.setattr(registry.attacks.entry("square").target, "start", refuse)
    x = torch.rand(8, 1, 4, 6, generator=torch.Generator().manual_seed(1)).numpy()
    data = from_arrays("small", x, np.arange(8) % 2, classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2)).eval()
    with pytest.raises(UsageError, match=r"expected inputs of 5 pixels, got \[1, 4, 6\]"):
        evaluate(model, name="toy", data=data, threat="l2:0.5", attacks=["pgd(steps=2)", "square"],
                 folder=tmp_path)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_eps_must_be_positive() -> None:
    with pytest.raises(UsageError, match=r"eps must be positive and finite, got 0\.0"):
        Threat.parse("linf:0")


def test_adversarial_inputs_are_stored_unless_told_not_to(
    run: Callable[..., Record], tmp_path: Path
) -> None:
    run(attacks=["fgsm"], save_adversarial=False)
    with Ledger(tmp_path / "out" / "ledger.sqlite", _identity(tmp_path)) as ledger:
        assert ledger.broken()
        assert ledger.examples((1, 6, 6)) == {}


def test_large_sets_are_not_stored_by_default_and_it_is_said(
    run: Callable[..., Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustkit.evaluation.execute.KEEP_BYTES", 4 * 80 * 36 - 1)
    listener = Listener()
    run(attacks=["fgsm"], watcher=listener)
    assert "adversarial inputs are not stored" in listener.notes[0]
    assert "--save-adversarial" in listener.notes[0]
    with Ledger(tmp_path / "out" / "ledger.sqlite", _identity(tmp_path)) as ledger:
        assert ledger.examples((1, 6, 6)) == {}
    run(attacks=["fgsm"], folder="kept", save_adversarial=True, watcher=(asked := Listener()))
    assert asked.notes == []


@pytest.fixture
def escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register an attack that leaves the ball, and claims that it does not."""

    @dataclass(frozen=True)
    class Escape:
        uses_gradient = False
        stays_inside = True

        def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
            return [Job()]

        def start(self, tasks: Tasks, threat: Threat) -> Any:
            fgsm = registry.attacks.build("fgsm")
            return fgsm.start(tasks, threat)._replace(query=1 - tasks.x)

        def objective(self, logits: Tensor, state: Any) -> Tensor:
            return logits[:, 0]

        def step(self, state: Any, reply: Reply, threat: Threat) -> Any:
            return state._replace(done=torch.ones_like(state.done))

    registry.attacks.entries()
    monkeypatch.setattr(registry.attacks, "_entries", dict(registry.attacks._entries))
    registry.attacks.register("escape", white_box=False)(Escape)


def test_an_attack_that_leaves_the_threat_model_is_an_error(
    run: Callable[..., Record], escape: None, tmp_path: Path
) -> None:
    with pytest.raises(RobustkitError) as caught:
        run(attacks=["fgsm", "escape"])
    assert str(caught.value).startswith(
        "escape left the threat model linf:0.06 (box [0, 1]) on points "
    )
    with Ledger(tmp_path / "out" / "ledger.sqlite", _identity(tmp_path)) as ledger:
        assert {fall.stage for fall in ledger.broken().values()} == {0}


def test_l2_and_l1(run: Callable[..., Record]) -> None:
    wide = run(threat=Threat("l2", 0.3), attacks=["apgd(steps=10)"], n=40)
    sparse = run(threat=Threat("l1", 1.0), attacks=["apgd_l1(steps=10)"], n=40, folder="sparse")
    for record in (wide, sparse):
        assert 0 < record.robust < record.clean
        found = [distance for distance in record.points.distance if distance is not None]
        assert max(found) <= record.threat.eps * (1 + 2e-6)


def test_records_are_frozen(run: Callable[..., Record]) -> None:
    assert THREAT.facts() == run(attacks=["fgsm"]).threat.model_dump()


def test_a_model_whose_code_changed_is_not_resumed(
    run: Callable[..., Record], nearest: nn.Module
) -> None:
    """The weights are the same, the forward pass is not: the old verdicts are not its own."""
    first = run(lambda x: nearest(x))
    assert run(lambda x: nearest(x)) == first
    with pytest.raises(UsageError, match="answered otherwise to the same inputs: its code has"):
        run(lambda x: 2 * nearest(x))


def test_code_that_changed_where_no_image_lies_is_not_resumed(
    run: Callable[..., Record], nearest: nn.Module, blobs: Dataset
) -> None:
    """On clean images both answer alike; attacks ask elsewhere, and follow the gradient."""
    grid = from_arrays("grid", (blobs.fetch(range(80))[0] * 255).round().div(255).numpy(),
                       blobs.labels, classes=4)  # fmt: skip

    def off_grid(x: Tensor) -> Tensor:
        off = ((255 * x).round() - 255 * x).abs().flatten(1).amax(1, keepdim=True) > 0.01
        logits: Tensor = nearest(x)
        return logits * torch.where(off, -1.0, 1.0)

    def masked(x: Tensor) -> Tensor:
        logits: Tensor = nearest(x)
        return logits.detach() + 0.1 * (logits - logits.detach())

    first = run(lambda x: nearest(x), data=grid)
    assert run(lambda x: nearest(x), data=grid) == first
    for changed in (off_grid, masked):
        with pytest.raises(UsageError, match="answered otherwise to the same inputs"):
            run(changed, data=grid)


def test_a_model_file_that_changed_is_not_resumed(
    run: Callable[..., Record], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("a = 1")
    first = run(name=f"{file}:net")
    assert run(name=f"{file}:net") == first
    file.write_text("a = 2")
    with pytest.raises(UsageError, match="configuration: the model's file has changed"):
        run(name=f"{file}:net")


def test_a_record_that_disagrees_with_the_ledger_is_written_anew(
    run: Callable[..., Record], tmp_path: Path
) -> None:
    first, path, heard = run(), tmp_path / "out" / "record.json", Listener()
    forged = json.loads(path.read_text())
    points = forged["points"]
    points["status"] = ["robust" if s == "broken" else s for s in points["status"]]
    points["attack"] = points["distance"] = [None] * len(points["index"])
    plain = json.loads(path.read_text())
    renamed = plain | {"defense": "other"}
    milder = plain | {"threat": plain["threat"] | {"eps": 0.5}}
    cheaper = plain | {"forwards": 1}
    texts = [json.dumps(edited) for edited in (forged, renamed, milder, cheaper)]
    for text in (*texts, "garbage{"):
        path.write_text(text)
        assert verdicts(run(watcher=heard)) == verdicts(first)
        assert "did not agree with the ledger" in heard.notes.pop()
    assert run(watcher=heard) == run() and not heard.notes


def test_the_adversarial_inputs_can_be_read_again(
    run: Callable[..., Record], blobs: Dataset, nearest: nn.Module, tmp_path: Path
) -> None:
    record = run()
    found = robustkit.adversarial_inputs(tmp_path / "out")
    pairs = zip(record.points.index, record.points.status, strict=True)
    broken = [index for index, status in pairs if status == "broken"]
    assert sorted(found) == broken
    z, (x, y) = torch.stack([found[i] for i in broken]), blobs.fetch(broken)
    assert bool((nearest(z).argmax(1) != y).all())
    assert bool(THREAT.contains(z, x).all())
    with pytest.raises(UsageError, match=r"holds no ledger\.sqlite"):
        robustkit.adversarial_inputs(tmp_path)


def test_data_with_one_class_are_refused(run: Callable[..., Record]) -> None:
    x, y = np.zeros((4, 1, 6, 6), np.float32), np.zeros(4, np.int64)
    one = from_arrays("one", x, y, classes=1)
    with pytest.raises(UsageError, match="has one class"):
        run(data=one)


def test_an_eps_that_covers_the_box_is_doubted(run: Callable[..., Record]) -> None:
    heard = Listener()
    run(threat=Threat("linf", 0.6), watcher=heard)
    assert any("was 8/255 meant" in note for note in heard.notes)


def test_the_true_class_never_becomes_a_target(
    run: Callable[..., Record], blobs: Dataset, tmp_path: Path
) -> None:
    """All logits tie: argmax says class 0, and the largest ten may come in any order."""
    flat = int(np.prod(blobs.shape))
    model = nn.Sequential(nn.Flatten(), nn.Linear(flat, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    run(model)
    with Ledger(tmp_path / "out" / "ledger.sqlite", None) as ledger:
        rows = ledger.clean().values()
    assert rows
    assert all(ranked[0] == predicted for _, predicted, ranked in rows)
