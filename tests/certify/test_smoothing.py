"""Randomized smoothing: the closed form of the radius, abstention, and a half space."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from robustkit.certify.certifier import build_certifier
from robustkit.certify.smoothing import Smoothed, certify_point, radius, reach
from robustkit.core.threat import Threat
from robustkit.errors import UsageError


class HalfSpace(nn.Module):
    """Class 1 where the first coordinate exceeds 0.5: its smoothing is itself."""

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-score, score], 1)


def test_radius_is_its_closed_form_when_all_draws_agree() -> None:
    lower = 0.001 ** (1 / 1000)  # Clopper-Pearson for n of n
    assert radius(1000, 1000, 0.25) == pytest.approx(0.25 * norm.ppf(lower))
    assert radius(1000, 1000, 0.5) == pytest.approx(2 * radius(1000, 1000, 0.25))


def test_radius_abstains_near_a_tie_and_grows_with_agreement() -> None:
    assert radius(0, 100, 1.0) == 0
    assert radius(520, 1000, 1.0) == 0
    found = [radius(k, 1000, 1.0) for k in range(500, 1001, 50)]
    assert found == sorted(found)
    with pytest.raises(UsageError, match="successes"):
        radius(11, 10, 1.0)


@pytest.mark.parametrize("distance", [0.05, 0.2, 0.4])
def test_no_radius_reaches_over_a_known_boundary(distance: float) -> None:
    """The true radius of a half space is the distance to it."""
    x = torch.zeros(1, 2, 2)
    x[0, 0, 0] = 0.5 + distance
    proofs = [
        certify_point(HalfSpace(), x, 0.25, select=50, draws=2000, seed=seed, alpha=0.001)
        for seed in range(20)
    ]
    assert all(proof.radius <= distance for proof in proofs)
    assert all(proof.label in (1, -1) for proof in proofs)
    assert any(proof.radius > distance / 3 for proof in proofs)


def test_proofs_depend_on_seed_and_content_alone() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.6, 0.2])
    model, threat = Smoothed(HalfSpace(), 0.25, 8), Threat("l2", 0.1)
    prover = build_certifier(model, (1, 2, 2), threat, "smoothing")
    assert prover is not None
    y = torch.tensor([1, 1, 0])
    whole = prover.prove(x, y)
    assert whole.tolist() == [True, False, True]  # at 0.6 the boundary is as far as eps
    assert torch.cat([prover.prove(x[i : i + 1], y[i : i + 1]) for i in (2, 0)]).tolist() == [
        whole[2],
        whole[0],
    ]
    assert not bool(prover.prove(x, 1 - y).any())


def test_other_norms_are_enclosed_in_an_l2_ball() -> None:
    assert reach(Threat("l2", 0.5), 784) == 0.5
    assert reach(Threat("linf", 0.1), 784) == pytest.approx(0.1 * math.sqrt(784))
    assert reach(Threat("l1", 0.5), 784) == 0.5


def test_smoothing_speaks_of_smoothed_models_alone() -> None:
    with pytest.raises(UsageError, match="smoothed"):
        build_certifier(HalfSpace(), (1, 2, 2), Threat("l2", 0.1), "smoothing")


def test_answers_are_votes() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] = torch.tensor([1.5, -0.5])
    model = Smoothed(HalfSpace(), 0.1, 16)
    assert model(x).argmax(1).tolist() == [1, 0]
    assert torch.allclose(model(x)[:, 0].exp() + model(x)[:, 1].exp(), torch.tensor(1.001))
    query = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.surrogates()["soft"](query)[:, 0].sum(), query)
    assert bool(gradient[:, 0, 0, 0].all())


def test_votes_are_counted_in_full_precision() -> None:
    """A GPU that rounds products to TF32 would certify another base classifier."""
    seen = []

    def base(x: Tensor) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        logits: Tensor = HalfSpace()(x)
        return logits

    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32 = cudnn.allow_tf32 = True
    try:
        certify_point(base, torch.ones(1, 2, 2), 0.25, select=4, draws=10, seed=0, alpha=0.001)
        assert cuda.allow_tf32 and cudnn.allow_tf32
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
    assert set(seen) == {(False, False)}
