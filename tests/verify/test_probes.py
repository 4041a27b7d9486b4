"""One small wrapper per flag, which raises it and no flag that is not true of it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.review import review
from robustkit.leaderboard.report.glossary import FLAG_GLOSSARY
from robustkit.models.load import bundled as shipped
from robustkit.models.load import load_model
from robustkit.record.schema import Stage
from robustkit.verify.diagnostics.probe import examine
from robustkit.verify.flags import FLAGS, reliability, worse

ROOT = Path(__file__).resolve().parents[2]
Function = Callable[[nn.Module, Tensor], Tensor]


class Wrapped(nn.Module):
    """Answers as `function(model, x)`."""

    def __init__(self, model: nn.Module, function: Function) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model, x)


class Crooked(torch.autograd.Function):
    """The identity, with whatever is asked for on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.back(gradients[0]), None


def crooked(back: Callable[[Tensor], Tensor]) -> Function:
    return lambda model, x: model(Crooked.apply(x, back))


def straight_through(x: Tensor, levels: int) -> Tensor:
    return x + ((x * levels).round() / levels - x).detach()


def one_hot(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.one_hot(model(x).argmax(1), 4).float()


def purified(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(z).logsumexp(1).sum(), z)
    return model(x + 0.001 * gradient.sign())  # type: ignore[no-any-return]


def purified_by_backward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        torch.autograd.backward(model(z).square().sum(), inputs=[z])
    assert z.grad is not None
    return model(x + 0.001 * z.grad.sign())  # type: ignore[no-any-return]


def purified_by_function(model: nn.Module, x: Tensor) -> Tensor:
    gradient = torch.func.grad(lambda z: model(z).logsumexp(1).sum())(x)
    return model(x + 0.001 * gradient.detach().sign())  # type: ignore[no-any-return]


class Sulking(nn.Module):
    """Turns its answer around where the input is not the one that it saw last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.last = model, 0.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        before, self.last = self.last, float(x.detach().mean())
        return logits.roll(1, 1) if before and abs(before - self.last) > 1e-3 else logits


class PassCounter(nn.Module):
    """Counts its passes in a buffer, and tires after `patience` of them."""

    count: Tensor

    def __init__(self, model: nn.Module, patience: int) -> None:
        super().__init__()
        self.model, self.patience, self.hidden = model, patience, 0
        if not patience:
            self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        self.hidden += 1
        if not self.patience:
            self.count += 1
        return logits.flip(1) if self.patience and self.hidden > self.patience else logits


@pytest.fixture
def x(blobs: Dataset) -> Tensor:
    return blobs.fetch(range(16))[0]


def raised(model: nn.Module, x: Tensor, classes: int = 4) -> list[str]:
    return [flag.name for flag in examine(model.eval(), x, classes, "toy").flags]


BLIND = ["no_gradient", "huge_eps"]
STEPS = ["no_gradient", "piecewise_constant", "huge_eps"]
WRAPPERS: dict[str, tuple[Function, list[str]]] = {
    "as it is": (lambda m, x: m(x), []),
    "log-probabilities": (lambda m, x: m(x).log_softmax(1), []),
    "clamped to the box": (lambda m, x: m(x.clamp(0, 1)), []),
    "float16 input": (lambda m, x: m(x.half().float()), []),
    "scaled up": (lambda m, x: 1e4 * m(x), ["saturated", "scaled_logits"]),
    "scaled down": (lambda m, x: 1e-5 * m(x), ["scaled_logits"]),
    "probabilities": (lambda m, x: m(x).softmax(1), ["probabilities"]),
    "one-hot": (one_hot, ["one_hot", *STEPS]),
    "sharp probabilities": (lambda m, x: (1e5 * m(x)).softmax(1), ["one_hot", *STEPS]),
    "rounded logits": (lambda m, x: (2 * m(x)).round() / 2, STEPS),
    "quantized": (lambda m, x: m((x * 255).round() / 255), STEPS),
    "coarsely cut": (lambda m, x: m((x * 16).floor() / 16), STEPS),
    "straight through": (lambda m, x: m(straight_through(x, 255)), ["piecewise_constant"]),
    "detached": (lambda m, x: m(x.detach()), BLIND),
    "zeroed": (crooked(lambda g: 0 * g), BLIND),
    "not a number": (crooked(lambda g: g * torch.nan), BLIND),
    "infinite": (crooked(lambda g: g * torch.inf), ["no_gradient"]),
    "half detached": (lambda m, x: (m(x) + m(x.detach())) / 2, ["gradient_mismatch"]),
    "shrunk": (crooked(lambda g: 1e-9 * g), ["gradient_mismatch"]),
    "masked": (crooked(lambda g: g * (torch.arange(6) < 2)), ["gradient_mismatch"]),
    "exploding": (crooked(lambda g: 1e9 * g), ["exploding_gradient", "gradient_mismatch"]),
    "differentiates": (purified, ["inner_autograd"]),
    "goes backward": (purified_by_backward, ["inner_autograd"]),
    "differentiates a function": (purified_by_function, ["inner_autograd"]),
}


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapper_raises_its_flag(how: str, nearest: nn.Module, x: Tensor) -> None:
    function, flags = WRAPPERS[how]
    assert raised(Wrapped(nearest, function), x) == flags


def test_a_turned_gradient_leads_nowhere(nearest: nn.Module, x: Tensor) -> None:
    found = raised(Wrapped(nearest, crooked(lambda g: -g)), x)
    assert found[:2] == ["gradient_mismatch", "huge_eps"]


def test_noise_in_the_gradient_alone_is_a_mismatch(nearest: nn.Module, x: Tensor) -> None:
    draw = torch.Generator().manual_seed(0)

    def noisy(g: Tensor) -> Tensor:
        return g + 3 * g.abs().mean() * torch.randn(g.shape, generator=draw)

    assert "gradient_mismatch" in raised(Wrapped(nearest, crooked(noisy)), x)


def test_more_steps_that_find_less_are_seen(nearest: nn.Module, prototypes: Tensor) -> None:
    """The gradient is true at clean inputs alone: one long step tells more than many short ones."""
    x = prototypes.repeat(2, 1, 1, 1)

    def lured(model: nn.Module, z: Tensor) -> Tensor:
        away = torch.cdist(z.detach().flatten(1), x.flatten(1)).amin(1)
        sign = torch.where(away < 1e-2, 1.0, -1.0)[:, None, None, None]
        return model(Crooked.apply(z, lambda g: g * sign))  # type: ignore[no-any-return]

    assert raised(Wrapped(nearest, lured), x) == ["gradient_mismatch", "huge_eps", "not_monotone"]


@pytest.mark.parametrize("patience", [0, 30])
def test_memory_is_found(patience: int, nearest: nn.Module, x: Tensor) -> None:
    health = examine(PassCounter(nearest, patience), x, 4, "toy")
    (told,) = [flag.message for flag in health.flags if flag.name == "stateful"]
    assert not health.randomized
    assert told.startswith("a pass changes the buffers" if not patience else "after ")


def test_a_gradient_that_changes_from_pass_to_pass_is_found(nearest: nn.Module, x: Tensor) -> None:
    passes = [0]

    def alternating(g: Tensor) -> Tensor:
        passes[0] += 1
        return g if passes[0] % 2 else -g

    (told,) = examine(Wrapped(nearest, crooked(alternating)), x, 4, "toy").flags[:1]
    assert told.name == "gradient_mismatch"
    assert told.message.startswith("two passes over one input give different gradients, at 16 of")


def test_memory_that_shows_in_the_attacks_alone_is_found(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    """The model changes after the first look; two evaluations in one process share nothing."""
    found = {}
    for name, model in (("patient", PassCounter(nearest, 100)), ("sound", nearest)):
        record = evaluate(
            model, name=name, data=blobs, threat=Threat("linf", 0.06), folder=tmp_path / name,
            attacks=["apgd(steps=20)"], n=40, device="cpu", batch_size=4,
        )  # fmt: skip
        found[name] = [flag.name for flag in record.flags], record.reliability
    assert found == {"patient": (["stateful"], "unreliable"), "sound": ([], "reliable")}


def noisy(function: Function) -> Function:
    return lambda model, x: function(model, x + 0.05 * torch.randn_like(x))


def test_a_random_model_with_a_true_gradient_is_only_random(nearest: nn.Module, x: Tensor) -> None:
    assert raised(Wrapped(nearest, noisy(lambda model, x: model(x))), x) == ["randomized"]


@pytest.mark.parametrize(
    ("function", "flag"),
    [
        (crooked(lambda gradient: -gradient), "gradient_mismatch"),
        (crooked(lambda gradient: gradient.roll(1, -1)), "gradient_mismatch"),
        (lambda model, x: model(straight_through(x, 4).detach() + 0 * x), "no_gradient"),
        (lambda model, x: model(straight_through(x, 8)), "piecewise_constant"),
    ],
)
def test_behind_randomness_the_gradient_is_compared_too(
    function: Function, flag: str, nearest: nn.Module, x: Tensor
) -> None:
    """With the same draws in both passes, differences are those of the inputs."""
    assert {"randomized", flag} <= {*raised(Wrapped(nearest, noisy(function)), x)}


def test_memory_behind_randomness_is_found(nearest: nn.Module, x: Tensor) -> None:
    seen = [torch.zeros_like(x[:1])]

    def drifting(model: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = model(x + 0.05 * torch.randn_like(x) + seen[0].mean())
        seen[0] = x[:1].detach()
        return logits

    assert {"randomized", "stateful"} <= {*raised(Wrapped(nearest, drifting), x)}


def test_the_draws_of_others_go_on_as_they_would(nearest: nn.Module, x: Tensor) -> None:
    """What is repeated for a look is repeated aside."""
    draws = []

    def counting(model: nn.Module, x: Tensor) -> Tensor:
        draws.append(float(torch.rand(())))
        return model(x) + 0.1 * draws[-1]  # type: ignore[no-any-return]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        examine(Wrapped(nearest, counting), x, 4, "toy")
        after = float(torch.rand(()))
        torch.manual_seed(3)
        expected = [float(torch.rand(())) for _ in range(6)]
    assert draws[:5] == expected[:5]
    assert after == expected[5]


def test_a_tracer_is_left_alone(nearest: nn.Module, x: Tensor) -> None:
    """The probes watch a model without the hook of debuggers and of coverage."""
    calls: list[str] = []

    def trace(frame: Any, event: str, argument: Any) -> Any:
        calls.append(frame.f_code.co_name)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        examine(Wrapped(nearest, purified), x, 4, "toy")
        kept = sys.gettrace()
    finally:
        sys.settrace(before)
    assert kept is trace
    assert "purified" in calls


def test_an_answer_that_depends_on_the_input_before_is_found(nearest: nn.Module, x: Tensor) -> None:
    assert raised(Sulking(nearest), x)[0] == "stateful"


def test_nothing_leaks_from_one_model_to_the_next(nearest: nn.Module, x: Tensor) -> None:
    models = [
        nearest,
        Wrapped(nearest, one_hot),
        Wrapped(nearest, purified),
        Sulking(nearest),
        nearest,
    ]
    found = [examine(model.eval(), x, 4, "toy") for model in models]
    assert found[0].flags == found[-1].flags == ()
    assert all(health.flags for health in found[1:-1])
    assert torch.equal(found[0].answers, found[-1].answers)
    assert found[0][4:] == found[-1][4:]  # passes


def small(kind: str) -> nn.Module:
    layers: dict[str, Sequence[nn.Module]] = {
        "linear": [nn.Flatten(), nn.Linear(784, 10)],
        "relu": [nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)],
        "tanh": [nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10)],
        "conv": [
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(968, 10)),
        ],
    }
    return nn.Sequential(*layers[kind])


@pytest.mark.parametrize("kind", ["linear", "relu", "tanh", "conv"])
def test_small_models_raise_nothing_trained_or_not(kind: str, bundled: Dataset) -> None:
    with torch.random.fork_rng():
        for seed in range(4):
            torch.manual_seed(seed)
            x = bundled.fetch(range(16 * seed, 16 * seed + 16))[0]
            assert raised(small(kind), x, 10) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["undefended", "pgd_at", "trades", "ibp", "doubly_robust"])
def test_healthy_models_raise_nothing(name: str, bundled: Dataset) -> None:
    assert name in shipped(bundled)
    model = load_model(name, data=bundled).model
    for first in (0, 300, 600):
        assert raised(model, bundled.fetch(range(first, first + 16))[0], 10) == []


def test_a_look_costs_tens_of_passes_an_input(bundled: Dataset) -> None:
    model = load_model("pgd_at", data=bundled).model
    health = examine(model, bundled.fetch(range(16))[0], 10, "it")
    assert health.forwards <= 40 * 16
    assert health.backwards <= 20 * 16


def test_the_box_may_be_another(nearest: nn.Module, x: Tensor) -> None:
    def moved(model: nn.Module, z: Tensor) -> Tensor:
        return model((z + 1) / 2)  # type: ignore[no-any-return]

    health = examine(Wrapped(nearest, moved), 2 * x - 1, 4, "toy", box=(-1.0, 1.0))
    assert health.flags == ()


def stage(
    attack: str, broken: int, passes: int = 10_000, entered: int = 100, **strength: Any
) -> Stage:
    return Stage(
        attack=attack, jobs=2 * entered, entered=entered, broken=broken, forwards=passes,
        backwards=0, seconds=0, strength=strength,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("transfer", "white", "flags"),
    [
        ((False, True), (True, True), ["transfer"]),
        ((True, False), (True, True), []),
        ((True, True), (True, True), []),
        ((), (True, False), ["black_box"]),
    ],
)
def test_transfer_that_beats_the_gradient_is_flagged(
    transfer: tuple[bool, ...], white: tuple[bool, ...], flags: list[str]
) -> None:
    stages = [stage("one", 10), stage("two", 3)]
    found = review(stages, white, 900, 1000, 10, transfer=transfer)
    assert [flag.name for flag in found] == flags
    assert all("broke 3 points" in flag.message for flag in found)


@pytest.mark.parametrize(
    ("passes", "strength", "used"),
    [
        (80 * 2 * 10, {"steps": 10}, True),
        (80 * 2 * 5, {"steps": 10}, True),
        (80 * 2 * 5 - 1, {"steps": 10}, False),
        (80 * 2 * 49, {"queries": 100}, False),
        (80 * 2 * 15, {"least_steps": 15, "steps": 40}, True),
        (80 * 2 * 7, {"least_steps": 15, "steps": 40}, False),
        (0, {}, True),
    ],
)
def test_a_budget_left_unused_is_flagged(passes: int, strength: dict[str, int], used: bool) -> None:
    found = review([stage("lazy", 20, passes, **strength)], [True], 900, 1000, 10)
    assert [flag.name for flag in found] == ([] if used else ["unused_budget"])
    if not used:
        assert f"lazy left 80 points after {passes} passes" in found[0].message


class TestTheCatalog:
    def test_names_every_flag_that_is_raised_and_no_other(self) -> None:
        names = set()
        for path in (ROOT / "robustkit").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("flag", "Flag"):
                    continue
                given = node.args[:1] or [k.value for k in node.keywords if k.arg == "name"]
                names |= {str(a.value) for a in given if isinstance(a, ast.Constant)}
        assert names == set(FLAGS)

    def test_is_sorted_into_severities(self) -> None:
        assert {kind.severity for kind in FLAGS.values()} == {"note", "suspicious", "unreliable"}
        assert reliability([]) == reliability(["scaled_logits"]) == "reliable"
        assert reliability(["randomized"]) == "suspicious"
        assert reliability(["randomized", "huge_eps"]) == "unreliable"
        assert reliability(["of another version"]) == "suspicious"

    def test_what_the_attacks_answered_weighs_a_step_less(self) -> None:
        assert reliability(["huge_eps", "saturated"], ["huge_eps"]) == "suspicious"
        assert reliability(["saturated"], ["saturated"]) == "reliable"
        assert reliability(["huge_eps", "stateful"], ["huge_eps"]) == "unreliable"
        assert reliability(["scaled_logits"], ["scaled_logits"]) == "reliable"
        assert reliability(["black_box", "transfer"], ["black_box", "transfer"]) == "suspicious"
        assert reliability(["black_box", "transfer"], ["transfer"]) == "unreliable"
        assert worse("unreliable", "suspicious")
        assert not worse("reliable", "reliable")

    def test_is_in_the_glossary(self) -> None:
        told = dict(FLAG_GLOSSARY)
        for name, kind in FLAGS.items():
            assert kind.raised in told[name]
            assert kind.remedy in told[name]

    def test_is_in_the_reference(self) -> None:
        lines = (ROOT / "docs" / "reference" / "flags.md").read_text("utf-8").splitlines()
        table = [line for line in lines if re.match(r"\| `\w+` \| (note|suspicious|unrel)", line)]
        assert table == [
            f"| `{kind.name}` | {kind.severity} | {kind.raised} | {kind.remedy} |"
            for kind in FLAGS.values()
        ]
