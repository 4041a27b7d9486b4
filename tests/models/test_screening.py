"""Screening the built-in surrogates, parts and the student; and that nothing is left behind."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.models.surrogates import distillation
from robustkit.models.surrogates.distillation import distill
from robustkit.models.surrogates.resolve import BUILT_IN, WithSurrogates, screened, source
from robustkit.registry import attacks
from robustkit.search.functional import attack

THREAT = Threat("linf", 0.1)


def linear(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).requires_grad_(False)


def inputs(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(1))


class Rounded(nn.Module):
    """A network behind rounded pixels; its buffers and its hooks must be as before."""

    last: Tensor

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.net, self.fails = linear(), fails
        self.register_buffer("last", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net((x * 8).round() / 8)
        with torch.no_grad():
            self.last.copy_(z[0])
        if self.fails:
            raise ValueError("no answer today")
        return z


class Hidden(nn.Module):
    """Hides a model in a list, where PyTorch does not look, and its gradient too."""

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self.hidden = list(models)

    def forward(self, x: Tensor) -> Tensor:
        answers: list[Tensor] = [model(x) for model in self.hidden]
        return torch.stack(answers).mean(0).detach()


def gradient(model: Any, x: Tensor) -> Tensor:
    query = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(model(query)[:, 0].sum(), query)
    return found


class TestNothingLeaks:
    @pytest.mark.parametrize("name", BUILT_IN)
    def test_after_an_error(self, name: str) -> None:
        before = (torch.from_numpy, torch.autograd.Function.apply, torch.is_grad_enabled())
        model = Rounded(fails=True)
        handle = model.net[1].register_full_backward_hook(lambda *_: None)
        hooks = dict(model.net[1]._backward_hooks)
        with pytest.raises(ValueError, match="no answer today"):
            source(model, name)(inputs().requires_grad_(True))
        after = (torch.from_numpy, torch.autograd.Function.apply, torch.is_grad_enabled())
        assert after[0] is before[0] and after[1:] == before[1:]
        assert dict(model.net[1]._backward_hooks) == hooks
        assert model.last.grad_fn is None
        handle.remove()
        assert float(gradient(lambda x: (x * 8).round().flatten(1), inputs()).abs().max()) == 0

    def test_from_one_model_to_another_or_to_its_own_plain_pass(self) -> None:
        first, second, x = Rounded(), linear(3), inputs()
        mixed = Hidden(second)
        straight = gradient(source(first, "bpda"), x)
        torch.testing.assert_close(straight, gradient(first.net, x))
        assert float(gradient(first, x).abs().max()) == 0
        torch.testing.assert_close(gradient(source(mixed, "bpda"), x), gradient(second, x))
        assert not mixed(x.requires_grad_(True)).requires_grad
        assert first.last.grad_fn is None

    def test_generators_and_passes_without_gradient(self) -> None:
        x, model = inputs(), Rounded()
        state = torch.get_rng_state()
        screened(model, x)
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():
            assert torch.equal(source(model, "bpda")(x.requires_grad_(True)), model(x))

    def test_a_run_inside_a_run(self) -> None:
        inner, x = Rounded(), inputs()
        outer = partial(lambda f, x: f((x * 16).floor() / 16), source(inner, "bpda"))
        nested = gradient(source(outer, "bpda"), x)
        torch.testing.assert_close(nested, gradient(inner.net, x))


class TestGradients:
    def test_agree_with_differences_where_these_are_defined(self) -> None:
        x, net = inputs().double(), linear().double()

        def model(z: Tensor) -> Tensor:
            h: Tensor = net(z).sigmoid()
            return h / h.sum(1, keepdim=True) * h.detach().log1p().exp().clamp(0, 9)

        assert torch.autograd.gradcheck(source(model, "bpda"), x.requires_grad_(True))

    def test_rows_do_not_influence_each_other(self) -> None:
        x, net = inputs(), linear()

        def model(z: Tensor) -> Tensor:
            y = torch.where(z > 0.5, z, 0 * z) + (z - 0.5).sign() + z % 0.25
            kept = y.flatten(1).topk(5, dim=1).values[:, -1].view(-1, 1, 1, 1)
            logits: Tensor = net((y > kept) * y)
            return logits.softmax(1).round(decimals=1)

        for name in (known for known in BUILT_IN if known != "pooled"):  # see test_pooled
            together = gradient(source(model, name), x)
            alone = [gradient(source(model, name), x[i : i + 1]) for i in range(len(x))]
            torch.testing.assert_close(together, torch.cat(alone))

    def test_inner_autograd_sees_the_true_gradient(self) -> None:
        x, net = inputs(), linear()

        def model(z: Tensor) -> Tensor:
            z = z.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = net((z * 8).round() / 8 + z * (z > 0.5)).square().sum()
                (slope,) = torch.autograd.grad(loss, z)
            moved: Tensor = net(z - 0.1 * slope)
            return moved

        query = x.clone().requires_grad_(True)
        torch.testing.assert_close(source(model, "bpda")(query).detach(), model(x), rtol=0, atol=0)
        torch.testing.assert_close(gradient(source(model, "bpda"), x), gradient(net, x))

    def test_smooth_reaches_every_predictor_behind_a_choice(self) -> None:
        nets, x = [linear(seed) for seed in range(5)], inputs()

        def median(z: Tensor) -> Tensor:
            stacked = torch.stack([net(z) for net in nets], 1)
            return (stacked - stacked.max(2, keepdim=True).values).median(1).values

        def mean(z: Tensor) -> Tensor:
            return torch.stack([net(z) for net in nets], 1).mean(1)

        wanted = gradient(lambda z: mean(z) - mean(z).mean(1, keepdim=True), x).flatten(1)
        closeness = [
            torch.cosine_similarity(gradient(model, x).flatten(1), wanted).mean()
            for model in (source(median, "smooth"), median)
        ]
        assert closeness[0] > 0.8 > closeness[1]


class TestScreening:
    def test_nothing_for_a_healthy_model_and_why(self) -> None:
        found = screened(nn.Sequential(linear(), nn.Identity()), inputs())
        assert list(found.models) == []
        assert found.refused["bpda"] == "its gradient is that of the model itself"
        assert found.refused["part.0"] == "its gradient is that of the model itself"
        assert (found.forwards, found.backwards) == (74, 48 + 0)

    @pytest.mark.parametrize("scale", [1e6, 1e-8])
    def test_logits_of_another_scale_count_as_others(self, scale: float) -> None:
        net = linear()
        assert "logits" in screened(lambda z: scale * net(z), inputs()).models

    def test_parts_that_answer_alike_are_found_where_they_hide(self) -> None:
        good, other, x = linear(0), linear(7), inputs(16)
        outer = Hidden(good)
        alone = screened(outer, x)
        assert list(alone.models) == ["bpda"]  # through detach
        assert alone.refused["part.hidden.0"] == "its gradient is that of bpda"
        found = screened(lambda z: outer(z) + 0.1 * other(z), x)
        assert found.models["part.outer.hidden.0"] is good
        assert source(outer, "part.hidden.0") is good
        odd = screened(lambda z: good(z).detach() + 0 * other(z).detach(), x)
        assert "agrees with the model on" in odd.refused["part.other"]

    def test_a_model_that_always_fails_with_gradients(self) -> None:
        def model(z: Tensor) -> Tensor:
            if z.requires_grad:
                raise RuntimeError("only to be looked at")
            return z.flatten(1)

        found = screened(model, inputs())
        assert not found.models
        assert "only to be looked at" in found.refused["bpda"]

    def test_a_random_model_is_compared_with_the_same_draws(self) -> None:
        """So that surrogates with its own gradient are refused, and one with another is found."""

        class Noisy(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> Tensor:
                logits: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
                return logits

        state = torch.get_rng_state()
        sound, bent = screened(Noisy(linear()), inputs()), screened(Noisy(Rounded()), inputs())
        assert torch.equal(torch.get_rng_state(), state)
        assert not {"bpda", "logits", "bypass", "smooth"} & set(sound.models)
        assert sound.refused["bpda"] == "its gradient is that of the model itself"
        assert "bpda" in bent.models

    def test_what_the_model_declares_comes_first(self) -> None:
        own = linear(5)
        model = WithSurrogates(Rounded(), {"bpda": own, "student": linear(6)})
        assert source(model, "bpda") is own
        assert "bpda" not in screened(model, inputs()).refused
        assert torch.equal(model(inputs()), model.model(inputs()))
        with pytest.raises(
            UsageError, match=r"declares \(bpda, student\), got 'part.nothing'.*has"
        ):
            source(model, "part.nothing")


class TestStudent:
    def test_learns_the_answers_inside_the_ball(self, tmp_path: Path) -> None:
        x, teacher = inputs(32), linear()
        hard = partial(
            lambda f, z: f(z).argmax(1, keepdim=True).eq(torch.arange(5)).float(), teacher
        )
        net = distill(hard, x, THREAT, 0, tmp_path, steps=150)
        assert net.forwards == 150 * distillation.BATCH
        z = (x + 0.1 * torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, x.shape))).float()
        y = teacher(x).argmax(1)
        assert float((net(z).argmax(1) == teacher(z).argmax(1)).float().mean()) > 0.85
        broken = [
            int((teacher(attack(model, x, y, search, THREAT)).argmax(1) != y).sum())
            for model, search in (
                (teacher, attacks.build("pgd(steps=10)")),
                (
                    WithSurrogates(hard, {"student": net}),
                    attacks.build("pgd(steps=10, surrogate=student)"),
                ),
                (hard, attacks.build("pgd(steps=10)")),
            )
        ]
        assert broken[1] >= 0.6 * broken[0] > 2 * broken[2]

    def test_is_stored_and_trained_again_for_other_points(self, tmp_path: Path) -> None:
        x, teacher = inputs(), linear()
        first = distill(teacher, x, THREAT, 0, tmp_path, steps=3)
        state = torch.get_rng_state()
        stored = (tmp_path / "student.safetensors").read_bytes()
        again = distill(teacher, x, THREAT, 0, tmp_path, steps=3)
        assert torch.equal(torch.get_rng_state(), state)
        assert again.forwards == first.forwards
        assert torch.equal(again(x), first(x))
        (tmp_path / "student.safetensors").write_bytes(
            stored[:40]
        )  # truncated: trained again, to the same
        assert torch.equal(distill(teacher, x, THREAT, 0, tmp_path, steps=3)(x), first(x))
        other = distill(teacher, x, THREAT, 1, tmp_path, steps=3)
        assert not torch.equal(other(x), first(x))
