"""CrossMax: the rule by hand, the stack's draws, and the networks that are joined by it."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.rng import generator
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.surrogates.resolve import Joint
from robustkit.models.training import Step
from robustkit.registry import defenses

defenses.entries()  # the pack has to be loaded before its modules are asked for
crossmax_module: Any = importlib.import_module("robustkit.defenses.crossmax")
crossmax = crossmax_module.crossmax
MultiResolution: Any = importlib.import_module("robustkit.defenses._multires").MultiResolution

QUIET = {"jitter": 0, "contrast": (1.0, 1.0), "color": (1.0, 1.0), "noise": 0.0}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(shape: tuple[int, int, int] = (1, 8, 8), **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return crossmax_module.CrossMax(width=4, **options).network(shape, 3)


def test_crossmax_by_hand() -> None:
    """Rows less their largest: (0,-2,-3), (-1,0,-4), (0,-3,-1), (-5,-1,0); columns peak at 0."""
    z = torch.tensor([[[3.0, 1, 0], [4, 5, 1], [2, -1, 1], [0, 4, 5]]])
    assert crossmax(z, "kth", 1).tolist() == [[0, 0, 0]]
    assert crossmax(z, "kth", 2).tolist() == [[0, -1, -1]]
    assert crossmax(z, "kth", 3).tolist() == [[-1, -2, -3]]
    assert crossmax(z, "median").tolist() == [[-0.5, -1.5, -2]]
    assert crossmax(z[:, :3], "median").tolist() == [[0, -2, -2]]
    assert torch.equal(crossmax(z), crossmax(z, "kth", 3))


def test_crossmax_subtracts_what_is_left_of_a_column() -> None:
    """No predictor prefers class 1; its column is lifted by the largest left, -1."""
    z = torch.tensor([[[5.0, 4.0], [7.0, 4.0]]])
    assert crossmax(z, "kth", 2).tolist() == [[0, -2]]


@pytest.mark.parametrize("top", [5, 100])
def test_rank_is_clamped_to_the_predictors(top: int) -> None:
    z = draw(4, 5, 3)
    assert torch.equal(crossmax(z, "kth", top), crossmax(z, "kth", 5))


@pytest.mark.parametrize("rule", ["kth", "median"])
def test_crossmax_knows_neither_order_nor_offset(rule: str) -> None:
    z = draw(6, 7, 5).double()
    expected = crossmax(z, rule)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(crossmax(z[:, order], rule), expected)
    torch.testing.assert_close(crossmax(z + 10 * draw(6, 7, 1).double(), rule), expected)
    classes = [3, 0, 4, 1, 2]
    assert torch.equal(crossmax(z[..., classes], rule), expected[:, classes])


def test_one_loud_predictor_does_not_decide() -> None:
    z = draw(1, 6, 4)
    z[:, :, 2] += 5  # five agree on class 2
    z[:, 0] = torch.tensor([1000.0, 0, 0, 0])
    assert int(z.mean(1).argmax()) == 0
    assert int(crossmax(z).argmax()) == 2


def test_gradient_of_the_kth_value_is_sparse() -> None:
    """At most four logits: the value, its row's largest, the column's largest and its row's."""
    z = draw(1, 8, 10, seed=3).requires_grad_(True)
    for label in range(10):
        (gradient,) = torch.autograd.grad(crossmax(z)[0, label], z)
        assert int(gradient.count_nonzero()) <= 4
        assert int(gradient[0].any(1).sum()) <= 2  # of eight predictors
        (smooth,) = torch.autograd.grad(z.mean(1)[0, label], z)
        assert bool((smooth[0, :, label] == 1 / 8).all())


@pytest.mark.parametrize(
    ("z", "rule", "top"),
    [
        (torch.zeros(2, 3), "kth", 3),
        (torch.zeros(2, 0, 3), "kth", 3),
        (torch.zeros(2, 3, 4), "kth", 0),
        (torch.zeros(2, 3, 4), "mean", 3),
    ],
)
def test_crossmax_refuses_what_it_does_not_know(z: Tensor, rule: str, top: int) -> None:
    with pytest.raises(UsageError, match="crossmax: expected"):
        crossmax(z, rule, top)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 5, 9), (1, 1, 1)])
def test_stack_has_its_shape_and_range(shape: tuple[int, int, int]) -> None:
    stack, x = MultiResolution(), images(3, *shape)
    for copies in (stack(x), stack.fixed(x)):
        assert copies.shape == (3, 4 * shape[0], *shape[1:])
        assert float(copies.min()) >= 0
        assert float(copies.max()) <= 1


def test_quiet_stack_resizes_and_no_more() -> None:
    stack, x = MultiResolution((1.0, 0.5), **QUIET), images(2, 1, 8, 8)
    low = nn.functional.interpolate(x, size=(4, 4), mode="bicubic")
    blurred = nn.functional.interpolate(low, size=(8, 8), mode="bicubic").clamp(0, 1)
    for copies in (stack(x), stack.fixed(x)):
        torch.testing.assert_close(copies, torch.cat([x, blurred], 1))


def test_fixed_stack_adds_the_mean_of_the_noise_twice() -> None:
    x = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(MultiResolution().fixed(x), torch.full((1, 4, 8, 8), 0.5))


def test_jitter_rolls_every_image_and_copy_by_its_own_shift() -> None:
    stack = MultiResolution((1.0, 1.0), **{**QUIET, "jitter": 2})
    x = images(40, 1, 7, 6)
    rolled = {(dy, dx): x.roll((dy, dx), (2, 3)) for dy in range(-2, 3) for dx in range(-2, 3)}
    copies, seen = stack(x), []
    for i in range(40):
        for j in range(2):
            hits = [s for s, r in rolled.items() if torch.allclose(copies[i, j], r[i, 0])]
            assert len(hits) == 1
            seen += hits
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}
    assert seen[::2] != seen[1::2]


def test_contrast_and_color_are_two_factors() -> None:
    x = images(2, 3, 6, 6)
    gray = MultiResolution((1.0,), **{**QUIET, "color": (0.0, 0.0)})(x)
    torch.testing.assert_close(gray, x.mean(1, keepdim=True).expand_as(x))
    flat = MultiResolution((1.0,), **{**QUIET, "contrast": (0.0, 0.0)})(x)
    luma = (x * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1).mean((1, 2))
    torch.testing.assert_close(flat, luma.view(2, 1, 1, 1).expand_as(x))


def test_stack_draws_from_its_seed_and_the_number_of_the_pass() -> None:
    x = images(2, 1, 8, 8)
    one, same, other = MultiResolution(), MultiResolution(), MultiResolution(seed=1)
    first, second = one(x), one(x)
    assert not torch.equal(first, second)
    assert torch.equal(same(x), first)
    going_on = copy.deepcopy(same)
    assert torch.equal(same(x), second)
    assert torch.equal(going_on(x), second)
    assert not torch.equal(other(x), first)
    state = torch.get_rng_state()
    given = one(x, generator(0, 1, 7))
    assert torch.equal(one(x, generator(0, 1, 7)), given)
    assert one.calls == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.fixed(x), one.fixed(x))


def test_stack_is_differentiable() -> None:
    """Everything but the clipping is smooth, so a directional difference agrees."""
    stack = MultiResolution(contrast=(0.7, 0.9), noise=0.05)
    x = (0.3 + 0.3 * images(1, 3, 8, 8)).double().requires_grad_(True)
    weight, step = draw(1, 12, 8, 8).double(), draw(1, 3, 8, 8, seed=1).double()

    def value(z: Tensor) -> Tensor:
        total: Tensor = (weight * stack(z, generator(0, 0, 0))).sum()
        return total

    (gradient,) = torch.autograd.grad(value(x), x)
    with torch.no_grad():
        slope = (value(x + 1e-6 * step) - value(x - 1e-6 * step)) / 2e-6
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"resolutions": ()},
        {"resolutions": (28.0, 14.0)},
        {"jitter": -1},
        {"noise": -0.1},
        {"contrast": (1.5, 0.7)},
        {"color": (-1.0, 1.0)},
    ],
)
def test_stack_refuses_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        MultiResolution(**options)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 2, 3)])
def test_network_is_random_in_evaluation_too(shape: tuple[int, int, int]) -> None:
    model, x = network(shape).eval(), images(4, *shape)
    twin = copy.deepcopy(model)
    logits = model(x)
    assert model.randomized
    assert logits.shape == (4, 3)
    assert not torch.equal(model(x), logits)
    assert torch.equal(twin(x), logits)
    assert model.predictors(x).shape == (4, 6, 3)
    given = [model(x, generator(0, 0, 0)) for _ in range(2)]
    assert torch.equal(*given)


def test_network_has_the_size_that_it_says() -> None:
    model = crossmax_module.CrossMax().network((1, 28, 28), 10)
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 0.45e6


def test_surrogates() -> None:
    model, x = network().eval(), images(4, 1, 8, 8)
    known = model.surrogates()
    assert set(known) == {"mean", "fixed", "backbone"}
    assert all(f(x).shape == (4, 3) for f in known.values())
    assert not torch.equal(known["mean"](x), known["mean"](x))
    assert isinstance(known["mean"], Joint)
    alike = copy.deepcopy(model)  # goes on with the same draws
    torch.testing.assert_close(known["mean"].both(x)[1], alike(x))
    raw = model.predictors(x, fixed=True)
    torch.testing.assert_close(known["fixed"](x), raw.mean(1))
    torch.testing.assert_close(known["backbone"](x), raw[:, -1])
    still = crossmax(raw)
    assert not torch.allclose(known["fixed"](x), still)
    z = x.clone().requires_grad_(True)
    assert all(bool(torch.autograd.grad(f(z).sum(), z)[0].any()) for f in known.values())


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_objective_follows_its_step(eps: float) -> None:
    defense, model = crossmax_module.CrossMax(width=4, eps=eps), network().train()
    x, y = images(6, 1, 8, 8), torch.arange(6) % 3

    def loss(count: int, progress: float = 1.0) -> Tensor:
        value: Tensor = defense.objective(model, x, y, Step(progress, generator(0, 1, count)))
        return value

    assert torch.equal(loss(0), loss(0))
    assert not torch.equal(loss(0), loss(1))
    assert model.stack.calls == 0
    assert all(p.grad is None for p in model.parameters())
    assert (eps > 0) == (not torch.equal(loss(0), loss(0, 0.0)))


def test_heads_do_not_shape_the_backbone() -> None:
    model, x, y = network().train(), images(6, 1, 8, 8), torch.arange(6) % 3
    trunk = [*model.stem.parameters(), *model.blocks.parameters(), *model.fc.parameters()]
    whole = crossmax_module.CrossMax(width=4).objective(model, x, y, Step(0.5, generator(0, 1, 0)))
    alone = nn.functional.cross_entropy(model.backbone(x, generator(0, 1, 0)), y)
    pairs = zip(torch.autograd.grad(whole, trunk), torch.autograd.grad(alone, trunk), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected)


def test_objective_is_for_its_own_network() -> None:
    with pytest.raises(UsageError, match="got a Flatten"):
        crossmax_module.CrossMax().objective(
            nn.Flatten(), images(2, 1, 8, 8), torch.tensor([0, 1]), Step(0.0, generator(0, 1, 0))
        )


def test_a_few_steps_learn() -> None:
    """Two classes, bright above or bright below: the joined answer is right after 40 steps."""
    defense, model = crossmax_module.CrossMax(width=4), network(jitter=1).train()
    y = torch.arange(32) % 2
    x = 0.3 * images(32, 1, 8, 8)
    x[y == 0, :, :4] += 0.6
    x[y == 1, :, 4:] += 0.6
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for count in range(40):
        loss = defense.objective(model, x, y, Step(0.5, generator(0, 1, count)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert int((model(x).argmax(1) == y).sum()) >= 29


TWO = """
import torch
from torch import nn


class Fixed(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return self.scale * x.flatten(1)[:, :4]


def up():
    return Fixed(2.0)


def down():
    return Fixed(-1.0)


def noisy():
    model = Fixed(3.0)
    model.randomized = True
    return model
"""


def test_ensemble_joins_other_models(blobs: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(TWO)
    members = (f"{path}:up", f"{path}:down")
    model = crossmax_module.CrossMaxEnsemble(members).load(blobs).eval()
    x, _ = blobs.fetch([0, 1, 2])
    first = x.flatten(1)[:, :4]
    raw = torch.stack([2 * first, -first], dim=1)
    torch.testing.assert_close(model(x), crossmax(raw, "median"))
    torch.testing.assert_close(model.surrogates()["mean"](x), first / 2)
    assert not model.randomized
    best = crossmax_module.CrossMaxEnsemble(members, rule="kth", top=2).load(blobs)
    torch.testing.assert_close(best(x), crossmax(raw, "kth", 2))
    noisy = crossmax_module.CrossMaxEnsemble((*members, f"{path}:noisy")).load(blobs)
    assert noisy.randomized


@pytest.mark.parametrize("members", [(), ("undefended",)])
def test_ensemble_takes_two(members: tuple[str, ...], blobs: Dataset) -> None:
    with pytest.raises(UsageError, match="at least 2 members"):
        crossmax_module.CrossMaxEnsemble(members).load(blobs)


def test_options_are_read_from_a_spec() -> None:
    built = defenses.build("crossmax(resolutions=(1.0,), rule=median, eps=0.1, contrast=(1, 1))")
    assert (built.resolutions, built.rule, built.contrast) == ((1.0,), "median", (1.0, 1.0))
    joined = defenses.build('crossmax_ensemble(members=(undefended, "pgd_at(eps=0.3)"))')
    assert joined.members == ("undefended", "pgd_at(eps=0.3)")
    for text in ("crossmax(rule=mean)", "crossmax(top=0)", "crossmax(eps=-1)"):
        with pytest.raises(UsageError, match="option"):
            defenses.build(text)
