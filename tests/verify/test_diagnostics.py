"""Diagnosis: what makes a model impossible to evaluate, and what makes a result suspect."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.types import Model
from robustkit.errors import UsageError
from robustkit.evaluation.review import review
from robustkit.record.schema import Stage
from robustkit.verify.diagnostics.probe import examine


@pytest.fixture
def x() -> Tensor:
    return torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def names(flags: object) -> list[str]:
    assert isinstance(flags, (list, tuple))
    return [flag.name for flag in flags]


def test_a_sound_model_raises_no_flag(nearest: nn.Module, x: Tensor) -> None:
    health = examine(nearest, x, 4, "toy")
    assert (health.randomized, health.classes, health.flags) == (False, 4, ())
    # Five looks at the same, others in between, again, one by one; then the probes.
    refused = examine(nearest, x, 4, "toy", probing=False)
    assert (refused.forwards, refused.backwards) == (8 * 8, 0)
    assert 10 * 8 < health.forwards < 40 * 8
    assert 2 * 8 <= health.backwards < 40 * 8


def test_forwards_are_counted(nearest: nn.Module, x: Tensor) -> None:
    rows = [0]

    def counting(z: Tensor) -> Tensor:
        rows[0] += len(z)
        logits: Tensor = nearest(z)
        return logits

    health = examine(counting, x, 4, "toy")
    assert rows[0] == health.forwards


@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_randomness_is_found_in_small_noise_too(
    nearest: nn.Module, x: Tensor, noise: float
) -> None:
    draw = torch.Generator().manual_seed(0)

    def noisy(z: Tensor) -> Tensor:
        logits: Tensor = nearest(z)
        return logits.add(noise * logits.norm() * torch.randn(logits.shape, generator=draw))

    health = examine(noisy, x, 4, "toy")
    assert health.randomized
    assert names(health.flags) == ["randomized"]
    assert "most of up to 40 passes" in health.flags[0].message
    assert not examine(nearest, x, 4, "toy").randomized  # nothing is left of the other model


def test_dropout_left_on_is_randomness(x: Tensor) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(36, 4))
        assert examine(model, x, 4, "toy").randomized
        assert not examine(model.eval(), x, 4, "toy").randomized


def test_probabilities_are_flagged(nearest: nn.Module, x: Tensor) -> None:
    health = examine(nn.Sequential(nearest, nn.Softmax(1)), x, 4, "toy")
    assert names(health.flags) == ["probabilities"]
    assert "Return the layer before the softmax" in health.flags[0].message
    assert not examine(nn.Sequential(nearest, nn.LogSoftmax(1)), x, 4, "toy").flags
    assert not examine(nn.Sequential(nearest, nn.Sigmoid()), x, 4, "toy").flags


def coupled_norm() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(1, track_running_stats=False)
        return nn.Sequential(norm, nn.Flatten(), nn.Linear(36, 4)).eval()


def test_coupling_across_the_batch_is_refused(nearest: nn.Module, x: Tensor) -> None:
    models: list[Model] = [
        coupled_norm(),
        lambda z: nearest(z) - nearest(z).mean(0),
        lambda z: nearest(z - 0.5 * z.mean(0)),
    ]
    for model in models:
        with pytest.raises(UsageError) as caught:
            examine(model, x, 4, "toy")
        message = str(caught.value)
        assert message.startswith("toy answers differently to a point alone and in a batch (by ")
        assert message.endswith("Call .eval().")


def test_one_point_is_enough_to_find_coupling(x: Tensor) -> None:
    """Its targets and restarts share a batch, so that coupling would matter even then."""
    with pytest.raises(UsageError, match="answers differently to a point alone and in a batch"):
        examine(coupled_norm(), x[:1], 4, "toy")


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda z: torch.zeros(len(z)), r"\[8\]"),
        (lambda z: torch.zeros(len(z), 4, 1), r"\[8, 4, 1\]"),
        (lambda z: torch.zeros(1, 4), r"\[1, 4\]"),
        (lambda z: (torch.zeros(len(z), 4),), r"tuple \(0: \[8, 4\]\)"),
        (lambda z: None, "NoneType"),
    ],
)
def test_wrong_shapes_are_refused(answer: object, got: str, x: Tensor) -> None:
    told = rf"^toy must map inputs \[8, 1, 6, 6\] to logits \[8, k\], got {got}\. Return "
    with pytest.raises(UsageError, match=told):
        examine(answer, x, 4, "toy")  # type: ignore[arg-type]


def test_too_few_classes_are_refused(nearest: nn.Module, x: Tensor) -> None:
    with pytest.raises(UsageError, match=r"^toy returns 4 logits, but the data has 10 classes "):
        examine(nearest, x, 10, "toy")


def test_a_model_that_fails_is_named_with_its_own_words(x: Tensor) -> None:
    with pytest.raises(
        UsageError,
        match=r"^toy failed on a batch .* \[1, 6, 6\] \(\w+\.py, "
        r"line \d+\): RuntimeError: .*--debug shows the way there\.$",
    ):
        examine(nn.Sequential(nn.Flatten(), nn.Linear(35, 4)), x, 4, "toy")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(nearest: nn.Module, x: Tensor, bad: float) -> None:
    rows = torch.arange(8)[:, None]

    def broken(z: Tensor) -> Tensor:
        logits: Tensor = nearest(z)
        return logits.where((rows != 2) & (rows != 5), bad) if len(z) == 8 else logits

    with pytest.raises(
        UsageError, match=r"NaN or infinite logits on clean inputs \(rows \[2, 5\]\)"
    ):
        examine(broken, x, 4, "toy")


def stages(*broken: int) -> list[Stage]:
    return [
        Stage(attack=f"a{i}", jobs=1, entered=1, broken=count, forwards=1, backwards=0, seconds=0)
        for i, count in enumerate(broken)
    ]


@pytest.mark.parametrize(
    ("clean", "n", "classes", "raised"),
    [(100, 1000, 10, True), (0, 50, 10, True), (113, 1000, 10, True), (118, 1000, 10, False),
     (900, 1000, 10, False), (26, 50, 2, True), (40, 50, 2, False)],
)  # fmt: skip
def test_chance_is_flagged(clean: int, n: int, classes: int, raised: bool) -> None:
    flags = review(stages(0), [True], clean, n, classes)
    assert names(flags) == (["chance"] if raised else [])
    if raised:
        told = f"{clean / n:.3f} on {n} points cannot be told from guessing among {classes}"
        assert told in flags[0].message
        assert "--mean, --std" in flags[0].message


@pytest.mark.parametrize(
    ("broken", "white", "raised"),
    [
        ((300, 40, 2), (True, True, False), False),
        ((300, 40, 3), (True, True, False), True),
        ((0, 3), (True, False), True),
        ((300, 40, 3), (True, True, True), False),
        ((900,), (False,), False),
        ((900, 40), (False, True), False),  # the black box came first: nothing had been left
    ],
)
def test_black_box_success_is_flagged(
    broken: tuple[int, ...], white: tuple[bool, ...], raised: bool
) -> None:
    flags = review(stages(*broken), white, 900, 1000, 10)
    assert names(flags) == (["black_box"] if raised else [])
    if raised:
        assert "broke 3 points" in flags[0].message


def test_one_point_of_few_is_no_sign_of_masking() -> None:
    assert names(review(stages(3, 1), [True, False], 18, 20, 10)) == []
    assert names(review(stages(3, 2), [True, False], 18, 20, 10)) == ["black_box"]


class Masked(nn.Module):
    """The same decisions without a usable gradient."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor
        if self.how == "no_grad":
            with torch.no_grad():
                logits = self.model(x)
        elif self.how == "round":
            logits = self.model((x * 255).round() / 255)
        else:
            logits = self.model(x)
            logits = logits + (logits * 0).abs().sqrt()  # its derivative at 0 is not a number
        return logits


@pytest.mark.parametrize("how", ["no_grad", "round", "nan"])
def test_a_missing_gradient_is_flagged(how: str, nearest: nn.Module, x: Tensor) -> None:
    flags = examine(Masked(nearest, how), x, 4, "toy").flags
    steps = ["piecewise_constant"] if how == "round" else []
    assert names(flags) == ["no_gradient", *steps, "huge_eps"]
    assert "at 8 of 8 inputs" in flags[0].message
