"""AugMix: keyed by the point, equal to Pillow's operations, the divergence by its definition."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image, ImageOps

from robustkit.core.rng import generator
from robustkit.data.open import open_dataset
from robustkit.models.training import Step
from robustkit.registry import defenses

ops = import_module("robustkit.defenses._augmix")
augmix = import_module("robustkit.defenses.augmix")


class Fixed:
    """A generator whose level is given, and whose sign is positive."""

    def __init__(self, level: float) -> None:
        self.level = level

    def uniform(self, *limits: float) -> float:
        """The level between limits, else the sign."""
        return self.level if limits else 0.2


def pictures() -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    x, _ = open_dataset("bundled").fetch(range(0, 1000, 50))
    draw = np.random.default_rng(0)
    noise = draw.integers(256, size=(1, 20, 30)).astype(np.uint8)
    return [*np.round(x.numpy() * 255).astype(np.uint8), noise, noise // 16, noise * 0 + 7]


@pytest.mark.parametrize("level", [0.1, 1.0, 2.6, 3.0])
def test_operations_are_those_of_pillow(level: float) -> None:
    draw = Fixed(level)
    expected: dict[str, Any] = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "posterize": lambda p: ImageOps.posterize(p, 4 - int(level * 0.4)),
        "solarize": lambda p: ImageOps.solarize(p, 256 - int(25.6 * level)),
        "rotate": lambda p: p.rotate(int(3 * level), resample=Image.Resampling.BILINEAR),
    }
    for image in pictures():
        for name, change in expected.items():
            found = ops.OPERATIONS[name](image, draw)
            wanted = np.asarray(change(Image.fromarray(image[0])))
            assert np.array_equal(found[0], wanted), name


def test_an_image_does_not_depend_on_what_else_is_in_the_batch() -> None:
    x, _ = open_dataset("bundled").fetch(range(6))
    points = torch.tensor([40, 7, 7, 12, 3, 99])
    whole = ops.augmented(x, points, generator(0, 1, 5), 2)
    order = torch.tensor([4, 1, 0])
    part = ops.augmented(x[order], points[order], generator(0, 1, 5), 2)
    for all_of_them, some in zip(whole, part, strict=True):
        assert torch.equal(all_of_them[order], some)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], ops.augmented(x, points, generator(0, 1, 6), 1)[0])


def test_mixtures_lie_in_the_box_in_gray_and_in_color() -> None:
    draw = np.random.default_rng(1)
    for channels in (1, 3):
        image = draw.random((channels, 12, 9)).astype(np.float32)
        for seed in range(20):
            made = ops.mixed(image, RandomState(seed))
            assert made.shape == image.shape and made.dtype == np.float32
            assert made.min() >= 0 and made.max() <= 1
    black = np.zeros((1, 9, 9), np.float32)
    assert not ops.mixed(black, RandomState(0)).any()


def test_the_divergence_is_the_mean_over_the_views_and_zero_where_they_agree() -> None:
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(2)
    entropy = -(p * p.log()).sum(2)
    mean = p.mean(0)
    expected = -(mean * mean.log()).sum(1) - entropy.mean(0)  # H(mean) − mean H
    torch.testing.assert_close(augmix.jensen_shannon(tuple(logits)), expected)
    same = augmix.jensen_shannon((logits[0],) * 3)
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_without_weight_the_loss_is_cross_entropy() -> None:
    x, y = open_dataset("bundled").fetch(range(5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = defenses.build("augmix(width=4)").network((1, 28, 28), 10)
    step = Step(0.5, generator(0, 1, 0), points=torch.arange(5))
    plain = torch.nn.functional.cross_entropy(network(x), y)
    torch.testing.assert_close(
        defenses.build("augmix(width=4, weight=0)").objective(network, x, y, step), plain
    )
    assert defenses.build("augmix(width=4)").objective(network, x, y, step) > plain
