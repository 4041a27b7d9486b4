"""Outer losses: limits, gradients, closed forms against optimization, and the option `loss=`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.conformance.losses import checks
from robustkit.models.adversarial_training import perturb, ramp
from robustkit.models.load import name_of
from robustkit.models.training import Step
from robustkit.registry import defenses, losses

Y = torch.tensor([0, 2, 1, 3, 0, 2])
Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def step(
    progress: float = 0.5,
    memory: dict[str, Tensor] | None = None,
    points: Tensor | None = None,
    draw: int = 0,
) -> Step:
    return Step(progress, generator(0, 1, draw), {} if memory is None else memory, points)


def value(spec: str, logits: Tensor = Z, y: Tensor = Y) -> Tensor:
    found: Tensor = losses.build(spec)(logits, y, step())
    return found


def cross_entropy(logits: Tensor = Z, y: Tensor = Y) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("name", list(losses))
def test_a_loss_keeps_its_contract(name: str) -> None:
    for _, check in checks(losses.entry(name)):
        check()


@pytest.mark.parametrize(
    "spec",
    ["ce", "comp_sum(tau=0)", "comp_sum(rho=2)", "comp_sum(tau=2)", "smooth_comp_sum",
     "label_smoothing", "ldr", "ldr(lam=0.3, normalized=false)", "z_loss", "z_loss(a=4, b=1)"],
)  # fmt: skip
def test_gradients_are_those_of_finite_differences(spec: str) -> None:
    loss = losses.build(spec)
    for function in (lambda z: loss(z, Y, step()), lambda z: loss.search(z, Y)):
        assert torch.autograd.gradcheck(function, Z.clone().requires_grad_())


@pytest.mark.parametrize(
    "spec",
    ["comp_sum(tau=0)", "comp_sum(tau=0.5)", "comp_sum(tau=2)", "smooth_comp_sum(tau=0)",
     "ldr(lam=0.1)", "ldr(lam=0.01, normalized=false)", "aldr_kl(lam0=0.01)", "z_loss(a=10, b=1)"],
)  # fmt: skip
def test_huge_logits_have_a_finite_loss_and_gradient(spec: str) -> None:
    loss = losses.build(spec)
    logits = (1e4 * Z.float() / Z.abs().max()).requires_grad_()
    found = loss(logits, Y, step())
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert bool(found.isfinite().all() and gradient.isfinite().all())


class TestCompSum:
    def test_tau_1_is_cross_entropy(self) -> None:
        torch.testing.assert_close(value("comp_sum(tau=1)"), cross_entropy())
        torch.testing.assert_close(value("smooth_comp_sum"), cross_entropy())

    def test_tau_0_is_the_sum_of_exponentials_and_tau_2_is_1_minus_p(self) -> None:
        own = Z.gather(1, Y[:, None])
        wrong = torch.ones_like(Z).scatter(1, Y[:, None], 0.0)
        torch.testing.assert_close(value("comp_sum(tau=0)"), ((Z - own).exp() * wrong).sum(1))
        p = (-cross_entropy()).exp()
        torch.testing.assert_close(value("comp_sum(tau=2)"), 1 - p)
        torch.testing.assert_close(value("comp_sum(tau=1.5)"), (1 - p.sqrt()) / 0.5)

    @pytest.mark.parametrize("near", [1 - 1e-6, 1 + 1e-6])
    def test_is_continuous_at_tau_1(self, near: float) -> None:
        torch.testing.assert_close(
            value(f"comp_sum(tau={near})"), cross_entropy(), atol=1e-4, rtol=0
        )

    def test_the_straight_line_joins_in_value_and_slope(self) -> None:
        """Two classes: s = log(1 + exp(t)) passes 30 with t."""
        t = torch.tensor([30 - 1e-6, 30 + 1e-6], dtype=torch.float64, requires_grad=True)
        found = value("comp_sum(tau=0.5)", torch.stack([-t, 0 * t], 1), torch.tensor([0, 0]))
        (slope,) = torch.autograd.grad(found.sum(), t)
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)
        torch.testing.assert_close(slope[0], slope[1], rtol=1e-5, atol=0)

    @settings(deadline=None, max_examples=60)
    @given(
        st.integers(2, 7), st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]),
        st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 10_000),
    )  # fmt: skip
    def test_bounds_the_adversarial_loss(
        self, classes: int, tau: float, rho: float, seed: int
    ) -> None:
        """At weight sqrt(k − 1) / rho: clean loss and penalty outweigh the ramp loss of x'."""
        draw = torch.Generator().manual_seed(seed)
        clean, moved = 3 * torch.randn(2, 50, classes, generator=draw, dtype=torch.float64)
        y = torch.randint(0, classes, (50,), generator=draw)
        loss = losses.build(f"smooth_comp_sum(tau={tau}, rho={rho})")
        whole = loss(clean, y, step())
        whole = whole + math.sqrt(classes - 1) / rho * loss.penalty(clean, moved, y)
        at_1 = math.log(2) if tau == 1 else (2 ** (1 - tau) - 1) / (1 - tau)
        assert bool((whole[moved.argmax(1) != y] >= at_1 - 1e-9).all())


class TestSmoothCompSum:
    def test_the_penalty_is_the_distance_of_the_margins(self) -> None:
        loss = losses.build("smooth_comp_sum")
        moved = Z.flip(0)
        found = loss.penalty(Z, moved, Y)
        for i, label in enumerate(Y.tolist()):
            before, after = (z[i, label] - z[i] for z in (Z, moved))
            assert float(found[i]) == pytest.approx(float((after - before).norm()))
        # A shift of all logits moves no margin.
        assert float(loss.penalty(Z, Z + 5, Y).max()) < 1e-5

    def test_a_large_weight_pulls_the_margins_down_with_the_penalty(self) -> None:
        """Logits that an attack swaps: free vectors, trained at two weights."""
        loss, y = losses.build("smooth_comp_sum"), torch.zeros(1, dtype=torch.long)
        margins, penalties = [], []
        for beta in (0.1, 3.0):
            logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
            for _ in range(200):
                total = loss(logits, y, step()) + beta * loss.penalty(logits, 0.5 * logits, y)
                (gradient,) = torch.autograd.grad(total.sum(), logits)
                logits = (logits - 0.02 * gradient).detach().requires_grad_()
            final = logits.detach()
            margins.append(float(final[0, 0] - final[0, 1]))
            penalties.append(float(loss.penalty(final, 0.5 * final, y)))
        assert margins[1] < 0.1 < 1 < margins[0]
        assert penalties[1] < penalties[0]

    @pytest.mark.parametrize("name", ["undefended", "pgd_at"])
    def test_needs_a_defense_that_weighs_its_penalty(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"as trades\(loss=smooth_comp_sum\(tau=0\.5\)\)"):
            defenses.build(f"{name}(loss=smooth_comp_sum(tau=0.5))")
        assert defenses.build("trades(loss=smooth_comp_sum)").loss == "smooth_comp_sum"


class TestLdr:
    @pytest.mark.parametrize("lam", [0.2, 1.0, 5.0])
    @pytest.mark.parametrize("c", [0.0, 0.7])
    def test_is_the_maximum_over_the_simplex(self, lam: float, c: float) -> None:
        found = value(f"ldr(lam={lam}, c={c}, normalized=false)")
        for i, label in enumerate(Y.tolist()):
            gains = (Z[i] - Z[i, label]).numpy() + c * (np.arange(4) != label)

            def less(free: Any, gains: Any = gains) -> float:
                p = np.exp(free - free.max())
                p = p / p.sum()
                return float(-(p @ gains) + lam * (p * np.log(4 * p + 1e-300)).sum())

            best = minimize(less, np.zeros(4), tol=1e-10)
            assert float(found[i]) == pytest.approx(-best.fun, abs=1e-5)

    def test_limits_in_lam(self) -> None:
        def at(lam: float) -> Tensor:
            return value(f"ldr(lam={lam}, c=0, normalized=false)")

        gaps = Z - Z.gather(1, Y[:, None])
        torch.testing.assert_close(at(1.0), cross_entropy() - math.log(4))
        torch.testing.assert_close(at(1e-4), gaps.amax(1), atol=1e-3, rtol=0)
        torch.testing.assert_close(at(1e6), gaps.mean(1), atol=1e-4, rtol=0)

    def test_normalized_logits_are_positive_with_mean_1(self) -> None:
        positive = torch.nn.functional.softplus(Z)
        expected = value("ldr(normalized=false)", positive / positive.mean(1, keepdim=True))
        torch.testing.assert_close(value("ldr"), expected)


class TestAldrKl:
    def test_lam_goes_to_the_maximum_of_what_is_minimized(self) -> None:
        loss, memory = losses.build("aldr_kl(lam0=3)"), dict[str, Tensor]()
        points = torch.arange(6)
        for _ in range(60):
            loss(Z, Y, step(memory=memory, points=points))
        kept = memory["aldr_kl"]
        scaled = Z / Z.abs().mean(1, keepdim=True)
        for i, label in enumerate(Y.tolist()):
            gains = (scaled[i] - scaled[i, label]).numpy() + 0.1 * (np.arange(4) != label)

            def less(lam: float, gains: Any = gains) -> float:
                top = gains.max()
                soft = top + lam * np.log(np.exp((gains - top) / lam).mean())
                return float(2 * math.log(4) * (lam - 3) ** 2 / 6 - soft)

            best = minimize_scalar(less, bounds=(1.5, 3.0), method="bounded")
            assert float(kept[i]) == pytest.approx(best.x, abs=1e-4)
            again = loss(Z, Y, step(memory=memory, points=points))
            assert float(again[i]) == pytest.approx(-best.fun, abs=1e-6)

    def test_every_point_keeps_its_own_lam(self) -> None:
        """In whatever batches the points come."""
        loss = losses.build("aldr_kl")
        whole, parts = dict[str, Tensor](), dict[str, Tensor]()
        loss(Z, Y, step(memory=whole, points=torch.tensor([7, 0, 3, 1, 9, 4])))
        for some in ([3, 5], [0, 1, 2, 4]):
            at = torch.tensor([7, 0, 3, 1, 9, 4])[some]
            loss(Z[some], Y[some], step(memory=parts, points=at))
        torch.testing.assert_close(whole["aldr_kl"], parts["aldr_kl"])
        assert len(whole["aldr_kl"]) == 10
        assert whole["aldr_kl"][[2, 5, 6, 8]].tolist() == [10.0] * 4
        assert bool((whole["aldr_kl"][[0, 1, 3, 4, 7, 9]] < 10).all())

    def test_lam_lies_between_half_of_lam0_and_lam0(self) -> None:
        """Alpha = 2, and KL(p ‖ uniform) is at most log k."""
        memory = dict[str, Tensor]()
        losses.build("aldr_kl(lam0=0.001)")(Z, Y, step(memory=memory, points=torch.arange(6)))
        kept = memory["aldr_kl"] / 0.001
        assert bool(((kept >= 0.5 - 1e-6) & (kept <= 1)).all())

    def test_scale_does_not_matter(self) -> None:
        torch.testing.assert_close(value("aldr_kl", 30 * Z), value("aldr_kl"))


class TestEnsLoss:
    @pytest.mark.parametrize("power", [-0.9, -0.2, 0.0, 0.4, 1.0])
    def test_derivatives_are_those_of_a_convex_calibrated_loss(self, power: float) -> None:
        """Negative, rising with the margin, and like 1 / s in the tail: bounded below."""
        memory = {"ensloss": torch.tensor([5.0, power])}
        s = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 4
        g = losses.build("ensloss").derivatives(s, step(0.5, memory))[s.argsort()]
        ordered = s.sort().values
        assert bool((g < 0).all())
        assert bool((g[1:] >= g[:-1]).all())
        assert float(g.min()) >= -1 - 1e-5
        assert bool((g >= -1 / ordered.clamp_min(1) - 2e-6).all())

    def test_the_gradient_by_the_margins_is_what_was_drawn(self) -> None:
        loss = losses.build("ensloss")
        logits = Z.float().requires_grad_()
        margins = -loss.search(logits, Y)
        drawn = loss.derivatives(margins.detach(), step())
        (expected,) = torch.autograd.grad((drawn * margins).sum(), logits)
        (found,) = torch.autograd.grad(loss(logits, Y, step()).sum(), logits)
        torch.testing.assert_close(found, expected)

    def test_with_two_classes_the_margin_is_the_difference_of_the_logits(self) -> None:
        z = torch.tensor([[1.0, 3.0], [2.0, 0.5]])
        torch.testing.assert_close(
            losses.build("ensloss").search(z, torch.tensor([0, 0])), torch.tensor([2.0, -1.5])
        )

    def test_the_transform_is_kept_for_a_period_and_drawn_from_the_step(self) -> None:
        loss, memory = losses.build("ensloss(period=0.25)"), dict[str, Tensor]()
        powers = []
        for number in range(8):
            loss(Z, Y, step(number / 8, memory, draw=number))
            powers.append(float(memory["ensloss"][1]))
        assert powers[0] == powers[1] == 0.0
        assert powers[2] == powers[3] != powers[4] == powers[5] != powers[6] == powers[7]
        assert all(-1 < power < 1 for power in powers)

    def test_the_inverse_of_the_box_cox_transform(self) -> None:
        from importlib import import_module

        from scipy.special import inv_boxcox

        module = import_module("robustkit.defenses.losses.ensloss")
        for power in (-0.5, 0.0, 0.3, 1.0):
            v = np.linspace(-0.9, 0.9, 7)
            found = module.inverse_box_cox(torch.tensor(v), power)
            assert found.tolist() == pytest.approx(inv_boxcox(v, power).tolist())


class TestZLoss:
    @pytest.mark.parametrize("spec", ["z_loss", "z_loss(a=10, b=1)"])
    def test_does_not_change_with_shift_and_scale(self, spec: str) -> None:
        torch.testing.assert_close(value(spec, 7 * Z + 3), value(spec))

    def test_the_score_is_at_most_the_root_of_classes_minus_1(self) -> None:
        loss = losses.build("z_loss")
        best = torch.eye(4, dtype=torch.float64)[Y]
        torch.testing.assert_close(
            -loss.search(best, Y), torch.full((6,), math.sqrt(3), dtype=torch.float64)
        )
        assert bool((-loss.search(Z, Y) <= math.sqrt(3)).all())

    def test_a_large_slope_is_the_hinge(self) -> None:
        score = -losses.build("z_loss").search(Z, Y)
        torch.testing.assert_close(
            value("z_loss(a=1000, b=1)"), (1 - score).relu(), atol=1e-3, rtol=0
        )

    def test_two_classes_are_refused(self) -> None:
        with pytest.raises(UsageError, match="three classes or more, got 2"):
            value("z_loss", Z[:, :2], torch.zeros(6, dtype=torch.long))


class TestLabelSmoothing:
    def test_is_the_mixture_of_cross_entropies_to_all_classes(self) -> None:
        every = torch.stack([cross_entropy(y=torch.full_like(Y, k)) for k in range(4)])
        expected = 0.7 * cross_entropy() + 0.3 * every.mean(0)
        torch.testing.assert_close(value("label_smoothing(alpha=0.3)"), expected)
        torch.testing.assert_close(value("label_smoothing(alpha=0)"), cross_entropy())

    def test_the_search_climbs_cross_entropy(self) -> None:
        found = losses.build("label_smoothing").search(Z, Y)
        torch.testing.assert_close(found, cross_entropy())


class TestTheOption:
    @pytest.mark.parametrize("name", ["undefended", "pgd_at", "trades"])
    def test_cross_entropy_is_the_default_and_stands_in_no_name(self, name: str) -> None:
        entry = defenses.entry(name)
        assert name_of(entry, defenses.build(name)) == name
        assert name_of(entry, defenses.build(f"{name}(loss=ce)")) == name

    @pytest.mark.parametrize("name", ["undefended", "pgd_at", "trades"])
    def test_cross_entropy_trains_bit_by_bit_as_before_there_was_a_choice(self, name: str) -> None:
        found = _gradient(
            f"{name}(width=2)" if name == "undefended" else f"{name}(width=2, steps=2)"
        )
        assert torch.equal(found, _without_a_choice(name))

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("comp_sum(tau=1.50)", "comp_sum"),
            ("comp_sum(rho=1, tau=2)", "comp_sum(tau=2.0)"),
            ("'z_loss(a=10)'", "z_loss(a=10.0)"),
        ],
    )
    def test_one_loss_has_one_name(self, text: str, name: str) -> None:
        built = defenses.build(f"pgd_at(loss={text})")
        assert built.loss == name
        again = defenses.build(name_of(defenses.entry("pgd_at"), built))
        assert again == built

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("ldrr", r"Unknown loss 'ldrr'\. Did you mean 'ldr'\?"),
            ("comp_sum(taw=1)", r"Loss 'comp_sum' has no option 'taw'\. Its options: rho, tau\."),
            ("comp_sum(tau=-1)", r"Loss 'comp_sum\(tau=-1\)', option tau: .* got -1"),
            ("aldr_kl(alpha=1)", r"option alpha: Input should be greater than 1"),
        ],
    )
    def test_a_wrong_loss_is_refused_before_a_training(self, text: str, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            defenses.build(f"trades(loss={text})")

    @pytest.mark.parametrize("defense", ["undefended", "pgd_at(steps=1)", "trades(steps=1)"])
    def test_changes_the_gradient_of_the_weights(self, defense: str) -> None:
        name, _, rest = defense.partition("(")
        given = [rest.rstrip(")")] if rest else []
        found: dict[str, Tensor] = {}
        for loss in losses:
            if loss == "smooth_comp_sum" and name != "trades":
                continue
            spec = f"{name}({', '.join([*given, 'width=2', f'loss={loss}'])})"
            found[loss] = _gradient(spec)
        for loss, gradient in found.items():
            assert loss == "ce" or not torch.allclose(gradient, found["ce"])

    def test_adversarial_training_by_ldr_at_lam_1_is_that_by_cross_entropy(self) -> None:
        """The two are log k apart: the same attacked points, and the same gradient there."""
        plain, ldr = (
            _gradient(f"pgd_at(steps=3, width=2, loss={loss})")
            for loss in ("ce", "ldr(lam=1, c=0, normalized=false)")
        )
        torch.testing.assert_close(plain, ldr, rtol=1e-3, atol=1e-5)


def _gradient(spec: str) -> Tensor:
    """Return the gradient of one objective by all weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        defense = defenses.build(spec)
        network, x = defense.network((1, 8, 8), 3), torch.rand(6, 1, 8, 8)
    total = defense.objective(network, x, torch.arange(6) % 3, step())
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])


def _without_a_choice(name: str) -> Tensor:
    """Return the gradient of the objective as it was written before `loss=`."""
    functional, y, now = torch.nn.functional, torch.arange(6) % 3, step()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = defenses.build(f"{name}(width=2)").network((1, 8, 8), 3)
        x = torch.rand(6, 1, 8, 8)
    threat = Threat("linf", ramp(0.1, now.progress))
    with torch.no_grad():
        reference = network(x).log_softmax(1)

    def kl(logits: Tensor, to: Tensor, reduction: str) -> Tensor:
        moved = logits.log_softmax(1)
        return functional.kl_div(moved, to, log_target=True, reduction=reduction)

    def climbed(logits: Tensor) -> Tensor:
        if name == "trades":
            return kl(logits, reference, "sum")
        return functional.cross_entropy(logits, y, reduction="sum")

    if name == "undefended":
        total = functional.cross_entropy(network(x), y)
    else:
        z = perturb(network, x, climbed, threat, steps=2, generator=now.generator)
        logits = network(x if name == "trades" else z)
        total = functional.cross_entropy(logits, y)
        if name == "trades":
            total = total + 6.0 * kl(network(z), logits.log_softmax(1), "batchmean")
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(network.parameters()))])


@pytest.mark.parametrize("progress", [0.4, 0.5, 0.9])
def test_logits_that_a_penalty_has_pressed_together_stop_the_training(progress: float) -> None:
    """A network whose answer hardly depends on the input, in either half of the training."""
    linear = torch.nn.Linear(16, 4)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear)
    x, y = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), Y
    with torch.no_grad():
        linear.weight.mul_(1e-3)
        linear.bias.zero_()
    for loss, last, stops in (("smooth_comp_sum", True, progress >= 0.5),
                              ("smooth_comp_sum", False, False), ("ce", True, False)):  # fmt: skip
        defense = defenses.build(f"trades(loss={loss}, steps=1)")
        state = Step(progress, generator(0, 1, 0), last=last)
        if stops:
            with pytest.raises(RobustkitError, match="expected a mean clean margin of at least"):
                defense.objective(network, x, y, state)
        else:
            assert bool(defense.objective(network, x, y, state).isfinite())
