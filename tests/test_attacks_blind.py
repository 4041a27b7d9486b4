"""SPSA and HopSkipJump: what they see, how many queries they ask, how far they get."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.conformance.ground import Rows
from robustkit.conformance.ground import points as ground
from robustkit.data import Dataset
from robustkit.errors import UsageError
from robustkit.plain import attack
from robustkit.registry import attacks
from robustkit.search import Reply
from robustkit.slots import fresh_tasks
from robustkit.threat import Norm, Threat

NORMS: tuple[Norm, ...] = ("linf", "l2")
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8}


class Counting(nn.Module):
    """Counts the inputs that it is asked about."""

    def __init__(self, inner: nn.Module, squash: Any = lambda z: z) -> None:
        super().__init__()
        self.inner, self.squash, self.asked = inner, squash, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        logits: Tensor = self.squash(self.inner(x))
        return logits


def rows() -> tuple[Rows, Tensor, Tensor]:
    model = Rows().eval().requires_grad_(False)
    x, y = ground(model)
    right = model(x).argmax(1) == y
    return model, x[right], y[right]


def left(model: nn.Module, z: Tensor, y: Tensor) -> int:
    return int((model(z).argmax(1) == y).sum())


def one_hot(logits: Tensor) -> Tensor:
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


@pytest.mark.parametrize("norm", NORMS)
def test_the_estimate_points_along_the_gradient(norm: Norm) -> None:
    model, x, y = rows()
    threat, search = Threat(norm, 0.02), attacks.build("spsa(pairs=400, steps=1)")
    middle = (x / 4 + 0.4).requires_grad_(True)  # away from the box, where nothing is clipped
    ranked = model(middle).detach().argsort(1, descending=True)
    tasks = fresh_tasks(
        middle.detach(), y, ranked, torch.arange(len(x)), search.jobs(threat, 4) * len(x), "a", 0
    )
    state = search.start(tasks, threat)
    base = state.query.requires_grad_(True)
    (gradient,) = torch.autograd.grad(search.objective(model(base), state).sum(), base)
    for _ in range(800):
        value = search.objective(model(state.query.detach()), state)
        state = search.step(state, Reply(value[:, None], value, value), threat)
    along = nn.functional.cosine_similarity(state.total.flatten(1), gradient.flatten(1))
    # The clipped start leaves part of the coordinates with one-sided differences.
    assert float(along.median()) > (0.8 if norm == "linf" else 0.9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("spec", "budget"),
    [("spsa(steps=3, pairs=4)", 36), ("spsa(steps=2, pairs=3, restarts=2)", 42),
     ("hopskipjump(queries=50)", 50)],
)  # fmt: skip
def test_a_survivor_costs_the_budget(spec: str, budget: int, norm: Norm) -> None:
    model, x, y = rows()
    counting = Counting(model)
    z = attack(counting, x, y, attacks.build(spec), Threat(norm, 1e-5))
    assert torch.equal(z, x)
    assert counting.asked == len(x) * (1 + budget)


@pytest.mark.parametrize("norm", NORMS)
def test_hopskipjump_sees_the_class_alone(norm: Norm) -> None:
    model, x, y = rows()
    search, threat = attacks.build("hopskipjump(queries=300)"), Threat.whole(norm, 36)
    plain = attack(model, x, y, search, threat, nearest=True)
    hidden = attack(Counting(model, one_hot), x, y, search, threat, nearest=True)
    assert torch.equal(plain, hidden)


@pytest.mark.parametrize("norm", NORMS)
def test_hopskipjump_comes_near_what_gradients_find(norm: Norm) -> None:
    model, x, y = rows()
    threat = Threat.whole(norm, 36)
    seek = attacks.build("hopskipjump(queries=1500)")
    blind = attack(model, x, y, seek, threat, nearest=True)
    seeing = attack(model, x, y, attacks.build("fmn(steps=200)"), threat, nearest=True)
    assert left(model, blind, y) == 0
    ratio = threat.distance(blind, x) / threat.distance(seeing, x)
    assert 0.9 < float(ratio.median()) < 1.2


@pytest.mark.parametrize("name", ["spsa", "hopskipjump"])
def test_rounded_inputs_do_not_stop_it(name: str) -> None:
    """Gradients are zero everywhere; the answers change from step to step of 1/15."""
    model, x, y = rows()

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model((x * 15).round() / 15)
            return logits

    rounded = Rounded()
    y = rounded(x).argmax(1)
    z = attack(rounded, x, y, attacks.build(name), Threat("linf", 0.2))
    assert left(rounded, z, y) <= len(x) / 4
    blind = attack(rounded, x, y, attacks.build("apgd"), Threat("linf", 0.2))
    assert left(rounded, z, y) < left(rounded, blind, y)


@pytest.mark.parametrize("name", ["spsa", "hopskipjump"])
def test_other_norms_are_refused(name: str) -> None:
    others: tuple[Norm, ...] = ("l1", "l0")
    for norm in others:
        with pytest.raises(UsageError, match=f"{name} supports linf and l2, got {norm}"):
            attacks.build(name).jobs(Threat(norm, 1), 4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_distances_are_as_short_as_foolbox_finds(
    norm: Norm, hardened: nn.Module, bundled: Dataset
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foolbox = pytest.importorskip("foolbox")
    x, y = bundled.fetch(range(0, 1000, 100))
    right = hardened(x).argmax(1) == y
    x, y = x[right], y[right]
    counting, threat = Counting(hardened).eval(), Threat.whole(norm, 784)
    wrapped = foolbox.PyTorchModel(counting, bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = foolbox.attacks.HopSkipJumpAttack(steps=6, constraint=norm)
        other = (y[:, None] != y).int().argmax(1)
        _, reference, _ = theirs(wrapped, x, y, epsilons=None, starting_points=x[other])
    seek = attacks.build(f"hopskipjump(queries={counting.asked // len(x)})")
    found = attack(hardened, x, y, seek, threat, nearest=True)
    ours, other = (threat.distance(z, x).median() for z in (found, reference))
    assert left(hardened, found, y) == 0
    assert float(ours) <= 1.1 * float(other)
