"""Philox against its published answers; draws are functions of their keys and of nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit.core.rng import Keys, bits, normal, philox, task_key, uniform

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


def keys(seed: int, points: list[int], task: int = 3) -> Keys:
    point = torch.tensor(points)
    return Keys(torch.full_like(point, seed), point, torch.full_like(point, task))


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: str) -> None:
    """The vectors of Random123's kat_vectors for philox4x32-10."""
    words = philox(tuple(map(torch.tensor, counter)), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_bits_place_seed_point_task_and_stream_in_the_block() -> None:
    """Counter is (block, stream, point, task); the key is the seed, low word first."""
    seed = (5 << 32) | 7
    words = bits(keys(seed, [11], task=13), 8, 17)[0]
    for block in range(2):
        counter = tuple(map(torch.tensor, (block, 17, 11, 13)))
        expected = philox(counter, (torch.tensor(7), torch.tensor(5)))
        assert words[4 * block : 4 * block + 4].tolist() == [int(word) for word in expected]


def moments(draw: Tensor) -> tuple[float, float, float]:
    centered = draw.double() - draw.double().mean()
    variance = centered.square().mean()
    kurtosis = centered.pow(4).mean() / variance**2
    return float(draw.double().mean()), float(variance), float(kurtosis)


def test_uniform_is_uniform() -> None:
    draw = uniform(keys(1, list(range(50))), 4000, 0)
    assert draw.dtype == torch.float32
    assert 0 <= float(draw.min()) < 1e-4
    assert 1 - 1e-4 < float(draw.max()) < 1
    mean, variance, kurtosis = moments(draw)
    # 200,000 draws: five standard errors.
    assert mean == pytest.approx(1 / 2, abs=5 * 0.2887 / 447)
    assert variance == pytest.approx(1 / 12, abs=5 * 0.0745 / 447)
    assert kurtosis == pytest.approx(9 / 5, abs=0.02)
    counts = torch.histc(draw, 16, 0, 1)
    assert float(((counts - 12500) ** 2 / 12500).sum()) < 44  # chi-square(15), 1e-4


def test_normal_is_normal() -> None:
    draw = normal(keys(1, list(range(50))), 4001, 0)
    assert draw.shape == (50, 4001)
    assert bool(draw.isfinite().all())
    mean, variance, kurtosis = moments(draw)
    assert mean == pytest.approx(0, abs=5 / 447)
    assert variance == pytest.approx(1, abs=5 * 1.414 / 447)
    assert kurtosis == pytest.approx(3, abs=5 * 9.8 / 447)
    halves = draw[:, :2000] * draw[:, 2001:]
    assert float(halves.mean()) == pytest.approx(0, abs=5 / 316)


@pytest.mark.parametrize("draw", [bits, uniform, normal])
def test_rows_do_not_depend_on_the_batch(draw: type) -> None:
    whole = draw(keys(3, [0, 5, 9, 2]), 13, 1)
    for row, point in enumerate([0, 5, 9, 2]):
        assert torch.equal(draw(keys(3, [point]), 13, 1)[0], whole[row])
    assert torch.equal(draw(keys(3, [2, 9, 5, 0]), 13, 1), whole.flip(0))


@pytest.mark.parametrize("draw", [bits, uniform])
def test_a_shorter_draw_is_a_prefix(draw: type) -> None:
    whole = draw(keys(3, [4, 8]), 40, 1)
    for count in (1, 2, 3, 4, 5, 17, 40):
        assert torch.equal(draw(keys(3, [4, 8]), count, 1), whole[:, :count])


def test_streams_may_differ_by_slot() -> None:
    both = uniform(keys(3, [4, 8]), 6, torch.tensor([7, 9]))
    assert torch.equal(both[0], uniform(keys(3, [4]), 6, 7)[0])
    assert torch.equal(both[1], uniform(keys(3, [8]), 6, 9)[0])


def test_every_part_of_the_key_counts() -> None:
    base = bits(keys(3, [4], task=5), 8, 1)
    others = [
        bits(keys(2, [4], task=5), 8, 1),
        bits(keys(3 + (1 << 32), [4], task=5), 8, 1),
        bits(keys(3, [6], task=5), 8, 1),
        bits(keys(3, [4], task=7), 8, 1),
        bits(keys(3, [4], task=5), 8, 2),
        bits(keys(-3, [4], task=5), 8, 1),
    ]
    assert all(not bool((other == base).any()) for other in others)


def test_task_keys_are_stable_31_bit_numbers() -> None:
    """Records can be repeated only while these numbers stay as they are."""
    assert task_key("apgd/0/0") == 79106865
    names = [
        f"apgd(loss=targeted_dlr)/{rank}/{restart}" for rank in range(10) for restart in range(5)
    ]
    identities = {task_key(name) for name in names}
    assert len(identities) == 50
    assert all(0 <= identity < 1 << 31 for identity in identities)
