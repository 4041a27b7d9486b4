"""SPSA, HopSkipJump, RayS: what they see, how many queries they make, what they find."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Norm, Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.integrations.conformance.fixtures import Rows
from robustkit.integrations.conformance.fixtures import points as ground
from robustkit.registry import attacks
from robustkit.search.functional import attack
from robustkit.search.protocol import Reply, Search, Tasks
from robustkit.search.query import passes
from robustkit.search.tasks import fresh_tasks

NORMS: tuple[Norm, ...] = ("linf", "l2")
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.8}


class PassCounter(nn.Module):
    """Counts its input rows."""

    def __init__(self, inner: nn.Module, squash: Any = lambda z: z) -> None:
        super().__init__()
        self.inner, self.squash, self.queries = inner, squash, 0

    def forward(self, x: Tensor) -> Tensor:
        self.queries += len(x)
        logits: Tensor = self.squash(self.inner(x))
        return logits


class Report(PassCounter):
    """Answers with the class alone, and declares what answers with logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, one_hot)
        self.soft = PassCounter(inner)

    def surrogates(self) -> dict[str, Any]:
        return {"soft": self.soft}


def rows() -> tuple[Rows, Tensor, Tensor]:
    model = Rows().eval().requires_grad_(False)
    x, y = ground(model)
    right = model(x).argmax(1) == y
    return model, x[right], y[right]


def left(model: nn.Module, z: Tensor, y: Tensor) -> int:
    return int((model(z).argmax(1) == y).sum())


def one_hot(logits: Tensor) -> Tensor:
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def _tasks(
    model: nn.Module, x: Tensor, y: Tensor, search: Search[Any], threat: Threat
) -> Tasks:  # fmt: skip
    ranked = model(x).argsort(1, descending=True)
    jobs = list(search.jobs(threat, 4)) * len(x)
    return fresh_tasks(x, y, ranked, torch.arange(len(x)), jobs, "a", 0)


@pytest.mark.parametrize("norm", NORMS)
def test_the_estimate_points_along_the_gradient(norm: Norm) -> None:
    model, x, y = rows()
    threat, search = Threat(norm, 0.02), attacks.build("spsa(pairs=400, steps=1)")
    middle = (x / 4 + 0.4).requires_grad_(True)  # away from the box, where nothing is clipped
    state = search.start(_tasks(model, middle.detach(), y, search, threat), threat)
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
    counting = PassCounter(model)
    z = attack(counting, x, y, attacks.build(spec), Threat(norm, 1e-5))
    assert torch.equal(z, x)
    assert counting.queries == len(x) * (1 + budget)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"), [("hopskipjump", "linf"), ("hopskipjump", "l2"), ("rays", "linf")]
)
def test_it_sees_the_class_alone(name: str, norm: Norm) -> None:
    model, x, y = rows()
    search, threat = attacks.build(f"{name}(queries=120)"), Threat.whole(norm, 36)
    plain = attack(model, x, y, search, threat, nearest=True)
    hidden = attack(PassCounter(model, one_hot), x, y, search, threat, nearest=True)
    assert torch.equal(plain, hidden)


@functools.cache
def by_hopskipjump(norm: Norm) -> Tensor:
    """The nearest inputs that 1,500 queries find."""
    model, x, y = rows()
    seek = attacks.build("hopskipjump(queries=1500)")
    return attack(model, x, y, seek, Threat.whole(norm, 36), nearest=True)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_hopskipjump_comes_near_what_gradients_find(norm: Norm) -> None:
    model, x, y = rows()
    threat = Threat.whole(norm, 36)
    blind = by_hopskipjump(norm)
    seeing = attack(model, x, y, attacks.build("fmn(steps=200)"), threat, nearest=True)
    assert left(model, blind, y) == 0
    ratio = threat.distance(blind, x) / threat.distance(seeing, x)
    assert 0.9 < float(ratio.median()) < 1.2


@pytest.mark.slow
def test_rays_finds_the_nearest_input_of_a_linear_model() -> None:
    """In linf it lies at margin / ‖w‖₁, and is reached along the signs of w."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(36, generator=generator)
    x = 0.5 + 0.02 * torch.randn(8, 1, 6, 6, generator=generator)

    def model(x: Tensor) -> Tensor:
        score = x.flatten(1) @ weight
        return torch.stack([score, -score], 1)

    y, threat = model(x).argmax(1), Threat.whole("linf", 36)
    z = attack(model, x, y, attacks.build("rays(queries=2000)"), threat, nearest=True)
    nearest = model(x).amax(1).abs() / weight.abs().sum()
    ratio = threat.distance(z, x) / nearest
    assert left(PassCounter(nn.Flatten(), lambda z: model(z)), z, y) == 0
    assert 1 <= float(ratio.min()) <= float(ratio.max()) < 1.01


def test_rays_gains_nothing_from_an_error_at_the_clean_point() -> None:
    """A random model errs there now and then; a direction of radius 0 would be no direction."""
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    search, threat = attacks.build("rays(queries=50)"), Threat("linf", 0.1)
    state = search.start(_tasks(Brightness(), x, y, search, threat), threat)
    wrong = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    state = search.step(state, Reply(wrong, wrong[:, 1], wrong), threat)
    assert bool((state.radius > 0).all())
    assert not bool((state.query == x).flatten(1).all(1).any())


class Brightness(nn.Module):
    """Two classes, by brightness."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(1) - 0.4
        return torch.stack([level, -level], 1)


@pytest.mark.slow
def test_rays_comes_nearer_than_hopskipjump() -> None:
    model, x, y = rows()
    threat = Threat.whole("linf", 36)
    rays = attack(model, x, y, attacks.build("rays(queries=1500)"), threat, nearest=True)
    ours, other = (threat.distance(z, x) for z in (rays, by_hopskipjump("linf")))
    assert float((ours / other).median()) < 1
    assert float((ours / other).max()) < 1.1


def test_rays_restarts_when_a_round_brings_nothing() -> None:
    """Only along ones is the model fooled: no turn of a block gains anything."""

    class Ones(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            low = x.flatten(1).amin(1) - 0.8
            return torch.stack([torch.zeros_like(low), low], 1)

    model, x, y = Ones(), torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    threat, search = Threat.whole("linf", 4), attacks.build("rays(queries=200)")
    state, starts = search.start(_tasks(model, x, y, search, threat), threat), []
    while not bool(state.done.all()):
        logits = model(state.query)
        run = state.run
        state = search.step(state, Reply(logits, logits[:, 0], logits), threat)
        if bool((state.run > run).all()):
            starts.append(state.signs)
    assert len(starts) >= 3
    assert bool((starts[0] == 1).all())  # again along ones, by columns
    assert any(bool((signs != 1).any()) for signs in starts[1:])
    z = attack(model, x, y, search, threat, nearest=True)
    assert threat.distance(z, x).tolist() == pytest.approx([0.3, 0.3], rel=0.01)


@pytest.mark.parametrize("name", ["rays", "square"])
def test_a_warm_start_follows_the_surrogate_where_the_model_has_no_gradient(name: str) -> None:
    """The model returns one-hot codes: only the surrogate has a gradient inside the ball."""
    model, x, y = rows()
    threat, few = Threat("linf", 0.1), "queries=20"
    plain = attack(Report(model), x, y, attacks.build(f"{name}({few})"), threat)
    guided = attack(Report(model), x, y, attacks.build(f"{name}({few}, surrogate=soft)"), threat)
    seeing = attack(model, x, y, attacks.build("apgd(loss=margin)"), threat)
    assert left(model, seeing, y) <= left(model, guided, y) < left(model, plain, y)
    assert left(model, guided, y) <= left(model, seeing, y) + 1


@pytest.mark.parametrize("name", ["rays", "square"])
def test_a_warm_start_is_counted_and_ends(name: str) -> None:
    model, x, y = rows()
    report = Report(model)
    search = attacks.build(f"{name}(queries=30, ahead=7, surrogate=soft)")
    z = attack(report, x, y, search, Threat("linf", 1e-6))
    assert torch.equal(z, x)
    assert report.soft.queries == 7 * len(x)
    assert report.queries == len(x) * (1 + 7 + 30)
    state = search.start(_tasks(model, x, y, search, Threat("linf", 1e-6)), Threat("linf", 1e-6))
    assert [int(torch.as_tensor(p).sum()) for p in passes(model, search, state)] == [
        2 * len(x),
        len(x),
    ]
    still = state._replace(left=torch.zeros_like(state.left))
    assert [int(torch.as_tensor(p).sum()) for p in passes(model, search, still)] == [len(x), 0]


@pytest.mark.parametrize("name", ["rays", "square"])
def test_with_a_warm_start_rows_do_not_influence_each_other(name: str) -> None:
    model, x, y = rows()
    search = attacks.build(f"{name}(queries=40, ahead=5, surrogate=soft)")
    whole, single = (
        attack(Report(model), x, y, search, Threat("linf", 0.03), slots=slots) for slots in (64, 3)
    )
    assert torch.equal(whole, single)
    assert left(model, whole, y) < len(x)


@pytest.mark.parametrize("spec", ["spsa", "hopskipjump(queries=1000)", "rays"])
@pytest.mark.slow
def test_rounded_inputs_do_not_stop_it(spec: str) -> None:
    """Gradients are zero everywhere; the answers change from step to step of 1/15."""
    model, x, y = rows()

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = model((x * 15).round() / 15)
            return logits

    rounded = Rounded()
    y = rounded(x).argmax(1)
    z = attack(rounded, x, y, attacks.build(spec), Threat("linf", 0.2))
    assert left(rounded, z, y) <= len(x) / 4
    blind = attack(rounded, x, y, attacks.build("apgd"), Threat("linf", 0.2))
    assert left(rounded, z, y) < left(rounded, blind, y)


def test_norms_without_a_warm_start_are_refused() -> None:
    with pytest.raises(UsageError, match=r"rays supports linf, got l2\. Use hopskipjump"):
        attacks.build("rays").jobs(Threat("l2", 1), 4)
    with pytest.raises(UsageError, match="square takes a warm start from a surrogate in linf"):
        attacks.build("square(surrogate=soft)").jobs(Threat("l1", 1), 4)


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
    counting, threat = PassCounter(hardened).eval(), Threat.whole(norm, 784)
    wrapped = foolbox.PyTorchModel(counting, bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = foolbox.attacks.HopSkipJumpAttack(steps=4, constraint=norm)
        other = (y[:, None] != y).int().argmax(1)
        _, reference, _ = theirs(wrapped, x, y, epsilons=None, starting_points=x[other])
    seek = attacks.build(f"hopskipjump(queries={counting.queries // len(x)})")
    found = attack(hardened, x, y, seek, threat, nearest=True)
    ours, other = (threat.distance(z, x).median() for z in (found, reference))
    assert left(hardened, found, y) == 0
    assert float(ours) <= 1.1 * float(other)
