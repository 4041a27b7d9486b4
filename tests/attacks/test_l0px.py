"""Pixels that may change: the count, a closed form on linear models, gray images, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.certify.certifier import build_certifier
from robustkit.core.threat import Threat
from robustkit.data.arrays import as_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.registry import attacks, read_threat, suites
from robustkit.search.functional import attack
from robustkit.search.suites import default_suite, line_up


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Two classes: the margin of class 1 is w·x + b."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.weight, self.bias = draw(3, 5, 5, seed=3) - 0.5, bias

    def forward(self, x: Tensor) -> Tensor:
        margin = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([margin * 0, margin], 1)


def most(model: Linear, x: Tensor, count: int) -> Tensor:
    """The largest margin that so many pixels reach: those that gain most, each at its best color.

    A pixel gains what the better end of the box gains in each of its channels.
    """
    gain = torch.maximum(model.weight * (1 - x), -model.weight * x).sum(1).flatten(1)
    reached: Tensor = model(x)[:, 1] + gain.topk(count, dim=1).values.sum(1)
    return reached


def test_the_distance_counts_pixels_and_channels_once() -> None:
    threat, x = read_threat("l0px:2"), torch.full((5, 3, 2, 2), 0.5)
    z = x.clone()
    z[1, 0, 0, 0] += 2.0**-24
    z[2, :, 1, 1] = 1.0
    z[3, 0], z[3, 0, 0, 0] = 0.0, 0.5
    z[4, 0, 0, 0] = 1.5
    assert threat.distance(z, x).tolist() == [0, 1, 1, 3, math.inf]
    assert threat.contains(z, x).tolist() == [True, True, True, False, False]
    assert threat.limit(12) == threat.eps == 2


@pytest.mark.parametrize("count", [1, 3, 8])
def test_on_a_linear_model_exactly_the_points_of_the_closed_form_fall(count: int) -> None:
    x, y = draw(100, 3, 5, 5), torch.zeros(100, dtype=torch.long)
    model = Linear(-float(most(Linear(), x, count).median()) - 1e-4)
    right, reach = model(x)[:, 1] <= 0, most(model, x, count)
    falls = right & (reach > 0)
    assert 25 < int(falls.sum()) < 75
    z = attack(model, x, y, "pixels(steps=1)", f"l0px:{count}")
    assert torch.equal(right & (model(z)[:, 1] > 0), falls)
    z = attack(model, x, y, "sigma_zero(steps=100)", f"l0px:{count}")
    fooled = right & (model(z)[:, 1] > 0)
    assert not bool((fooled & ~falls).any())  # a search by small steps: no more than the truth
    assert int(fooled.sum()) >= 0.75 * int(falls.sum())


def test_on_gray_images_it_is_l0_bit_by_bit() -> None:
    x = draw(12, 1, 6, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    spec = "sigma_zero(steps=40)"
    found = attack(model, x, y, spec, "l0px:3")
    assert torch.equal(found, attack(model, x, y, spec, "l0:3"))
    assert bool((found != x).any())
    assert torch.equal(found, attack(model, x, y, spec, "l0px:3", slots=5))


def test_channels_of_a_pixel_move_together() -> None:
    """Colour counts once: with three channels a pixel, three times as many numbers may change."""
    x = draw(60, 3, 5, 5)
    model = Linear(-float(most(Linear(), x, 3).median()))
    y = torch.zeros(60, dtype=torch.long)
    z = attack(model, x, y, "sigma_zero(steps=200)", "l0px:3")
    fell, numbers = (z != x).flatten(1).any(1), (z != x).flatten(1).sum(1)
    assert fell.sum() > 10 and (numbers[fell] > 3).any() and (numbers <= 9).all()


def test_a_run_is_verified_point_by_point(tmp_path: Path) -> None:
    x = draw(30, 3, 5, 5)
    model = Linear(-float(most(Linear(), x, 2).median()))
    data = as_dataset("colors", (x, model(x).argmax(1)))
    record = robustkit.evaluate(model, data, "l0px:2", folder=tmp_path, certify="auto(share=0.15)")
    assert record.threat.text == "l0px:2" and record.suite == "pixelwise"
    assert {d for d in record.points.distance if d is not None} <= {1.0, 2.0}
    checked = verify_record(load_baselines(tmp_path)[0], model, data, sample=2)
    assert checked.holds
    assert checked.findings[2].checked == record.points.status.count("broken") > 0


@pytest.mark.parametrize("text", ["l0px:0", "l0px:2.5", "l0px:-3", "l0px:few"])
def test_other_forms_are_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(UsageError, match="expected l0px:10, a number of pixels.*got " + text):
        read_threat(text)


def test_what_does_not_fit_is_refused_and_says_what_to_do() -> None:
    threat = read_threat("l0px:26")
    with pytest.raises(UsageError, match=r"at most the 25 pixels of an image .*got 26"):
        threat.check((3, 5, 5), None)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"counts pixels of images.*\[7\]: l0:26 counts numbers"):
        threat.check((7,), None)  # type: ignore[attr-defined]
    assert default_suite(threat) == "pixelwise"
    for suite, chosen in ((None, ["pgd"]), ("quick", [])):
        with pytest.raises(UsageError, match=r"needs a norm.*counts pixels.*--suite pixelwise"):
            line_up(suite, chosen, threat)
    for method in ("ibp", "auto"):
        with pytest.raises(UsageError, match=r"certificate.*counts pixels, which no bound"):
            build_certifier(Linear(), (3, 5, 5), threat, method)
    with pytest.raises(UsageError, match=r"suite pixelwise supports l0px:10, got l0\. Use quick"):
        suites.build("pixelwise").attacks(Threat("l0", 3))
    with pytest.raises(UsageError, match="sigma_zero supports l0 and l0px, got linf"):
        attacks.build("sigma_zero").jobs(Threat("linf", 0.1), 10)
