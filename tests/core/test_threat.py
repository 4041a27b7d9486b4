"""Geometry in linf, l2 and l1: projection, steepest direction, random points, distance."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from robustkit.core.rng import Keys
from robustkit.core.threat import Norm, Threat
from robustkit.errors import UsageError

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
solver: Any = optimize
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


class Case(NamedTuple):
    """Clean points `x` in the box, anything `z`, one radius per point or None for the threat's."""

    threat: Threat
    x: Tensor
    z: Tensor
    eps: Tensor | None
    generator: torch.Generator

    @property
    def radius(self) -> Tensor:
        return torch.full((len(self.x),), self.threat.eps) if self.eps is None else self.eps

    def feasible(self) -> Tensor:
        """Random points of the set, found without any projection: both parts are convex."""
        end = torch.rand(self.x.shape, generator=self.generator)
        end = torch.where(torch.rand(end.shape, generator=self.generator) < 0.5, end.round(), end)
        sparse = torch.rand(end.shape, generator=self.generator)
        end = torch.where(
            sparse < sparse.flatten(1)[:, :1].view(-1, *[1] * (end.ndim - 1)), self.x, end
        )
        delta = (end - self.x).flatten(1)
        size = delta.norm(ORDER[self.threat.norm], dim=1).clamp_min(1e-12)
        inside: Tensor = ((self.radius / size).clamp_max(1)[:, None] * delta).view_as(end)
        return self.x + inside


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shape = draw(st.sampled_from([(1,), (3,), (17,), (1, 2, 2), (3, 5, 4), (1, 28, 28)]))
    batch = draw(st.integers(1, 4))
    x = torch.rand(batch, *shape, generator=generator)
    if draw(st.booleans()):  # many coordinates on the faces of the box, as in images
        x = (x * 3 - 1).clamp(0, 1)
    spread = 10 ** draw(st.floats(-3, 2))
    z = x + spread * torch.randn(x.shape, generator=generator)
    threat = Threat(draw(st.sampled_from(NORMS)), 10 ** draw(st.floats(-3, 1)))
    own = draw(st.booleans())
    eps = threat.eps * torch.rand(batch, generator=generator).clamp_min(0.01) if own else None
    return Case(threat, x, z, eps, generator)


@given(cases())
def test_project_lands_in_the_set(case: Case) -> None:
    p = case.threat.project(case.z, case.x, case.eps)
    assert p.shape == case.z.shape
    assert p.dtype == case.z.dtype
    assert bool(case.threat.contains(p, case.x, case.eps).all())


@given(cases())
def test_project_is_idempotent(case: Case) -> None:
    once = case.threat.project(case.z, case.x, case.eps)
    twice = case.threat.project(once, case.x, case.eps)
    if case.threat.norm == "linf":
        assert torch.equal(twice, once)
    # In l1 the roundings of all coordinates may fall to the one that is not clipped.
    summed = once[0].numel() * 2.0**-24
    torch.testing.assert_close(twice, once, rtol=0, atol=2e-7 + summed)


@given(cases())
def test_project_leaves_points_inside_where_they_are(case: Case) -> None:
    inside = case.x + 0.999 * (case.feasible() - case.x)
    torch.testing.assert_close(
        case.threat.project(inside, case.x, case.eps), inside, rtol=0, atol=2e-7
    )


@given(cases())
def test_project_finds_the_nearest_point(case: Case) -> None:
    """Of a convex set, p is nearest to z exactly if ⟨z − p, w − p⟩ ≤ 0 for all w in it."""
    p = case.threat.project(case.z, case.x, case.eps)
    away = (case.z - p).flatten(1).double()
    # The displacement is a float32 number: its coordinates are off by an ulp of the largest one.
    ulp = 2.0**-22 * (case.z - case.x).flatten(1).abs().amax(1) * away.shape[1] ** 0.5
    for _ in range(8):
        across = (case.feasible() - p).flatten(1).double()
        reach = away.norm(dim=1) * (across.norm(dim=1) + case.radius)
        bound = 1e-5 * reach + away.norm(dim=1) * ulp + 1e-9
        assert bool(((away * across).sum(1) <= bound).all())


@given(cases())
def test_project_is_non_expansive(case: Case) -> None:
    step = torch.randn(case.z.shape, generator=case.generator)
    other = case.z + 10 ** float(-3 * torch.rand(1, generator=case.generator)) * step
    p, q = (case.threat.project(z, case.x, case.eps) for z in (case.z, other))
    before, after = ((a - b).flatten(1).norm(dim=1) for a, b in ((case.z, other), (p, q)))
    assert bool((after <= before * (1 + 1e-5) + 1e-5 * case.radius + 1e-6).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(6))
def test_project_is_what_a_solver_finds(norm: Norm, seed: int) -> None:
    generator = np.random.default_rng(seed)
    d = 2 + seed % 2
    x, z = generator.random(d), generator.normal(0.5, 1.0, d)
    eps = float(generator.choice([0.2, 0.6]))
    if norm == "l2":
        ball = solver.NonlinearConstraint(lambda p: np.sum((p - x) ** 2), -np.inf, eps**2)
    else:
        signs = np.array([*itertools.product([-1, 1], repeat=d)])
        rows = np.eye(d) if norm == "linf" else signs
        ball = solver.LinearConstraint(rows, rows @ x - eps, rows @ x + eps)
    found = solver.minimize(
        lambda p: np.sum((p - z) ** 2),
        x + 0.1 * eps * (z.clip(0, 1) - x),
        bounds=[(0, 1)] * d,
        constraints=[ball],
        method="SLSQP",
        options={"ftol": 1e-10, "maxiter": 500},
    )
    assert found.success
    ours = Threat(norm, eps).project(*(torch.tensor(a, dtype=torch.float32)[None] for a in (z, x)))
    np.testing.assert_allclose(ours[0].numpy(), found.x, atol=1e-4)


def test_l2_projection_is_exact_for_uneven_displacements() -> None:
    """Coordinates that differ by many orders of magnitude, against bisection in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 300, generator=generator) ** 4
    size = torch.exp(2 * torch.randn(64, 300, generator=generator))
    room = 1 - x
    eps = torch.minimum(size, room).norm(dim=1) * torch.rand(64, generator=generator).clamp_min(0.1)
    p = Threat("l2", 1.0).project(x + size, x, eps)
    low, high = torch.zeros(64, 1).double(), torch.ones(64, 1).double()
    for _ in range(80):
        middle = (low + high) / 2
        fits = torch.minimum(middle * size, room).norm(dim=1) <= eps
        low = torch.where(fits[:, None], middle, low)
        high = torch.where(fits[:, None], high, middle)
    expected = x + torch.minimum(low * size, room)
    assert float(((p - expected).norm(dim=1) / eps).max()) < 3e-6


@given(cases())
def test_steepest_attains_the_dual_norm(case: Case) -> None:
    gradient, threat = case.z - case.x, case.threat
    v = threat.steepest(gradient)
    flat, along = gradient.flatten(1), v.flatten(1)
    dual = {"linf": 1, "l2": 2, "l1": math.inf}[threat.norm]
    assert v.shape == gradient.shape
    assert bool((along.norm(ORDER[threat.norm], dim=1) <= 1 + 1e-5).all())
    torch.testing.assert_close((flat * along).sum(1), flat.norm(dual, dim=1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_of_no_gradient_is_no_direction(norm: Norm) -> None:
    assert not bool(Threat(norm, 0.1).steepest(torch.zeros(2, 3, 4)).any())


def keys(points: list[int], seed: int = 0) -> Keys:
    point = torch.tensor(points)
    return Keys(torch.full_like(point, seed), point, torch.zeros_like(point))


@given(cases(), st.integers(0, 100))
def test_sample_lies_in_the_set(case: Case, seed: int) -> None:
    z = case.threat.sample(case.x, keys(list(range(len(case.x))), seed), eps=case.eps)
    assert z.shape == case.x.shape
    assert bool(case.threat.contains(z, case.x, case.eps).all())


@pytest.mark.parametrize("norm", NORMS)
def test_sample_is_on_the_surface_and_belongs_to_its_point(norm: Norm) -> None:
    threat, x = Threat(norm, 0.3), torch.full((5, 2, 6, 6), 0.5)
    z = threat.sample(x, keys([3, 1, 4, 1, 5]))
    # 1e-6 of eps is left free; rounding x + d near 0.5 moves each of 72 coordinates by up to 2⁻²⁵.
    off = 1e-6 + 72 * 2.0**-25 / 0.3
    assert threat.distance(z, x).tolist() == pytest.approx([0.3] * 5, rel=off)
    assert torch.equal(z[1], z[3])
    assert not torch.equal(z[0], z[2])
    assert torch.equal(threat.sample(x[:1], keys([5]))[0], z[4])
    assert not torch.equal(threat.sample(x[:1], keys([5]), stream=1)[0], z[4])
    mean = float((z - x).mean() / (z - x).abs().mean())
    assert abs(mean) < 0.35


@pytest.mark.parametrize("norm", NORMS)
def test_distance_is_measured_in_float64(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.rand(2, 4, 3, 28, 28, generator=generator)
    distance = Threat(norm, 1.0).distance(z, x)
    assert distance.dtype == torch.float64
    delta = np.abs(z.numpy().astype(np.float64) - x.numpy().astype(np.float64)).reshape(4, -1)
    expected = {"linf": delta.max(1), "l2": np.sqrt((delta**2).sum(1)), "l1": delta.sum(1)}[norm]
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_contains_is_strict_about_ball_and_box(norm: Norm) -> None:
    threat, x = Threat(norm, 0.25), torch.full((1, 1, 4, 4), 0.5)
    direction = torch.zeros_like(x)
    direction[0, 0, 1, 2] = 1
    assert threat.contains(x + 0.25 * direction, x).item()
    assert not threat.contains(x + 0.25002 * direction, x).item()
    assert not threat.contains(x + torch.nan * direction, x).item()
    edge = torch.ones_like(x)
    assert not threat.contains(edge + 1.2e-7 * direction, edge).item()
    assert not threat.contains(-1e-9 * direction, torch.zeros_like(x)).item()
    both = threat.contains(
        (x + 0.2 * direction).expand(2, -1, -1, -1),
        x.expand(2, -1, -1, -1),
        torch.tensor([0.1, 0.3]),
    )
    assert both.tolist() == [False, True]
    assert threat.contains(x[:0], x[:0]).tolist() == []


def test_another_box() -> None:
    threat = Threat("linf", 3.0, lower=-1.0, upper=1.0)
    p = threat.project(torch.tensor([[-9.0, 9.0, 0.2]]), torch.zeros(1, 3))
    assert p.tolist() == [[-1.0, 1.0, pytest.approx(0.2)]]


@pytest.mark.parametrize(
    ("text", "norm", "eps", "printed"),
    [
        ("linf:8/255", "linf", 8 / 255, "linf:0.0313725"),
        ("l2:0.5", "l2", 0.5, "l2:0.5"),
        (" L1 : 12", "l1", 12.0, "l1:12"),
        ("l0:10", "l0", 10.0, "l0:10"),
        ("linf:1e-3", "linf", 1e-3, "linf:0.001"),
    ],
)
def test_parse(text: str, norm: str, eps: float, printed: str) -> None:
    threat = Threat.parse(text)
    assert (threat.norm, threat.eps, str(threat)) == (norm, eps, printed)


@pytest.mark.parametrize(
    "text", ["", "linf", "linf:", "linf:big", "linf:1/0", "8/255", "linf=0.1", "linf:1/2/3"]
)
def test_parse_says_what_it_expects(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Threat.parse(text)
    assert str(caught.value) == (
        f"expected a threat model such as 'linf:8/255', 'l2:0.5', 'l1:12' or 'l0:10', got {text!r}"
    )


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("linf:0", "0.0"),
        ("l2:-0.5", "-0.5"),
        ("l1:nan", "nan"),
        ("linf:inf", "inf"),
        ("l2:1/-4", "-0.25"),
    ],
)
def test_eps_must_be_positive_and_finite(text: str, got: str) -> None:
    with pytest.raises(UsageError) as caught:
        Threat.parse(text)
    assert str(caught.value) == f"eps must be positive and finite, got {got}"


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(UsageError, match=r"^Unknown norm 'l3'\..* Known: l0, l1, l2, linf\.$"):
        Threat.parse("l3:1")


@given(cases())
def test_a_shared_projection_is_the_projection(case: Case) -> None:
    project = case.threat.projection(case.x, case.eps)
    for z in (case.z, case.x + (case.z - case.x) / 2):
        assert torch.equal(project(z), case.threat.project(z, case.x, case.eps))
