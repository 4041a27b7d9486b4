"""Mixtures: they equal their parts at the ends, and their certificates hold for every g."""

from __future__ import annotations

import copy
import importlib
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models.architectures import small_cnn
from robustkit.models.mixture import (
    Mixed,
    certified_by_margins,
    floor_cutoff,
    lipschitz_radius,
    mix,
    smoothing_radius,
    two_sided,
)
from robustkit.models.training import Step
from robustkit.registry import defenses

SHAPE = (1, 12, 12)


class Loaded(NamedTuple):
    model: nn.Module


class Small(NamedTuple):
    """What a defense reads of a data set."""

    shape: tuple[int, int, int] = SHAPE
    classes: int = 5


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_cnn(SHAPE, 5, 4).eval()


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def probabilities(seed: int, points: int = 400, classes: int = 5, scale: float = 3.0) -> Tensor:
    draw = torch.randn(points, classes, generator=generator(seed), dtype=torch.float64)
    return (scale * draw).softmax(1)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(16, *SHAPE, generator=generator(3))


def build(monkeypatch: pytest.MonkeyPatch, spec: str, **parts: nn.Module) -> tuple[Any, Any]:
    """Return a defense and its model, put together from small networks."""
    defense = defenses.build(spec)
    nets = {"undefended": net(1), "pgd_at": net(2), **parts}

    def load(name: str, *, data: Dataset) -> Loaded:
        return Loaded(nets[name])

    module = importlib.import_module(type(defense).__module__)
    monkeypatch.setattr(module, "load_model", load)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return defense, defense.load(Small())


class TestMixed:
    @pytest.mark.parametrize("alpha", [0.0, 1.0])
    def test_equals_a_part_at_the_ends(self, x: Tensor, alpha: float) -> None:
        mixed = Mixed(net(1), net(2), alpha=alpha, std_scale=2.0, rob_scale=0.5)
        expected = (0.5 * net(2)(x) if alpha else 2.0 * net(1)(x)).softmax(1)
        assert torch.allclose(mixed(x).exp(), expected, atol=1e-6)
        assert torch.equal(mixed(x).argmax(1), expected.argmax(1))

    def test_gives_logarithms_of_probabilities_in_float32(self, x: Tensor) -> None:
        out = Mixed(net(1), net(2), alpha=0.8)(x)
        assert out.dtype == torch.float32
        assert torch.allclose(out.exp().sum(1), torch.ones(16), atol=1e-5)

    def test_stays_finite_where_probabilities_underflow(self) -> None:
        g = torch.tensor([[1.0, 0.0]], requires_grad=True)
        out = mix(g, torch.tensor([[1.0, 0.0]]), 0.5)
        out.sum().backward()
        assert g.grad is not None
        assert bool(out.isfinite().all()) and bool(g.grad.isfinite().all())

    def test_freezes_its_parts_and_leaves_the_originals_alone(self, x: Tensor) -> None:
        standard = net(1)
        mixed = Mixed(standard, net(2), alpha=0.8).train()
        assert not mixed.standard.training and not mixed.robust.training
        assert not any(p.requires_grad for p in mixed.parameters())
        assert all(p.requires_grad for p in standard.parameters())

    def test_declares_its_certificate(self) -> None:
        robust, alpha, scale = Mixed(net(1), net(2), alpha=0.8, rob_scale=3.0).certificate_parts()
        assert isinstance(robust, nn.Sequential)
        assert (alpha, scale) == (0.8, 3.0)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"alpha": 1.1},
            {"alpha": -0.1},
            {"alpha": float("nan")},
            {"alpha": 0.5, "std_scale": 0.0},
            {"alpha": 0.5, "gate": nn.Identity()},
            {"gate": nn.Identity(), "alpha_scale": 0.5, "alpha_bias": 0.6},
        ],
    )
    def test_refuses_numbers_out_of_range(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="expected"):
            Mixed(net(1), net(2), **options)

    def test_surrogates_see_a_saturated_standard_network(self, x: Tensor) -> None:
        mixed = Mixed(net(1), net(2), alpha=0.6, std_scale=1e6)
        for name, surrogate in mixed.surrogates().items():
            mixed.standard.requires_grad_(True).zero_grad()
            surrogate(x)[:, 0].sum().backward()
            first = next(mixed.standard.parameters()).grad
            assert first is not None and float(first.abs().sum()) > 0, name
        mixed.standard.zero_grad()
        mixed(x)[:, 0].sum().backward()
        grads = [p.grad for p in mixed.standard.parameters() if p.grad is not None]
        assert all(float(g.abs().sum()) == 0 for g in grads)

    def test_two_sided_turns_to_g_once_h_is_below_the_cutoff(self) -> None:
        g = torch.tensor([[2.0, 0.0, -2.0]], requires_grad=True)
        h = torch.tensor([[3.0, 0.0, 0.0], [0.1, 0.0, -0.1]], requires_grad=True)
        out = two_sided(g.expand(2, 3), h, h.softmax(1), 0.7)
        gradient = torch.autograd.grad((out[:, 1] - out[:, 0]).sum(), h, retain_graph=True)[0]
        assert float(gradient[0].abs().sum()) > 0
        assert float(gradient[1].abs().sum()) < 1e-6
        margin = float(
            (out[1, 1] - out[1, 0]).detach()
        )  # what is left is g's margin in units of its spread
        assert margin == pytest.approx(-1.0, abs=1e-5)


class TestCertificates:
    @pytest.mark.parametrize("alpha", [0.5, 0.6, 0.8, 0.95, 1.0])
    def test_a_lead_of_the_cutoff_makes_g_irrelevant(self, alpha: float) -> None:
        h = probabilities(1)
        top = h.topk(2, dim=1)
        safe = top.values[:, 0] - top.values[:, 1] > floor_cutoff(alpha) + 1e-9
        for seed in range(5):
            g = probabilities(10 + seed, scale=20.0)
            same = ((1 - alpha) * g + alpha * h).argmax(1) == top.indices[:, 0]
            assert bool(same[safe].all())
        # and no smaller lead does: g all on the runner-up
        g = nn.functional.one_hot(top.indices[:, 1], 5)
        flipped = ((1 - alpha) * g + alpha * h).argmax(1) != top.indices[:, 0]
        close = top.values[:, 0] - top.values[:, 1] < floor_cutoff(alpha) - 1e-9
        assert bool(flipped[close].all())

    def test_cutoff(self) -> None:
        assert floor_cutoff(0.8) == pytest.approx(0.25)
        assert floor_cutoff(1.0) == 0.0
        assert floor_cutoff(0.0) == float("inf")
        with pytest.raises(UsageError, match="alpha"):
            floor_cutoff(1.5)

    def test_lipschitz_radius(self) -> None:
        h, y = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.8, 0.1]]), torch.tensor([0, 0])
        found = lipschitz_radius(h, y, 0.8, 2.0)
        assert found.tolist() == pytest.approx([(0.8 * 0.84 - 0.2) / (0.8 * 4), 0.0], abs=1e-6)
        per_class = lipschitz_radius(h, y, 0.8, torch.tensor([2.0, 1.0, 4.0]))
        assert float(per_class[0]) == pytest.approx((0.8 * 0.86 - 0.2) / (0.8 * 6), abs=1e-6)
        assert lipschitz_radius(h, y, 0.0, 2.0).tolist() == [0.0, 0.0]
        with pytest.raises(UsageError, match="Lipschitz"):
            lipschitz_radius(h, y, 0.8, 0.0)

    def test_smoothing_radius_at_alpha_one_is_that_of_smoothing(self) -> None:
        h, y = torch.tensor([[0.9, 0.1], [0.3, 0.7], [1.0, 0.0]]), torch.tensor([0, 0, 0])
        assert smoothing_radius(h, y, 1.0, 0.5).tolist() == pytest.approx(
            [0.5 * 1.2815516, 0.0, float("inf")], abs=1e-5
        )

    def test_smoothing_radius_with_a_standard_part(self) -> None:
        h, y = torch.tensor([[0.9, 0.1], [1.0, 0.0]]), torch.tensor([0, 0])
        own, other = 0.9 * 0.8, 0.1 * 0.8 + 0.2
        assert own + other == pytest.approx(1.0)
        assert smoothing_radius(h, y, 0.8, 0.5).tolist() == pytest.approx(
            [0.5 * 0.5828415, 0.5 * 0.8416212], abs=1e-5
        )
        assert smoothing_radius(h, y, 0.5, 0.5).tolist() == pytest.approx([0.0, 0.0])

    @given(st.integers(0, 10_000), st.floats(0.5, 1.0), st.floats(0.2, 4.0), st.integers(2, 6))
    def test_margins_are_sound(self, seed: int, alpha: float, scale: float, classes: int) -> None:
        draw = generator(seed)
        z = 4 * torch.randn(64, classes, generator=draw)
        y = torch.randint(classes, (64,), generator=draw)
        slack = torch.rand(64, classes, generator=draw)
        lower = z.gather(1, y[:, None]) - z - slack * (torch.rand(64, 1, generator=draw) < 0.5)
        certified = certified_by_margins(lower, y, alpha, scale)
        h = (scale * z.double()).softmax(1)
        runner_up = h.scatter(1, y[:, None], -1.0).argmax(1)
        for g in (nn.functional.one_hot(runner_up, classes), probabilities(seed, 64, classes)):
            assert bool((mix(g, h, alpha).argmax(1) == y)[certified].all())

    def test_margins_certify_what_they_can(self) -> None:
        lower = torch.tensor([[0.0, 5.0, 5.0], [0.0, 5.0, -0.1], [0.0, 0.5, 9.0]])
        y = torch.zeros(3, dtype=torch.long)
        assert certified_by_margins(lower, y, 0.8).tolist() == [True, False, False]
        assert certified_by_margins(lower, y, 0.8, 10.0).tolist() == [True, False, True]
        assert certified_by_margins(lower, y, 0.49, 10.0).tolist() == [False] * 3
        assert not certified_by_margins(-torch.inf * torch.ones(1, 2), y[:1], 1.0).any()
        with pytest.raises(UsageError, match="rob_scale"):
            certified_by_margins(lower, y, 0.8, -1.0)


class TestAdaptiveSmoothing:
    SPEC = "adaptive_smoothing(steps=2, width=4)"

    def test_alpha_keeps_to_its_range(self, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
        _, model = build(monkeypatch, self.SPEC)
        model.eval()
        alpha = model.alpha(torch.cat([x, 100 * x])).detach()
        assert float(alpha.min()) >= 0.8 and float(alpha.max()) <= 0.95 + 1e-12
        assert float(alpha.std()) > 0
        assert model.certificate_parts()[1] == 0.8
        assert set(model.surrogates()) == {"gate_fixed", "raw", "two_sided"}
        for surrogate in model.surrogates().values():
            assert surrogate(x).shape == (16, 5)
            torch.testing.assert_close(surrogate.both(x)[1], model(x))

    def test_trains_the_gate_alone(self, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
        defense, model = build(monkeypatch, self.SPEC)
        gate, y = defense.learned(model), torch.arange(16) % 5
        before = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = torch.optim.Adam(gate.parameters(), 1e-2)
        model.train()
        for _ in range(3):
            loss = defense.objective(model, x, y, Step(0.5, generator()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert model.gate.training and not model.robust.training
        moved = {key for key, value in model.state_dict().items() if not before[key].equal(value)}
        assert moved and all(key.startswith("gate.") for key in moved)
        assert all(p.grad is None for p in model.robust.parameters())
        assert all(float(p.grad.abs().sum()) > 0 for p in gate.parameters())

    def test_the_objective_is_a_function_of_its_step(
        self, monkeypatch: pytest.MonkeyPatch, x: Tensor
    ) -> None:
        defense, model = build(monkeypatch, self.SPEC)
        y = torch.arange(16) % 5
        values = [
            float(
                defense.objective(copy.deepcopy(model), x, y, Step(0.5, generator(seed))).detach()
            )
            for seed in (1, 1, 2)
        ]
        assert values[0] == values[1] != values[2]

    def test_a_copy_keeps_to_itself(self, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
        _, model = build(monkeypatch, self.SPEC)
        model.eval()
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x[:3]), model(x[:3]))
        assert torch.allclose(model(x)[:3], model(x[:3]), atol=1e-5)

    def test_joins_features_of_different_sizes(
        self, monkeypatch: pytest.MonkeyPatch, x: Tensor
    ) -> None:
        fine = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(3, 3, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(300, 5),
        )
        _, model = build(monkeypatch, self.SPEC, undefended=fine)
        assert model.eval()(x).isfinite().all()

    def test_a_constant_needs_no_gate(self, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
        linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
        defense, model = build(
            monkeypatch, "adaptive_smoothing(adaptive=false, alpha=0.9)", undefended=linear
        )
        assert defense.learned(model) is None and not defense.trained
        assert model.alpha(x).tolist() == [0.9] * 16
        with pytest.raises(UsageError, match="adaptive"):
            defense.objective(model, x, torch.zeros(16).long(), Step(0.5, generator()))

    def test_a_gate_needs_two_convolutions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        linear = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
        with pytest.raises(UsageError, match="two convolutions"):
            build(monkeypatch, self.SPEC, pgd_at=linear)


class TestMixedNuts:
    SPEC = "mixednuts(steps=2, restarts=1, beta=50)"

    def test_the_map_in_closed_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bend = build(monkeypatch, self.SPEC)[1].map
        logits = torch.tensor([[3.0, 1.0, 2.0]])  # mean 2, unbiased variance 1
        assert torch.allclose(
            bend.normalized(logits), torch.tensor([[1.0, -1.0, 0.0]]).double(), atol=1e-7
        )
        assert torch.allclose(bend.normalized(7 * logits - 5), bend.normalized(logits), atol=1e-7)
        for name, value in (("s", 2.0), ("c", 0.0), ("p", 2.0)):
            getattr(bend, name).fill_(value)
        phi = 0.8413447460685429  # of the normal distribution at 1
        expected = [2 * phi**2, -2 * (1 - phi) ** 2, 0.0]
        assert bend(logits)[0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_answers_for_g_or_h_by_the_cutoff(
        self, monkeypatch: pytest.MonkeyPatch, x: Tensor
    ) -> None:
        _, model = build(monkeypatch, self.SPEC)
        model.map.s.fill_(0.5)
        lead = model.map(model.robust(x)).softmax(1).topk(2, dim=1).values
        lead = lead[:, 0] - lead[:, 1]
        model.map.alpha.copy_(1 / (1 + lead.median() + 1e-9))
        sure = lead > lead.median() + 1e-6
        g, h = model.standard(x).argmax(1), model.robust(x).argmax(1)
        assert torch.equal(model(x).argmax(1), torch.where(sure, h, g))

    def test_surrogates_see_the_standard_network(
        self, monkeypatch: pytest.MonkeyPatch, x: Tensor
    ) -> None:
        _, model = build(monkeypatch, self.SPEC)
        weight = next(model.standard.parameters())
        for surrogate in model.surrogates().values():
            torch.testing.assert_close(surrogate.both(x)[1], model(x))
            (gradient,) = torch.autograd.grad(surrogate(x)[:, 0].sum(), weight)
            assert float(gradient.abs().sum()) > 0
        out = model(x)[:, 0].sum()
        assert torch.autograd.grad(out, weight, allow_unused=True) == (None,)
        (through,) = torch.autograd.grad(out, next(model.robust.parameters()))
        assert bool(through.isfinite().all())

    def test_calibration_finds_the_best_of_the_grid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        defense, model = build(monkeypatch, self.SPEC)
        module = importlib.import_module(type(defense).__module__)
        right = 4 * torch.randn(60, 5, generator=generator(1))
        wrong = 2 * torch.randn(40, 5, generator=generator(2))
        module.fit(model.map, right, wrong, 60.0)
        cutoff = 1 / float(model.map.alpha) - 1

        def lead(logits: Tensor) -> Tensor:
            top: Tensor = model.map(logits).softmax(1).topk(2, dim=1).values
            return top[:, 0] - top[:, 1]

        assert float((lead(right) >= cutoff * (1 - 1e-9)).double().mean()) == pytest.approx(
            0.6, abs=0.02
        )
        lost = float((lead(wrong) >= cutoff).double().mean())
        generous = 1 / 40 + 1e-9
        for s, c, p in [(0.05, -2.0, 1.0), (5.0, 0.0, 4.0), (5.0, -2.0, 1.0), (0.05, 0.0, 4.0)]:
            for name, value in (("s", s), ("c", c), ("p", p)):
                getattr(model.map, name).fill_(value)
            other = torch.quantile(lead(right), 0.4)
            assert lost <= float((lead(wrong) >= other).double().mean()) + generous

    def test_calibrates_on_points(self, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
        defense, model = build(monkeypatch, self.SPEC)
        assert defense.learned(model) is model.map
        y = model.robust(x).argmax(1)
        y = torch.where(torch.arange(16) < 4, (y + 1) % 5, y)
        states = []
        for _ in range(2):
            defense.calibrate(model, x, y, generator())
            states.append([float(value) for value in model.map.state_dict().values()])
        assert states[0] == states[1]
        assert all(p.requires_grad for p in model.robust.parameters())
        with pytest.raises(RobustkitError, match="more points"):
            defense.calibrate(model, x[4:], y[4:], generator())

    def test_refuses_another_model(self) -> None:
        for name in ("mixednuts", "adaptive_smoothing"):
            with pytest.raises(UsageError, match="mixture that load returns"):
                defenses.build(name).learned(nn.Identity())
