"""l0: how many features may change. Geometry against brute force; what refuses it, and how."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.smoothing import reach
from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites

SHAPES = [(5,), (1, 2, 3), (3, 1, 2)]


def nearest(z: Tensor, x: Tensor, count: int) -> float:
    """Squared l2 distance from `z` [d] to the set around `x`, over every choice of features."""
    free = (z - z.clamp(0, 1)).square()
    kept = (z - x).square()
    choices = itertools.combinations(range(len(z)), min(count, len(z)))
    every = set(range(len(z)))
    return min(
        float(free[list(chosen)].sum() + kept[sorted(every - set(chosen))].sum())
        for chosen in choices
    )


@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.integers(1, 7), st.booleans())
def test_project_is_the_nearest_point_over_every_choice(
    seed: int, shape: tuple[int, ...], count: int, own: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(3, *shape, generator=generator) - 0.5).clamp(0, 1)
    z = x + torch.randn(x.shape, generator=generator)
    threat = Threat("l0", count)
    eps = torch.tensor([1.0, 2.9, 4.0]) if own else None
    p = threat.project(z, x, eps)
    assert bool(threat.contains(p, x, eps).all())
    assert torch.equal(threat.project(p, x, eps), p)
    counts = [1, 2, 4] if own else [count] * 3
    for row in range(3):
        found = float((p[row] - z[row]).square().sum())
        assert found == pytest.approx(
            nearest(z[row].flatten(), x[row].flatten(), counts[row]), rel=1e-5, abs=1e-6
        )


def test_equal_features_are_taken_in_order() -> None:
    x = torch.zeros(1, 6)
    p = Threat("l0", 2).project(torch.full((1, 6), 0.5), x)
    assert p.tolist() == [[0.5, 0.5, 0, 0, 0, 0]]


def test_distance_counts_features_exactly() -> None:
    threat, x = Threat("l0", 2), torch.full((4, 3, 2, 2), 0.5)
    z = x.clone()
    z[1, 0, 0, 0] += 2.0**-24  # the smallest change a float32 near 0.5 can hold
    z[2, :2, 1, 1] = 1.0
    z[3, :, 1, 1] = 0.0  # one pixel, but three channels
    assert threat.distance(z, x).tolist() == [0, 1, 2, 3]
    assert threat.contains(z, x).tolist() == [True, True, True, False]
    assert threat.contains(z + 0.6, x).tolist() == [False] * 4  # out of the box
    assert threat.limit(12) == 2


@given(st.integers(0, 1000), st.integers(1, 30))
def test_sample_changes_that_many_features_at_random(seed: int, count: int) -> None:
    threat, x = Threat("l0", count), torch.full((4, 2, 3, 4), 0.5)
    point = torch.tensor([0, 1, 2, 1])
    keys = Keys(torch.full_like(point, seed), point, torch.zeros_like(point))
    z = threat.sample(x, keys)
    assert bool(threat.contains(z, x).all())
    assert threat.distance(z, x).tolist() == [min(count, 24)] * 4
    assert torch.equal(z[1], z[3])
    assert not torch.equal(z[0], z[1])


def test_steepest_moves_the_best_feature() -> None:
    gradient = torch.tensor([[[0.1, -3.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    v = Threat("l0", 3).steepest(gradient)
    best = max(
        float(gradient[0].flatten()[i] * sign) for i in range(4) for sign in (-1.0, 0.0, 1.0)
    )
    assert float((gradient[0] * v[0]).sum()) == best
    assert v.tolist() == [[[0, -1], [0, 0]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("eps", [0.5, 2.5])
def test_eps_is_a_whole_number(eps: float) -> None:
    with pytest.raises(UsageError, match=f"counts the features.*a whole number, got {eps}"):
        Threat("l0", eps)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 1.0), ("l2", math.sqrt(12)), ("l1", 12.0), ("l0", 12.0)]
)
def test_the_whole_box_is_reached_and_no_more(norm: str, eps: float) -> None:
    threat = Threat.whole(norm, 12)  # type: ignore[arg-type]
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert threat.eps == eps == float(threat.distance(white, black))
    assert bool(threat.contains(white, black))
    assert Threat.whole("l2", 9, lower=-1.0).eps == 6.0


@pytest.mark.parametrize("name", ["apgd", "apgd_l1", "pgd", "fgsm", "square", "fab"])
def test_other_attacks_refuse_and_name_what_to_use(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} supports .*, got l0. Use sigma_zero or fmn."):
        attacks.build(name).jobs(Threat("l0", 5), 10)


@pytest.mark.parametrize("name", ["quick", "minimum_norm", "scout", "surrogates"])
def test_suites_have_a_line_up(name: str) -> None:
    specs = suites.build(name).attacks(Threat("l0", 5), ["smooth"])
    assert any(spec.startswith("sigma_zero") for spec in specs)
    assert any("surrogate=smooth" in spec for spec in specs) == (name != "scout")


class TestCertificates:
    @pytest.mark.slow
    def test_bounds_hold_against_every_change_of_few_features(self) -> None:
        """A network of 8 inputs, one of which may change: every value of each is tried."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            last = nn.Linear(12, 2)
            model = nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), last)
            x = torch.rand(60, 1, 2, 4)
        logits = model(x).detach()
        last.bias.data[0] -= (logits[:, 0] - logits[:, 1]).quantile(0.05)
        y = model(x).argmax(1)
        broken = torch.zeros(60, dtype=torch.bool)
        for feature, value in itertools.product(range(8), torch.linspace(0, 1, 101)):
            z = x.flatten(1).clone()
            z[:, feature] = value
            broken |= model(z.view_as(x)).argmax(1) != y
        assert 0 < int(broken.sum()) < 60
        for method in ("ibp", "crown", "alpha-crown"):
            proof = build_certifier(model, (1, 2, 4), Threat("l0", 1), method)
            assert proof is not None
            holds = proof.prove(x, y)
            assert not bool((holds & broken).any())
            assert method == "ibp" or bool(holds.any())

    def test_smoothing_reaches_as_far_as_the_features_can_move(self) -> None:
        assert reach(Threat("l0", 9), 784) == 3.0
