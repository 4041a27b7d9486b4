"""Components and prototypes: the model, its certificates by formula, its surrogate."""

from __future__ import annotations

import importlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.certify.certifier import build_certifier
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.models.load import load_model
from robustkit.models.training import Step
from robustkit.registry import attacks, defenses
from robustkit.search.functional import attack

defenses.entries()  # the pack has to be loaded before its modules are asked for
bounds: Any = importlib.import_module("robustkit.defenses._component_bounds")
glvq: Any = importlib.import_module("robustkit.defenses.glvq")
Components: Any = importlib.import_module("robustkit.defenses._components").Components
radius, KINDS = bounds.radius, bounds.KINDS

FORMS = [(positive, squared) for positive in (False, True) for squared in (False, True)]
forms = pytest.mark.parametrize(("positive", "squared"), FORMS)


def spread(seed: int, *, positive: bool = False, squared: bool = False, f: int = 6) -> Any:
    """Three classes of two concepts, with components, widths and weights that differ."""
    torch.manual_seed(seed)
    net = Components(f, 3, 5, 2, positive=positive, squared=squared)
    with torch.no_grad():
        net.w.uniform_(0, 1)
        net.raw.uniform_(0.3, 1.5)
        net.reasoning.normal_(0, 1.5)
    return net.requires_grad_(False)


def points(net: Any, b: int = 24, f: int = 6) -> tuple[Tensor, Tensor]:
    """Points with the labels that the network gives them."""
    x = torch.rand(b, f, generator=torch.Generator().manual_seed(1))
    return x, net(x).argmax(1)


@forms
def test_the_logits_are_log_p_of_the_equations(positive: bool, squared: bool) -> None:
    net = spread(0, positive=positive, squared=squared)
    x, _ = points(net)
    both = net.reasoning.double().softmax(0)
    present, absent = (both, 0 * both) if positive else both.chunk(2)
    assert torch.allclose((present + absent).sum(0), torch.ones(6).double())
    delta = torch.stack([(x - w).norm(dim=1) for w in net.w], 1).double()
    d = (-(delta**2 if squared else delta) / net.sigma).exp()
    p = d @ present + (1 - d) @ absent
    assert bool(((p >= 0) & (p <= 1)).all())
    expected = p.view(-1, 3, 2).amax(2).log()
    assert torch.allclose(net(x).double(), expected, rtol=0, atol=1e-5)


@forms
def test_radii_grow_from_published_to_curved_and_end_at_the_boundary(
    positive: bool, squared: bool
) -> None:
    shares = []
    for seed in range(4):
        net = spread(seed, positive=positive, squared=squared)
        x, y = points(net)
        curved, bisect, net_form, published = (radius(net, x, y, kind) for kind in KINDS)
        assert bool((published <= net_form + 1e-9).all())
        assert bool((net_form <= bisect + 1e-6).all())
        assert bool((bisect <= curved).all())
        assert bool((published > 0).all())
        shares.append([float((published / bisect).mean()), float((bisect / curved).mean())])
        wrong = (y + 1) % 3
        assert bool((radius(net, x, wrong, "published") < 0).all())
        assert bool((radius(net, x, wrong, "net") < 0).all())
        assert bool((radius(net, x, wrong) == 0).all())
    assert bool((torch.tensor(shares).mean(0) < 0.95).all())  # that they differ at all


@forms
def test_the_formula_is_that_of_the_theorem(positive: bool, squared: bool) -> None:
    net = spread(3, positive=positive, squared=squared)
    x, y = points(net, 4)
    weights, delta = net.columns(), net.distances(x)
    present = weights.present
    absent = torch.zeros_like(present) if weights.absent is None else weights.absent
    sigma, found = float(net.sigma.min()), []
    for n, label in enumerate(y.tolist()):
        d, radii = net.exponents(delta)[n].exp(), {}
        for j in (j for j in range(6) if j // 2 != label):
            for i in (2 * label, 2 * label + 1):
                p = float(d @ (present[:, i] + absent[:, j]))
                m = float(d @ (present[:, j] + absent[:, i]))
                b = float((absent[:, i] - absent[:, j]).sum())
                root = math.sqrt(b * b + 4 * m * p)
                t = (b + root) / (2 * m) if b > 0 else 2 * p / (root - b)
                r, far = sigma * math.log(t), float(delta[n].max())
                if squared:
                    r = math.copysign(-far / 3 + math.sqrt(far**2 / 9 + abs(r) / 3), r)
                radii[i, j] = r
        wrong = {j for _, j in radii}
        found.append(min(max(r for (_, k), r in radii.items() if k == j) for j in wrong))
    expected = torch.tensor(found, dtype=torch.float64)
    assert torch.allclose(radius(net, x, y, "published"), expected, rtol=1e-9)


@forms
def test_no_point_within_the_radius_is_misclassified(positive: bool, squared: bool) -> None:
    for seed in range(6):
        net = spread(seed, positive=positive, squared=squared)
        x, y = points(net, 12)
        r = radius(net, x, y)
        way = torch.randn(400, *x.shape)
        way = way / way.norm(dim=2, keepdim=True)
        z = x + (0.9999 * r[:, None] * way)
        assert bool((net(z.flatten(0, 1).float()).view(400, 12, 3).argmax(2) == y).all())


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_fifty_restarts_break_no_certified_point(norm: Any) -> None:
    name = "apgd_l1" if norm == "l1" else "apgd"
    search = attacks.build(f"{name}(loss=margin, steps=8, restarts=50)")
    for net in (spread(1), spread(2, positive=True, squared=True)):
        x, y = points(net, 6)
        for n in range(6):
            one, label = x[n : n + 1], y[n : n + 1]
            proof = build_certifier(net, (6,), Threat(norm, 1.0), "components")
            assert proof is not None
            low, high = 0.0, 2.0
            for _ in range(30):
                middle = (low + high) / 2
                ok = middle > 0 and bool(proof.at(Threat(norm, middle)).prove(one, label))
                low, high = (middle, high) if ok else (low, middle)
            assert low > 0.001
            z = attack(net, one, label, search, Threat(norm, 0.999 * low))
            assert int(net(z).argmax(1)) == int(label)


def line() -> Any:
    """Two components on a line, one for each class."""
    net = Components(1, 2, 2, 1, positive=True)
    with torch.no_grad():
        net.w.copy_(torch.tensor([[0.1], [0.8]]))
        net.raw.copy_(torch.tensor([0.5, 0.2]))
        net.reasoning.copy_(torch.tensor([[3.0, -2.0], [-2.0, 3.0]]))
    return net.requires_grad_(False)


def test_on_a_line_bisect_is_the_distance_to_the_boundary() -> None:
    net = line()
    x = torch.linspace(0.15, 0.75, 13)[:, None]
    y = net(x).argmax(1)
    grid = torch.linspace(-1, 2, 300_001)[:, None]
    classes = net(grid).argmax(1)
    for one, label, found in zip(x, y, radius(net, x, y), strict=True):
        true = float((grid - one).abs()[classes != label].min())
        assert abs(true - float(found)) < 2e-5
        beyond = one + 1.05 * true * torch.tensor([[-1.0], [1.0]])
        assert bool((net(beyond).argmax(1) != label).any())


def test_over_a_box_the_extremes_are_exact_and_beat_the_ball_around_it() -> None:
    net = spread(4)
    x, y = points(net, 40)
    eps, ball = Threat("linf", 0.08), Threat("l2", 0.08 * math.sqrt(6))
    inner = build_certifier(net, (6,), eps, "components")
    outer = build_certifier(net, (6,), ball, "components")
    assert inner is not None
    assert outer is not None
    proved, less = inner.prove(x, y), outer.prove(x, y)
    assert bool((proved | ~less).all())
    assert int(proved.sum()) > int(less.sum())
    sign = torch.randint(-1, 2, (2000, *x.shape))
    z = (x + 0.08 * sign).clamp(0, 1)
    right = (net(z.flatten(0, 1)).view(2000, 40, 3).argmax(2) == y).all(0)
    assert bool((right | ~proved).all())


def test_looser_certificates_are_certificates_of_their_own() -> None:
    net = spread(5)
    x, y = points(net, 64)
    for eps in (0.02, 0.05, 0.1):
        held = []
        for name in (*(f"components-{kind}" for kind in KINDS[:0:-1]), "components"):
            proof = build_certifier(net, (6,), Threat("l2", eps), name)
            assert proof is not None
            assert (proof.name, proof.method) == (name, name)
            held.append(proof.prove(x, y))
        assert all(bool((tight | ~loose).all()) for loose, tight in pairwise(held))
        assert int(held[0].sum()) < int(held[3].sum())


def test_a_tie_in_float32_is_no_proof() -> None:
    net = line()
    low, high = 0.2, 0.8  # between them lies the boundary
    for _ in range(80):
        middle = (low + high) / 2
        z = net(torch.tensor([[middle]], dtype=torch.float64))
        low, high = (middle, high) if bool(z[0, 0] > z[0, 1]) else (low, middle)
    x = torch.tensor([[low]]) - torch.tensor([[0.0], [1e-7], [1e-3]])
    y = torch.zeros(3, dtype=torch.long)
    proof = build_certifier(net, (1,), Threat("l2", 1e-8), "auto")
    assert proof is not None
    # The tolerance of a threat model for float32 points, 6e-8, counts.
    assert proof.prove(x, y).tolist() == [False, False, True]


@pytest.mark.parametrize("positive", [False, True])
def test_widths_of_almost_nothing_do_not_underflow(positive: bool) -> None:
    net = spread(6, positive=positive)
    net.raw.fill_(1e-5)
    x, y = points(net)
    z = net(x.requires_grad_(True))
    (gradient,) = torch.autograd.grad(z.amax(1).sum(), x)
    assert bool(z.isfinite().all())
    assert bool(gradient.isfinite().all())
    if positive:  # nearly the nearest component: p is of the order of exp(-30000)
        assert float(z.detach().max()) < -5000
        assert bool((radius(net, x, y) > 0).any())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("kind", ["published", "net"])
def test_the_gradient_of_a_radius_is_finite_where_p_or_n_is_nothing(
    squared: bool, kind: str
) -> None:
    net = spread(7, squared=squared).requires_grad_(True)
    x, y = points(net, 6)
    for logits in ([900.0, -900.0], [0.0, 0.0], [-900.0, 900.0]):
        with torch.no_grad():
            net.reasoning.zero_()
            net.reasoning[:, :2] = logits[0]
            net.reasoning[3, :] = logits[1]
            net.reasoning[8, 2:] = 900.0
            net.w[0] = x[0]  # a component on a point
        for labels in (y, (y + 1) % 3):
            loss = (1.58 - radius(net, x, labels, kind)).relu().mean()
            found = torch.autograd.grad(loss, list(net.parameters()))
            assert bool(loss.isfinite())
            assert all(bool(g.isfinite().all()) for g in found)


def test_a_wider_component_is_proved_farther() -> None:
    net = spread(8)
    x, y = points(net)
    before = radius(net, x, y)
    net.w.mul_(2)  # twice the distances and twice the widths: the same detections
    net.raw.mul_(2)
    assert torch.allclose(radius(net, 2 * x, y), 2 * before, rtol=1e-5)


@pytest.mark.parametrize("options", ["margin=0.3", "robust=0.5", "robust=0.5, reasoning=positive"])
def test_training_separates_two_heaps(options: str) -> None:
    torch.manual_seed(0)
    defense = defenses.build(f"cbc(components=4, concepts=1, {options})")
    net = defense.network((1, 4, 4), 2)
    weights = list(net.parameters())
    y = torch.randint(0, 2, (64,))
    x = (0.25 + 0.5 * y.view(-1, 1, 1, 1) + 0.1 * torch.randn(64, 1, 4, 4)).clamp(0, 1)
    for _ in range(60):  # no optimizer: torch.optim takes two seconds to import
        loss = defense.objective(net, x, y, Step(0.5, torch.Generator()))
        for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            p.data -= 0.02 * g / g.abs().max()
    net.requires_grad_(False)
    assert float((net(x).argmax(1) == y).float().mean()) > 0.95
    if "robust" in options:
        assert float(radius(net, x, y).median()) > 0.3


@pytest.mark.parametrize("each", [1, 3])
def test_prototypes_are_certified_to_the_plane_between_them(each: int) -> None:
    torch.manual_seed(each)
    net = glvq.Prototypes(6, 3, each).requires_grad_(False)
    net.w.uniform_(0, 1)
    x, y = points(net, 40)
    r, published = glvq.radius(net, x, y), glvq.radius(net, x, y, published=True)
    assert bool((published <= r + 1e-9).all())
    assert bool((glvq.radius(net, x, (y + 1) % 3) < 0).all())
    way = torch.randn(400, *x.shape)
    z = x + 0.9999 * r[:, None] * way / way.norm(dim=2, keepdim=True)
    assert bool((net(z.flatten(0, 1).float()).view(400, 40, 3).argmax(2) == y).all())
    if each == 1:  # a step across the plane finds the other class
        w = net.w
        to = net.distances(x).scatter(1, y[:, None], torch.inf)
        reached = torch.zeros(40, dtype=torch.bool)
        for j in range(3):
            step = w[j] - w[y]
            step = step / step.norm(dim=1, keepdim=True).clamp_min(1e-12)
            moved = (x + 1.0001 * r[:, None] * step).float()
            reached |= (net(moved).argmax(1) != y) & (to[:, j] < torch.inf)
        assert bool(reached.all())


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0"])
def test_prototypes_hold_in_every_norm(norm: Any) -> None:
    torch.manual_seed(0)
    net = glvq.Prototypes(6, 3, 2).requires_grad_(False)
    net.w.uniform_(0, 1)
    x, y = points(net, 64)
    threat = Threat(norm, {"l2": 0.1, "linf": 0.05, "l1": 0.15, "l0": 1}[norm])
    proof = build_certifier(net, (6,), threat, "auto")
    assert proof is not None
    proved = proof.prove(x, y)
    assert norm == "l0" or 0 < int(proved.sum()) < 64
    name = {"l1": "apgd_l1", "l0": "sigma_zero"}.get(norm, "apgd")
    z = attack(net, x, y, attacks.build(f"{name}(steps=20)"), threat)
    assert bool(((net(z).argmax(1) == y) | ~proved).all())


def test_the_surrogate_starts_along_the_way_to_the_other_class() -> None:
    net = spread(9, positive=True)
    x, _ = points(net, 8)
    query = x.clone().requires_grad_(True)
    scores = net.surrogates()["distance"](query)
    for j in range(3):
        (gradient,) = torch.autograd.grad(scores[:, j].sum(), query, retain_graph=True)
        way = net.w[:, None] - x
        cosines = torch.cosine_similarity(way, gradient[None], dim=2)
        assert bool((cosines.amax(0) > 0.9999).all())


@pytest.mark.parametrize("spec", ["cbc(robust=1.58)", "glvq"])
@pytest.mark.parametrize("threat", ["l2:0.5", "linf:0.1"])
def test_attacks_break_no_certified_point_of_the_shipped_weights(
    spec: str, threat: str, tmp_path: Path
) -> None:
    data = open_dataset("bundled", download=False)
    record = evaluate(
        load_model(spec, data=data).model, data, threat, name=spec, folder=tmp_path, n=40,
        suite="quick", certify="auto", attack_certified=True, progress=False,
    )  # fmt: skip
    assert record.stages[0].entered > record.points.status.count("robust")
    assert record.certified is not None
    assert 0 < record.certified <= record.robust


def test_points_that_distances_of_float64_cannot_tell_apart_are_not_proved() -> None:
    """Components 3e-9 apart in a box up to 16: the model's own pass confuses them."""
    threat = Threat("l2", 1e-7, 0.0, 16.0)
    for seed in range(5):
        net = Components(784, 2, 2, 1, positive=True)
        center = 16 * torch.rand(784, generator=torch.Generator().manual_seed(seed))
        center[-1] = 0
        with torch.no_grad():
            net.w[:] = center
            net.w[0, -1], net.w[1, -1] = 4e-3 + 3e-9, 4e-3
            net.raw[:] = 2e-3
            net.reasoning[:] = torch.tensor([[12.0, -12.0], [-12.0, 12.0]])
            proof = net.certificates()["components"]
            assert not proof(center.view(1, 1, 28, 28), torch.tensor([1]), threat).any()
