"""What every registered attack and defense must do, found through the registry."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.core.spec import Spec
from robustkit.core.threat import Norm, Threat
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.protocols import assemble, learned
from robustkit.models.surrogates.resolve import declared
from robustkit.models.training import Step
from robustkit.registry import attacks, defenses, suites
from robustkit.search.engine import Engine
from robustkit.search.functional import attack
from robustkit.search.protocol import Job, Search, Tasks, needs_no_norm
from robustkit.search.tasks import Outcome, Work, fresh_tasks

THREATS = [Threat("linf", 0.04), Threat("l2", 0.35), Threat("l1", 1.8), Threat("l0", 3)]
SMALL = {
    "steps": 8,
    "queries": 30,
    "targets": 2,
    "pairs": 8,
    "legs": 2,
    "probes": 2,
    "neighbors": 2,
    "blocks": 1,  # of pictures of 6 x 6, shuffled blocks show nothing
}


def small(name: str, **more: Any) -> Search[Any]:
    """Build an attack with a budget that takes milliseconds."""
    known = attacks.entry(name).options
    options = {**{key: value for key, value in SMALL.items() if key in known}, **more}
    if known.get("eot", 1) > 2:
        options["eot"] = 2
    built: Search[Any] = attacks.build(Spec(name, tuple(sorted(options.items()))))
    return built


def supports(name: str, threat: Threat) -> bool:
    try:
        return bool(small(name).jobs(threat, 4))
    except UsageError:
        return False


PAIRS = [
    pytest.param(name, threat, id=f"{name}-{threat.norm}")
    for name in attacks
    for threat in THREATS
    if supports(name, threat)
]


class Rows(nn.Module):
    """Smooth, four classes, and every row's bits are its own: no kernel mixes the rows."""

    offset: Tensor

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.first = nn.Parameter(torch.randn(12, 36, generator=draw) / 6)
        self.second = nn.Parameter(torch.randn(4, 12, generator=draw))
        self.linear = nn.Parameter(2 * prototypes.flatten(1))
        self.register_buffer("offset", -prototypes.flatten(1).square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, None]
        hidden = (flat * self.first).sum(2).tanh()[:, None]
        logits: Tensor = (flat * self.linear).sum(2) + (hidden * self.second).sum(2) + self.offset
        return logits


@pytest.fixture
def model(prototypes: Tensor) -> Rows:
    return Rows(prototypes).eval()


@pytest.fixture
def points(model: Rows, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """24 points that the model gets right, but for every fifth."""
    draw = torch.Generator().manual_seed(3)
    x = 0.4 * prototypes[torch.arange(24) % 4] + 0.6 * torch.rand(24, 1, 6, 6, generator=draw)
    y = model(x).argmax(1)
    return x, torch.where(torch.arange(24) % 5 == 2, (y + 1) % 4, y)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_attack_returns_points_of_the_threat_model(
    name: str, threat: Threat, batch: int, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    search = small(name)
    x, y = points[0][:batch], points[1][:batch]
    clean = x.clone()
    z = attack(model, x, y, search, threat, seed=1, slots=5)
    assert torch.equal(x, clean)
    assert (z.shape, z.dtype, z.device) == (x.shape, x.dtype, x.device)
    assert bool(z.isfinite().all())
    assert bool(threat.contains(z, x).all())
    right, robust = (model(images).argmax(1) == y for images in (x, z))
    changed = (z != x).flatten(1).any(1)
    assert torch.equal(changed, right & ~robust)  # wrong from the start, or robust: unchanged
    assert torch.equal(attack(model, x, y, search, threat, seed=1, slots=5), z)


@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_attacks_work_at_a_larger_radius(
    name: str, threat: Threat, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    """Any attack that does something breaks most points here."""
    search, (x, y) = small(name), points
    wide = Threat(threat.norm, 5 * threat.eps)
    before = (model(x).argmax(1) == y).sum()
    after = (model(attack(model, x, y, search, wide)).argmax(1) == y).sum()
    assert int(after) <= int(before) / 3


@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_random_attacks_follow_their_seed(
    name: str, threat: Threat, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    search, (x, y) = small(name), points
    job = search.jobs(threat, 4)[0]

    def first(seed: int) -> Tensor:
        ranked = model(x).argsort(1, descending=True)
        index = torch.arange(len(x))
        tasks = fresh_tasks(x, y, ranked, index, [job] * len(x), name, seed)
        query: Tensor = search.start(tasks, threat).query
        return query

    assert torch.equal(first(0), first(0))
    random = not torch.equal(first(0), x)
    assert random == (not torch.equal(first(0), first(1)))


@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_attacks_do_not_touch_the_model(name: str, threat: Threat) -> None:
    search = small(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
            nn.Linear(64, 4),
        )  # fmt: skip
        x = torch.rand(6, 1, 6, 6)
    model.eval()
    model[0].train()  # without consequence for a convolution; the flag must survive all the same
    model[5].bias.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [layer.training for layer in model.modules()]
    attack(model, x, model(x).argmax(1), search, threat, slots=4)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [layer.training for layer in model.modules()] == modes
    assert all(p.requires_grad == (p is not model[5].bias) for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())


class Judge:
    """A verifier over points with an identity of their own."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, jobs: Sequence[Job]) -> None:
        self.x, self.y, self.jobs = x, y, jobs
        self.ranked = model(x).argsort(1, descending=True)
        self.found: dict[int, Tensor] = {}
        self.outcomes: list[Outcome] = []

    def tasks(self, work: Sequence[Work]) -> Tasks:
        index = torch.tensor([item.point for item in work])
        jobs = [self.jobs[item.job] for item in work]
        return fresh_tasks(
            self.x[index], self.y[index], self.ranked[index], index, jobs, "contract", 0
        )

    def confirm(self, work: Sequence[Work], z: Tensor, x: Tensor, y: Tensor) -> list[bool]:
        self.found.update({item.point: row for item, row in zip(work, z, strict=True)})
        return [True] * len(work)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes


@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_verdicts_do_not_depend_on_order_and_slots(
    name: str, threat: Threat, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    """Nor, where a point has one job, do the adversarial inputs, bit for bit."""
    search, (x, y) = small(name), points
    jobs = search.jobs(threat, 4)
    right = (model(x).argmax(1) == y).nonzero().flatten().tolist()[:10]
    queue = [Work(point, job) for job in range(len(jobs)) for point in right]
    shuffled = [queue[i] for i in torch.randperm(len(queue), generator=generator(0, 0, 0)).tolist()]
    runs = []
    for order, slots in ((queue, 64), (queue, 7), (queue[::-1], 1), (shuffled, 5)):
        judge = Judge(model, x, y, jobs)
        Engine(model, threat, slots).run(search, iter(order), len(order), judge)
        runs.append(judge)
        assert judge.found.keys() == runs[0].found.keys()
        if len(jobs) == 1:
            assert all(torch.equal(z, runs[0].found[point]) for point, z in judge.found.items())
            assert sorted(judge.outcomes) == sorted(runs[0].outcomes)
    assert {item.work.point for item in runs[0].outcomes} == set(right)


@pytest.mark.parametrize("name", list(attacks))
def test_attacks_support_a_norm_or_say_that_they_do_not(name: str) -> None:
    support = {threat.norm: supports(name, threat) for threat in THREATS}
    assert any(support.values()) or needs_no_norm(small(name))
    for threat in THREATS:
        if not support[threat.norm]:
            with pytest.raises(UsageError, match=f"{name} supports .*, got {threat.norm}"):
                small(name).jobs(threat, 10)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "threat"), PAIRS)
def test_attacks_are_defined_for_two_and_three_classes(
    name: str, threat: Threat, classes: int, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    search, x = small(name), points[0][:6]
    ranks = [job.rank for job in search.jobs(threat, classes)]
    assert max(ranks) < classes

    def few(z: Tensor) -> Tensor:
        logits: Tensor = model(z)[:, :classes]
        return logits

    z = attack(few, x, few(x).argmax(1), search, Threat(threat.norm, 4 * threat.eps))
    assert bool(z.isfinite().all())
    assert bool((few(z).argmax(1) != few(x).argmax(1)).any())


LOSSES = [name for name in attacks if "loss" in attacks.entry(name).options
          and not needs_no_norm(attacks.build(name))]  # fmt: skip


@pytest.mark.parametrize(
    "loss", ["ce", "dlr", "targeted_dlr", "margin", "targeted_margin", "probability"]
)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_attacks(
    name: str, loss: str, model: Rows, points: tuple[Tensor, Tensor]
) -> None:
    usual: Norm = "l1" if name == "apgd_l1" else "l2" if name == "ddn" else "linf"
    threat = next(Threat(usual, 4 * t.eps) for t in THREATS if t.norm == usual)
    x, y = points
    search = small(name, loss=loss)
    ranks = {job.rank for job in search.jobs(threat, 4)}
    assert ranks == ({1, 2} if loss.startswith("targeted") else {0})
    z = attack(model, x, y, search, threat)
    before, after = ((model(images).argmax(1) == y).sum() for images in (x, z))
    assert int(after) < int(before) / 2


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", list(suites))
def test_suites_list_attacks_that_support_the_norm(name: str, threat: Threat) -> None:
    without = ("adaptive", "fast", "parity", "plus", "rand", "scores", "standard")
    if threat.norm == "l0" and name in without:
        with pytest.raises(UsageError, match=f"suite {name} is not defined for l0.* sigma_zero"):
            suites.build(name).attacks(threat)
        return
    if needs_no_norm(suites.build(name)):
        with pytest.raises(UsageError, match=f"{name} supports .*, got {threat.norm}"):
            suites.build(name).attacks(threat)
        return
    specs = suites.build(name).attacks(threat)
    assert len(set(specs)) == len(specs) > 0
    for spec in specs:
        assert attacks.build(spec).jobs(threat, 10)
        assert attacks.build(spec).jobs(threat, 2)


def is_network(name: str) -> bool:
    return hasattr(defenses.entry(name).target, "network")


# Those for one data set have tests of their own, and `robustkit check` tries them on that.
ANY_DATA = [name for name in defenses if "data" not in defenses.entry(name).facts]


@pytest.mark.parametrize("name", [name for name in ANY_DATA if is_network(name)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
def test_defenses_can_be_trained_and_evaluated(name: str, shape: tuple[int, int, int]) -> None:
    options = {"width": 4} if "width" in defenses.entry(name).options else {}
    defense = defenses.build(Spec(name, tuple(options.items())))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = defense.network(shape, 3)
        x, y = torch.rand(5, *shape), torch.tensor([0, 1, 2, 1, 0])
    assert defense.recipe.epochs >= 1
    flags = [p.requires_grad for p in network.parameters()]
    assert all(flags)

    network.train()
    for progress in (0.0, 0.5, 1.0):
        loss = defense.objective(network, x, y, Step(progress, generator(0, 1, 0)))
        again = defense.objective(network, x, y, Step(progress, generator(0, 1, 0)))
        assert loss.ndim == 0
        assert bool(loss.isfinite())
        assert torch.equal(loss, again)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        assert all(bool(g.isfinite().all()) for g in gradients)
        assert all(bool(g.any()) for g in gradients[-2:])
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())

    network.eval()
    logits = network(x)
    assert logits.shape == (5, 3)
    assert bool(logits.isfinite().all())
    if getattr(network, "randomized", False):
        assert not torch.equal(network(x), logits)
        return
    assert torch.equal(network(x), logits)
    torch.testing.assert_close(network(x[2:3]), logits[2:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ANY_DATA if not is_network(name)])
def test_composed_defenses_answer_and_learn_their_own_part(name: str) -> None:
    defense = defenses.build(name)
    data = open_dataset(defenses.entry(name).facts.get("data", "bundled"))
    model = assemble(defense, data).eval()
    x, y = data.fetch([0, 1, 2, 3])
    logits = model(x)
    assert logits.shape == (4, data.classes)
    assert bool(logits.isfinite().all())
    for surrogate in declared(model).values():
        query = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(surrogate(query).square().sum(), query)
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())
    part = learned(defense, model)
    if part is None or not hasattr(defense, "objective"):
        return
    own, state = dict(part.named_parameters()), copy.deepcopy(model.state_dict())
    model.train()
    step = Step(0.5, generator(0, 1, 0))
    loss = defense.objective(model, x, y, step)
    found = torch.autograd.grad(loss, list(own.values()))
    assert bool(loss.isfinite())
    assert all(bool(g.isfinite().all()) for g in found)
    others = set(dict(model.named_parameters())) - {
        key for key, p in model.named_parameters() if any(p is q for q in own.values())
    }
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in others)
