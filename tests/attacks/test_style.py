"""Style: the identity, what an image's parameters are, and the search against a fine grid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.registry import attacks, read_threat
from robustkit.search.functional import attack
from robustkit.search.suites import line_up

TEXTS = ("style:mean,scale", "style:mean,scale,linked", "style:mean", "style:scale=3")


def style(text: str = "style:mean,scale") -> ParametricThreat:
    threat = read_threat(text)
    assert isinstance(threat, ParametricThreat)
    return threat


def images(count: int, channels: int = 1, size: int = 12) -> Tensor:
    """On 8-bit levels, as data sets hold them."""
    drawn = torch.rand(count, channels, size, size, generator=generator(0, 1, channels))
    return (drawn * 255).round() / 255


def somewhere(threat: ParametricThreat, x: Tensor, seed: int = 0) -> Tensor:
    size = len(x), threat.size(x.shape[1:])
    return torch.randint(-STEPS, STEPS + 1, size, generator=generator(seed, 2, 3))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_no_move_is_the_identity_bit_by_bit(text: str, channels: int) -> None:
    threat, x = style(text), images(4, channels)
    x[0] = torch.rand(x[0].shape, generator=generator(0, 5, 0)) * 1e-9  # far below a level
    nothing = torch.zeros(4, threat.size(x.shape[1:]), dtype=torch.long)
    assert torch.equal(threat.made(x, nothing), x)
    assert threat.distance(x, x).tolist() == [0.0] * 4


def test_images_are_those_of_the_formula() -> None:
    threat, x = style("style:mean=0.2,scale=2"), images(5, 3)
    positions = somewhere(threat, x).view(5, 3, 2)
    mean = x.double().mean((2, 3), keepdim=True)
    shift = (0.2 * positions[..., 0] / STEPS)[..., None, None]
    scale = (2.0 ** (positions[..., 1] / STEPS))[..., None, None]
    expected = ((x.double() - mean) * scale + mean + shift).clamp(0, 1)
    made = threat.made(x, positions.flatten(1))
    torch.testing.assert_close(made.double(), expected, atol=2e-6, rtol=0)


def test_the_contrast_of_a_constant_image_is_without_effect() -> None:
    threat, x = style(), torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    here = torch.tensor([[300, -STEPS], [300, STEPS]])
    assert torch.equal(threat.made(x, here), threat.made(x, torch.tensor([[300, 0]] * 2)))
    assert threat.distance(threat.made(x, here), x).tolist() == [0.3, 0.3]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_tells_its_parameters_and_no_other_image_has_any(text: str, channels: int) -> None:
    threat, x = style(text), images(6, channels)
    positions = somewhere(threat, x)
    made = threat.made(x, positions)
    found, there = threat.positions(made, x)
    assert there.all() and torch.equal(found, positions)
    assert torch.equal(threat.distance(made, x), positions.abs().amax(1).double() / STEPS)
    other = made.clone()
    other[:, 0, 3, 3] = 1 - other[:, 0, 3, 3]
    assert not threat.contains(other, x).any()
    assert threat.distance(other, x).isinf().all()
    assert not threat.contains(made + 2, x).any()


def test_parameters_are_found_where_most_pixels_are_clipped() -> None:
    threat, x = style("style:mean=1,scale=100"), (images(12) > 0.5).float()
    made = threat.made(x, somewhere(threat, x))
    found, there = threat.positions(made, x)
    assert there.all() and torch.equal(threat.made(x, found), made)


def test_what_is_named_wrongly_is_told_what_there_is() -> None:
    for text in ("linked", "mean=0", "mean=2", "scale=1", "scale=0.5", "hue", "mean,mean", ""):
        with pytest.raises(UsageError, match="style:mean,scale"):
            read_threat(f"style:{text}" if text else "style:,")
    assert str(read_threat("style:Mean=0.05,Scale=2")) == "style:mean=0.05,scale=2"
    with pytest.raises(UsageError, match="gray or colour images"):
        style().check((4,), None)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "fab", "autoattack:standard"])
def test_attacks_for_norms_refuse_style_by_name_with_the_cure(name: str) -> None:
    with pytest.raises(UsageError, match=r"needs a norm .* style:mean,scale moves .*parametric"):
        line_up(None, [name], style())
    with pytest.raises(UsageError, match="--suite parametric"):
        line_up("fast", [], style())
    with pytest.raises(UsageError, match=r"supports threat models with parameters.*linf"):
        line_up(None, ["parametric"], Threat("linf", 0.1))


def tiny(seed: int, channels: int = 1, size: int = 12) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(channels, 4, 4, stride=2), nn.ReLU(), nn.Flatten(),
                             nn.Linear(4 * ((size - 4) // 2 + 1) ** 2, 4)).eval()  # fmt: skip


def broken(model: nn.Module, x: Tensor, y: Tensor, spec: str, threat: ParametricThreat) -> Tensor:
    z = attack(model, x, y, spec, threat)
    assert threat.contains(z, x).all()
    with torch.no_grad():
        fooled: Tensor = model(z).argmax(1) != y
    return fooled


@pytest.mark.parametrize("text", ["style:mean,scale", "style:mean=0.3,scale=3"])
def test_the_search_breaks_what_a_fine_grid_breaks(text: str) -> None:
    threat, x = style(text), images(24)
    line = torch.arange(-STEPS, STEPS + 1, STEPS // 20)
    for seed in range(2):
        model, truth = tiny(seed), torch.zeros(24, dtype=torch.bool)
        with torch.no_grad():
            y = model(x).argmax(1)
            for mean in line:  # 41 contrasts of every image at once
                places = torch.stack([mean.expand(41), line], 1).repeat(24, 1)
                made = threat.made(x.repeat_interleave(41, 0), places)
                wrong = model(made).argmax(1) != y.repeat_interleave(41)
                truth |= wrong.view(24, 41).any(1)
        assert 0 < truth.sum() < 24
        assert (broken(model, x, y, "parametric", threat) | ~truth).all()


def test_more_channels_are_searched_from_a_sequence() -> None:
    threat, x, model = style("style:mean=0.3,scale=3"), images(30, 3), tiny(0, 3)
    with torch.no_grad():
        y = model(x).argmax(1)
    looked = broken(model, x, y, "parametric(starts=0)", threat)
    climbed = broken(model, x, y, "parametric", threat)
    assert (climbed | ~looked).all() and climbed.sum() > looked.sum()


def test_a_run_costs_its_grid_and_its_steps() -> None:
    threat, x, calls = style(), images(1), list[int]()

    def sure(z: Tensor) -> Tensor:
        calls.append(len(z))
        return torch.stack([z.flatten(1).sum(1) * 0 + 1, z.flatten(1).sum(1) * 1e-6], 1)

    attack(sure, x, torch.zeros(1, dtype=torch.long), "parametric(starts=2, steps=3)", threat)
    assert sum(calls) == 1 + 25 + 2 * 3
    assert attacks.build("parametric").jobs(threat, 10)


def test_found_inputs_do_not_depend_on_slots() -> None:
    threat, x, model = style("style:mean=0.3,scale=3"), images(20), tiny(1)
    with torch.no_grad():
        y = model(x).argmax(1)
    one, many = (attack(model, x, y, "parametric", threat, slots=slots) for slots in (3, 64))
    assert torch.equal(one, many)
