"""The moving average in closed form, the best epoch, and single steps with their guard."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.models.adversarial_training import perturb, single, worst
from robustkit.models.averaging import average, look, settle
from robustkit.models.training import Recipe, Step, fit
from robustkit.registry import defenses

RECIPE = Recipe(epochs=3, batch_size=20, optimizer="sgd", lr=0.1, average=0.9)


def test_the_average_is_the_weighted_sum_of_all_weights() -> None:
    layer, memory, shown = nn.BatchNorm1d(1), dict[str, Tensor](), torch.rand(6)
    assert layer.num_batches_tracked is not None
    for step, value in enumerate(shown):
        layer.weight.data.fill_(float(value))
        layer.num_batches_tracked.fill_(step)
        average(memory, layer, 0.5, step)
    decays = [min(0.5, (1 + step) / (10 + step)) for step in range(1, 6)]
    expected = shown[0]
    for decay, value in zip(decays, shown[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    settle(memory, layer)
    assert layer.weight.item() == pytest.approx(float(expected), rel=1e-6)
    assert layer.num_batches_tracked.item() == 5


def test_the_first_of_the_best_epochs_is_kept_and_the_training_goes_on_undisturbed() -> None:
    layer, memory = nn.Linear(1, 1, bias=False).train(), dict[str, Tensor]()

    def watch(model: nn.Module) -> float:
        assert not model.training
        return scores[int(layer.weight.item())]

    scores = [0.2, 0.5, 0.5, 0.1]
    for epoch in range(4):
        layer.weight.data.fill_(float(epoch))
        look(memory, layer, layer, watch)
        assert layer.training and layer.weight.item() == epoch
    assert memory["log.watched"].tolist() == scores
    settle(memory, layer)
    assert layer.weight.item() == 1.0


@pytest.fixture
def train(blobs: Dataset, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """Train in a folder until `stop`, watched by the accuracy on the training points."""
    x, y = blobs.fetch(range(len(blobs)))

    def watch(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == y).double().mean())

    def call(folder: str, stop: int | None = None) -> dict[str, Tensor]:
        steps = fit(
            defenses.build("pgd_at(eps=0.02, net=preact_resnet, steps=1, width=2)"), blobs,
            tmp_path / folder, recipe=RECIPE, seed=0, device=torch.device("cpu"), identity={},
            watch=watch,
        )  # fmt: skip
        for _ in itertools.islice(steps, stop):
            pass
        steps.close()  # type: ignore[attr-defined]
        weights = tmp_path / folder / "model.safetensors"
        return load_file(weights) if weights.exists() else {}

    return call


def test_a_stopped_training_keeps_average_and_best_epoch(
    train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    whole = train("whole")
    memory = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["memory"]
    assert len(memory["log.watched"]) == 2  # the epochs of the second half
    assert all(torch.equal(whole[key], memory[f"best.{key}"]) for key in whole)
    for stop in (5, 6):
        assert train("cut", stop) == {}
    again = train("cut")
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[key], whole[key]) for key in whole)


EPS, X = 0.1, torch.full((64, 1, 1, 1), 0.5)
THREAT = Threat("linf", EPS)


def deceived(z: Tensor) -> Tensor:
    """A loss with its peak at the image: a long step jumps over it, and noise ends beside it."""
    return 8 * (1 - (z - 0.5).abs() / EPS).relu()


def steps_of(loss: Callable[[Tensor], Tensor]) -> tuple[list[float], list[int], dict[str, Tensor]]:
    """Return progress, passes of the search, and memory of a training of 400 batches."""
    memory, passes, calls = dict[str, Tensor](), [], itertools.count()

    def counted(z: Tensor) -> Tensor:
        next(calls)
        return loss(z).sum()

    progress = [number / 400 for number in range(400)]
    for number, share in enumerate(progress):
        before = next(calls)
        state = Step(share, generator(0, 1, number), memory)
        z = worst(nn.Identity(), X, counted, THREAT, 1, state)
        assert not z.requires_grad
        passes.append(next(calls) - before - 1)
    return progress, passes, memory


def test_the_guard_sees_a_deceived_single_step_and_falls_back_for_a_while() -> None:
    progress, passes, memory = steps_of(deceived)
    seen = memory["log.collapses"].tolist()
    assert len(seen) >= 2
    checked = 1 + 5 + 2  # the single step, the search, and the losses at their points
    for share, count in zip(progress, passes, strict=True):
        since = min((share - s for s in seen if share > s + 1e-6), default=1.0)
        if abs(since - 0.05) < 1e-6:
            continue  # where the pause ends is a matter of rounding
        caught = any(abs(share - s) < 1e-6 for s in seen)
        assert count in ({3} if since < 0.05 else {checked} if caught else {1, checked})


def test_the_guard_leaves_an_honest_single_step_alone() -> None:
    _, passes, memory = steps_of(lambda z: 30 * z)
    assert not memory
    assert set(passes) == {1, 8}
    assert 1 <= passes.count(8) < 20


def test_a_single_step_goes_one_eps_from_noise_of_two_and_stays_in_the_box() -> None:
    def run(x: Tensor) -> Tensor:
        return single(nn.Identity(), x, lambda z: z.sum(), THREAT, generator(0, 1, 0))

    moves = run(X) - X
    assert float(moves.min()) >= -EPS and float(moves.max()) <= 3 * EPS
    assert float(moves.max()) > 2 * EPS  # beyond the ball, as in the paper
    noise = 2 * torch.rand(X.shape, generator=generator(0, 1, 0)) - 1
    torch.testing.assert_close(moves, EPS + 2 * EPS * noise)
    assert float(run(torch.ones_like(X)).max()) == 1.0


def test_more_steps_than_one_are_those_of_perturb() -> None:
    options: dict[str, Any] = {"steps": 3, "generator": generator(0, 1, 0)}
    expected = perturb(nn.Identity(), X, lambda z: deceived(z).sum(), THREAT, **options)
    state = Step(0.5, generator(0, 1, 0))
    found = worst(nn.Identity(), X, lambda z: deceived(z).sum(), THREAT, 3, state)
    assert torch.equal(found, expected)
