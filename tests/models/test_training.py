"""Training: a run that was killed ends where the uninterrupted one ends, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.threat import Norm, Threat
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Augment, Dataset, ImageSet, digest
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.adversarial_training import perturb
from robustkit.models.training import Progress, Recipe, Step, fit, tells_its_data
from robustkit.registry import defenses

RECIPE = Recipe(epochs=3, batch_size=16)
LAST = 15  # steps: 80 points in batches of 16, three times
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@pytest.fixture
def data(blobs: Dataset) -> Dataset:
    assert isinstance(blobs, ImageSet)
    return replace(blobs, augment=Augment(flip=True, crop=1))


@pytest.fixture
def train(data: Dataset, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """Train in a folder until `stop` (None: to the end); return the weights it left."""

    def call(
        folder: str, *, stop: int | None = None, spec: str = "pgd_at(steps=2, width=4)", **more: Any
    ) -> dict[str, Tensor]:
        options: dict[str, Any] = {"recipe": RECIPE, "seed": 0, "identity": {"seed": 0}, **more}
        steps = fit(
            defenses.build(spec), options.pop("data", data), tmp_path / folder,
            device=torch.device("cpu"), **options,
        )  # fmt: skip
        for progress in itertools.islice(steps, stop):
            assert progress.steps == LAST
        steps.close()  # type: ignore[attr-defined]
        weights = tmp_path / folder / "model.safetensors"
        return load_file(weights) if weights.exists() else {}

    return call


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "spec", ["undefended(width=4)", "pgd_at(steps=2, width=4)", "trades(steps=2, width=4)"]
)
def test_the_weights_follow_from_the_seed(
    train: Callable[..., dict[str, Tensor]], spec: str
) -> None:
    torch.manual_seed(1)
    first = train("one", spec=spec)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(train("two", spec=spec), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(train("three", spec=spec, seed=1), first)


@pytest.mark.parametrize("stop", [1, 5, 7, 10, 14, 15])
def test_a_stopped_training_ends_like_an_uninterrupted_one(
    train: Callable[..., dict[str, Tensor]], stop: int
) -> None:
    """The state is as old as the last epoch."""
    whole = train("whole")
    assert len(whole) > 4
    assert train("cut", stop=stop) == {}
    assert same(train("cut"), whole)


@pytest.mark.parametrize("stop", [3, 8])
def test_a_state_inside_an_epoch_is_good_too(
    train: Callable[..., dict[str, Tensor]],
    stop: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Minutes pass between two steps, so that every one of them is saved."""
    whole = train("whole")
    clock = itertools.count(step=100)
    monkeypatch.setattr("robustkit.models.training.time.monotonic", lambda: float(next(clock)))
    for at in (stop, 1, 2):
        train("cut", stop=at)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == stop + 3
    assert same(train("cut"), whole)


@pytest.mark.parametrize("loss", ["aldr_kl", "ensloss(period=0.2)"])
def test_what_a_loss_keeps_is_restored(
    train: Callable[..., dict[str, Tensor]], loss: str, tmp_path: Path
) -> None:
    spec = f"undefended(width=4, loss={loss})"
    whole = train("whole", spec=spec)
    train("cut", spec=spec, stop=11)
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    kept = state["memory"][loss.partition("(")[0]]
    assert len(kept) == (80 if loss == "aldr_kl" else 2)
    assert same(train("cut", spec=spec), whole)


def test_an_option_that_a_state_does_not_know_has_its_default(
    train: Callable[..., dict[str, Tensor]],
) -> None:
    whole = train("whole")
    train("old", stop=6)
    assert same(train("old", identity={"seed": 0, "loss": "ce"}), whole)
    train("other", stop=6)
    with pytest.raises(UsageError, match="loss was 'ce', now 'z_loss'"):
        train("other", identity={"seed": 0, "loss": "z_loss"})


def test_a_finished_training_is_left_as_it_is(train: Callable[..., dict[str, Tensor]]) -> None:
    whole = train("whole")
    assert same(train("whole"), whole)


def test_another_training_is_refused_by_name(
    train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    train("run", stop=6)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(UsageError) as caught:
        train("run", identity={"seed": 1})
    assert str(caught.value) == (
        f"{tmp_path / 'run'} holds another training: seed was 0, now 1. "
        "Choose another --out, or start over with --fresh."
    )
    with pytest.raises(UsageError, match="epochs was None, now 3"):
        train("run", identity={"seed": 0, "epochs": 3})
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def changed(data: Dataset) -> ImageSet:
    """The same points, with one other pixel."""
    assert isinstance(data, ImageSet)

    def read(indices: Any) -> Any:
        x = data.fetch(indices)[0].numpy()
        x[indices == 79, 0, 0, 0] = 0.5
        return x

    return replace(data, read=read)


def test_a_training_on_other_data_is_refused_by_digest(
    train: Callable[..., dict[str, Tensor]], data: Dataset, tmp_path: Path
) -> None:
    whole = train("whole")
    train("run", stop=6)
    other = changed(data)
    was, now = digest(data, range(80)), digest(other, range(80))
    with pytest.raises(UsageError, match=f"began on other data: its digest was {was}, .* {now}"):
        train("run", data=other)
    assert tells_its_data(tmp_path / "run")
    assert same(train("run"), whole)


def test_a_state_without_a_digest_is_resumed_and_can_be_told(
    train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    whole = train("whole")
    train("old", stop=6)
    path = tmp_path / "old" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["data"]
    torch.save(state, path)
    assert not tells_its_data(tmp_path / "old") and tells_its_data(tmp_path / "nowhere")
    assert same(train("old"), whole)


def test_data_that_changes_during_a_training_leaves_no_weights(
    train: Callable[..., dict[str, Tensor]], data: Dataset, tmp_path: Path
) -> None:
    assert isinstance(data, ImageSet)
    calls = itertools.count()
    live = replace(data, read=lambda i: data.read(i) * (1 if next(calls) < 8 else 0.5))
    with pytest.raises(RobustkitError, match="changed while the training went on"):
        train("run", data=live)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_damaged_state_is_reported_and_left_alone(
    train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    train("run", stop=6)
    path = tmp_path / "run" / "state.pt"
    for content in (b"garbage", b"", path.read_bytes()[:2000]):
        path.write_bytes(content)
        with pytest.raises(RobustkitError, match=r"cannot read the training state .*--fresh"):
            train("run")
        assert path.read_bytes() == content


def test_fewer_points_than_a_batch_are_refused(train: Callable[..., dict[str, Tensor]]) -> None:
    with pytest.raises(UsageError, match=r"full batch of 81 points to train on, got 80 points"):
        train("run", recipe=Recipe(epochs=1, batch_size=81))


@dataclass
class Recorder:
    """A defense that learns nothing and records its batches."""

    recipe: Recipe = RECIPE
    shown: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        assert model.training
        self.shown.append(x)
        self.labels.append(y)
        self.steps.append(step)
        loss: Tensor = nn.functional.cross_entropy(model(x), y)
        return loss


def marked(augment: Augment) -> ImageSet:
    """40 images with one pixel that tells them apart, at row 2, column 1 of 7 × 7."""
    x = np.zeros((40, 1, 7, 7), dtype=np.float32)
    x[:, 0, 2, 1] = np.arange(1, 41) / 40
    data = from_arrays("marked", x, np.arange(40) % 4, classes=4)
    return replace(data, augment=augment)


def show(augment: Augment, folder: Path, epochs: int = 12) -> Recorder:
    recorder, recipe = Recorder(), Recipe(epochs=epochs, batch_size=8)
    device = torch.device("cpu")
    reports: list[Progress] = list(
        fit(recorder, marked(augment), folder, recipe=recipe, seed=0, device=device, identity={})
    )
    assert [report.step for report in reports] == list(range(1, 5 * epochs + 1))
    assert [report.epoch for report in reports] == [1 + step // 5 for step in range(5 * epochs)]
    return recorder


def test_every_epoch_shows_every_point_once_in_a_new_order(tmp_path: Path) -> None:
    recorder = show(Augment(), tmp_path, epochs=2)
    seen = (torch.cat(recorder.shown).amax((1, 2, 3)) * 40).round().long() - 1
    assert torch.equal(torch.cat(recorder.labels), seen % 4)
    first, second = seen.view(2, 40)
    assert torch.equal(first.sort().values, torch.arange(40))
    assert torch.equal(second.sort().values, torch.arange(40))
    assert not torch.equal(first, second)
    assert [step.progress for step in recorder.steps] == [step / 10 for step in range(10)]


def test_augmentation_mirrors_and_shifts(tmp_path: Path) -> None:
    def places(augment: Augment) -> dict[tuple[int, int], int]:
        x = torch.cat(show(augment, tmp_path / str(augment)).shown)
        assert bool(((x > 0).sum((1, 2, 3)) == 1).all())
        rows, columns = (
            (x.flatten(1).argmax(1) // 7).tolist(),
            (x.flatten(1).argmax(1) % 7).tolist(),
        )
        found = list(zip(rows, columns, strict=True))
        return {place: found.count(place) for place in set(found)}

    assert places(Augment()) == {(2, 1): 480}
    mirrored = places(Augment(flip=True))
    assert mirrored.keys() == {(2, 1), (2, 5)}
    assert 180 < mirrored[2, 5] < 300
    shifted = places(Augment(crop=1))
    assert shifted.keys() == {(row, column) for row in (1, 2, 3) for column in (0, 1, 2)}
    assert min(shifted.values()) > 25


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "undefended(width=4)",
        "pgd_at(eps=0.03, steps=2, width=4)",
        "trades(eps=0.03, steps=2, width=4)",
    ],
)
def test_the_loss_falls_on_the_bundled_images(spec: str, bundled: Dataset, tmp_path: Path) -> None:
    recipe, device = Recipe(epochs=4, batch_size=100, lr=5e-3), torch.device("cpu")
    steps = fit(
        defenses.build(spec), bundled, tmp_path, recipe=recipe, seed=0, device=device, identity={}
    )
    losses = [progress.loss for progress in steps]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


@pytest.mark.parametrize("norm", NORMS)
def test_perturb_climbs_inside_the_threat_model(
    norm: Norm, nearest: nn.Module, prototypes: Tensor
) -> None:
    threat, y = Threat(norm, {"linf": 0.05, "l2": 0.3, "l1": 1.5}[norm]), torch.arange(4)
    nearest[1].bias.requires_grad_(False)  # type: ignore[index]
    flags = [p.requires_grad for p in nearest.parameters()]

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="sum")

    def run(steps: int, seed: int = 0, **more: Any) -> Tensor:
        draw = generator(seed, 0, 0)
        return perturb(nearest, prototypes, loss, threat, steps=steps, generator=draw, **more)

    z = run(10)
    assert not z.requires_grad
    assert bool(threat.contains(z, prototypes).all())
    heights = [float(loss(nearest(images)).detach()) for images in (prototypes, run(1), z)]
    assert heights[0] < min(heights[1:])
    assert heights[2] >= heights[1] - 1e-6  # in l1, one step may reach the optimum
    assert torch.equal(run(10), z)
    assert not torch.equal(run(1, seed=1), run(1))
    assert torch.equal(run(3, start=0.0), run(3, seed=1, start=0.0))
    short = threat.distance(run(1, start=0.0, step_size=threat.eps / 4), prototypes)
    assert short.tolist() == pytest.approx([threat.eps / 4] * 4, rel=1e-4)
    assert [p.requires_grad for p in nearest.parameters()] == flags
    assert all(p.grad is None for p in nearest.parameters())


def test_generators_of_different_steps_differ() -> None:
    numbers = [
        (seed, stream, count) for seed in (0, 1, -1) for stream in (0, 1) for count in (0, 1, 2)
    ]
    draws = {float(torch.rand(1, generator=generator(*number))) for number in numbers}
    assert len(draws) == len(numbers)
    assert torch.equal(
        torch.rand(9, generator=generator(5, 1, 7)), torch.rand(9, generator=generator(5, 1, 7))
    )


@dataclass(frozen=True)
class _Precision:
    """Notes in which precision the objective is computed."""

    recipe: Recipe = RECIPE
    seen: list[bool] = field(default_factory=list)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        self.seen.append(torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"))
        return nn.functional.cross_entropy(model(x), y)


def test_a_cpu_trains_in_full_precision(data: Dataset, tmp_path: Path) -> None:
    defense = _Precision()
    for _ in fit(defense, data, tmp_path, recipe=RECIPE, seed=0, device=torch.device("cpu"),
                 identity={}):  # fmt: skip
        pass
    assert defense.seen == [False] * LAST


def test_bounds_are_never_trained_in_half_precision() -> None:
    assert not defenses.build("ibp").recipe.half
    assert defenses.build("pgd_at").recipe.half


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [True, False])
def test_a_gpu_trains_in_bfloat16_where_it_may(data: Dataset, tmp_path: Path, half: bool) -> None:
    defense = _Precision()
    recipe = replace(RECIPE, half=half)
    for _ in fit(defense, data, tmp_path, recipe=recipe, seed=0, device=torch.device("cuda"),
                 identity={}):  # fmt: skip
        pass
    assert defense.seen == [half] * LAST
