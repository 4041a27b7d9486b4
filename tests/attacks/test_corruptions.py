"""Each corruption against a closed form; the same bytes whatever the batch; the threat model."""

from __future__ import annotations

import colorsys
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from robustkit.core.finite import FiniteThreat
from robustkit.errors import UsageError
from robustkit.registry import read_threat

module = importlib.import_module("robustkit.attacks._corruptions")
corrupt = module.corrupt
NAMES = sorted(module.CORRUPTIONS)
SIZES = [(1, 28, 28), (3, 32, 32), (3, 29, 40), (3, 128, 110)]


def image(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    """Smooth blobs in [0, 1], on 8-bit levels."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    waves = [
        sum(np.sin(a * rows / 9 + b * columns / 7 + c) for a, b, c in draw.normal(0, 1, (4, 3)))
        for _ in range(shape[0])
    ]
    x = np.stack(waves)
    x = (x - x.min()) / (x.max() - x.min())
    rounded: NDArray[np.float64] = np.round(x * 255) / 255
    return rounded


def finite(text: str) -> FiniteThreat:
    threat = read_threat(text)
    assert isinstance(threat, FiniteThreat)
    return threat


def test_the_benchmark_has_fifteen_corruptions_in_four_groups_and_three_extra() -> None:
    groups = module.grouped()
    assert len(groups["all"]) == 15 and "fog" in groups["weather"]
    assert [len(groups[name]) for name in ("noise", "blur", "weather", "digital")] == [3, 4, 4, 4]
    assert set(groups["extra"]) == {"gaussian_blur", "speckle_noise", "saturate"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_gets_an_image_of_8_bits_that_the_key_alone_decides(
    name: str, shape: tuple[int, ...]
) -> None:
    x = image(shape)
    first = corrupt(x, name, 4, point=3)
    np.random.seed(0)  # the global generator plays no part
    assert first.dtype == np.uint8 and first.shape == shape
    assert np.array_equal(first, corrupt(x, name, 4, point=3))
    gray_saturate = name == "saturate" and shape[0] == 1
    assert gray_saturate or not np.array_equal(first, corrupt(x, name, 0, point=3))


@pytest.mark.parametrize("name", NAMES)
def test_severity_0_leaves_the_image_and_points_have_draws_of_their_own(name: str) -> None:
    x = image((3, 32, 32))
    assert np.array_equal(corrupt(x, name, 0, point=5), np.round(x * 255).astype(np.uint8))
    fixed = {"brightness", "contrast", "defocus_blur", "gaussian_blur", "jpeg_compression",
             "pixelate", "saturate", "zoom_blur"}  # fmt: skip
    same = np.array_equal(corrupt(x, name, 3, point=5), corrupt(x, name, 3, point=6))
    assert same == (name in fixed)


def flat(value: float) -> NDArray[np.float64]:
    return np.full((3, 96, 96), value)


def spread(name: str, severity: int, value: float = 0.5) -> tuple[float, float]:
    """Mean and standard deviation of the pixels of a constant image, corrupted."""
    z = corrupt(flat(value), name, severity, point=0) / 255
    return float(z.mean()) + 0.5 / 255, float(z.std())  # truncated: half a level too dark


@pytest.mark.parametrize(
    "name, deviations",
    [
        ("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)),
        ("speckle_noise", (0.03, 0.05, 0.06, 0.08, 0.10)),  # in proportion to the pixel
        ("shot_noise", tuple((0.5 / c) ** 0.5 for c in (500, 250, 100, 75, 50))),  # Poisson
    ],
)
def test_noise_on_a_constant_image_has_the_mean_and_deviation_of_its_law(
    name: str, deviations: tuple[float, ...]
) -> None:
    for severity, expected in enumerate(deviations, 1):
        mean, deviation = spread(name, severity)
        assert mean == pytest.approx(0.5, abs=0.004)  # 27,648 draws: 5 standard errors
        assert deviation == pytest.approx(expected, rel=0.03)


def test_impulses_hit_their_share_of_the_numbers_half_of_them_white() -> None:
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        z = corrupt(flat(0.5), "impulse_noise", severity, point=0)
        hit = (z == 0) | (z == 255)
        assert hit.mean() == pytest.approx(share, abs=0.006)
        assert (z[hit] == 255).mean() == pytest.approx(0.5, abs=0.12)


def test_contrast_draws_every_channel_toward_its_mean() -> None:
    x = image((3, 32, 32))
    mean = x.mean((1, 2), keepdims=True)
    for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
        z = corrupt(x, "contrast", severity, point=0)
        assert np.array_equal(z, np.floor(((x - mean) * factor + mean) * 255 + 1e-9))


@pytest.mark.parametrize("name, place, constants", [
    ("brightness", 2, [(1, c) for c in (0.05, 0.10, 0.15, 0.20, 0.30)]),
    ("saturate", 1, [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)]),
])  # fmt: skip
def test_brightness_and_saturation_are_those_of_hsv(
    name: str, place: int, constants: list[tuple[float, float]]
) -> None:
    x = image((3, 28, 28), seed=1)
    x[:, 0, 0], x[:, 0, 1] = 0, 0.4  # black and gray have no hue
    for severity, (factor, shift) in enumerate(constants, 1):
        z = corrupt(x, name, severity, point=0)
        for row, column in [(0, 0), (0, 1), (9, 9), (20, 5), (27, 13)]:
            hsv = list(colorsys.rgb_to_hsv(*x[:, row, column]))
            hsv[place] = min(max(hsv[place] * factor + shift, 0), 1)
            expected = np.array(colorsys.hsv_to_rgb(*hsv)) * 255
            assert np.abs(z[:, row, column] - np.floor(expected + 1e-9)).max() <= 1


def test_glass_copies_pixels_from_within_reach_and_swaps_none() -> None:
    blur = importlib.import_module("robustkit.attacks._blur")
    x = np.arange(32 * 32).reshape(1, 32, 32) / 1024  # every pixel another value
    moved = blur.glass_blur(x, np.random.RandomState(0), 1e-6, 2, 1)
    levels = np.floor(x * 255) / 255
    assert set(moved.ravel()) <= set(levels.ravel())
    assert moved.mean() != levels.mean()  # a swap would keep the mean
    inside = np.abs(moved - levels)[0, 3:-3, 3:-3].max() * 1024
    assert 0 < inside < 6 * 32  # one pass of reach 2, of copies that may have been copied before


MOVING = ("defocus_blur", "gaussian_blur", "glass_blur", "zoom_blur", "motion_blur")


@pytest.mark.parametrize("name", [*MOVING, "elastic_transform", "pixelate", "contrast"])
def test_what_moves_or_averages_pixels_leaves_a_constant_image(name: str) -> None:
    for severity in range(1, 6):
        z = corrupt(flat(0.6), name, severity, point=2)
        assert np.abs(z - 153.0).max() <= 1, severity  # 0.6 · 255, and what glass rounds down


def test_fog_and_frost_say_what_they_add() -> None:
    dark = flat(0.0)
    # Fog is dimmed to the maximum of the image: of a black one nothing is left.
    assert corrupt(dark, "fog", 5, point=0).max() == 0
    bright = corrupt(flat(1.0), "fog", 5, point=0) / 255
    assert bright.max() <= 1 and bright.min() == pytest.approx(1 / 2.5, abs=0.005)
    frosts = np.stack([corrupt(dark, "frost", 2, point=p) for p in range(60)]) / 255 / 0.3
    tint = frosts.mean((0, 2, 3))
    assert frosts.mean() == pytest.approx(0.58, abs=0.08)  # the photographs' mean
    assert tint[0] < tint[1] < tint[2]


def test_a_selection_names_its_variants_and_its_largest_severity() -> None:
    assert len(finite("corruption:all").variants) == 75
    assert list(map(str, finite("corruption:fog@3").variants)) == ["fog@3"]
    threat = finite("corruption:noise@2-3+fog@1+FOG@1")
    assert len(threat.variants) == 7 and threat.eps == 3 and str(threat) == threat.norm
    assert finite("corruption:extra").eps == 5
    for text, told in [
        ("corruption:foog", "Did you mean 'fog'"),
        ("corruption:fog@6", "from 1 to 5"),
        ("corruption:fog@3-2", "from 1 to 5"),
    ]:
        with pytest.raises(UsageError, match=told):
            read_threat(text)


def test_images_do_not_depend_on_the_batch_and_are_members_of_the_threat_model() -> None:
    threat = finite("corruption:fog+shot_noise+glass_blur@2")
    x = torch.stack([torch.from_numpy(image((1, 28, 28), seed)) for seed in range(5)]).float()
    points, variant = [4, 9, 2, 7, 30], threat.variants[1]
    whole = threat.images(x, points, variant)
    parts = torch.cat([threat.images(x[k : k + 1], points[k : k + 1], variant) for k in range(5)])
    assert torch.equal(whole, parts)
    back = threat.images(x.flip(0), points[::-1], variant).flip(0)
    assert torch.equal(whole, back)
    assert threat.contains(whole, x, points=points).all()
    assert threat.distance(whole, x, points).tolist() == [variant.severity] * 5
    other = whole.clone()
    other[2, 0, 3, 3] += 1 / 255
    assert threat.contains(other, x, points=points).tolist() == [True, True, False, True, True]
    assert not threat.contains(whole, x, points=[p + 1 for p in points]).any()


@pytest.mark.parametrize("what", ["project", "steepest", "sample"])
def test_there_is_no_ball(what: str) -> None:
    threat, x = finite("corruption:fog"), torch.zeros(1, 1, 28, 28)
    asked: dict[str, Any] = {"project": (x, x), "steepest": (x,), "sample": (x, None)}
    with pytest.raises(UsageError, match="needs a norm"):
        getattr(threat, what)(*asked[what])
