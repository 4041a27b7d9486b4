"""The multi-resolution stack by matrix products is the stack by gathers and interpolation."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from robustkit.core.rng import generator

MultiResolution: Any = importlib.import_module("robustkit.defenses._multires").MultiResolution


def by_steps(stack: Any, x: Tensor, draws: Tensor) -> Tensor:
    """Contrast, shift, color, bicubic down, noise, bicubic up, noise: one after the other."""
    copies = len(stack.resolutions)
    settings = draws[:, : 4 * copies].view(len(x), copies, 4, 1, 1, 1)
    (low, high), (pale, full) = stack.contrast, stack.color
    levels = (100 * settings[:, :, :2]).floor() / 99
    contrast, color = low + (high - low) * levels[:, :, 0], pale + (full - pale) * levels[:, :, 1]
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    gray = (
        (x.mean((2, 3), keepdim=True) * weights).sum(1, True)
        if x.shape[1] == 3
        else x.mean((1, 2, 3), keepdim=True)
    )
    varied = (contrast * x[:, None] + (1 - contrast) * gray[:, None]).clamp(0, 1)
    shifts = ((2 * stack.jitter + 1) * settings[:, :, 2:, 0, 0, 0]).floor().long() - stack.jitter
    rolled = [
        torch.stack(
            [copy.roll(tuple(by.tolist()), (1, 2)) for copy, by in zip(of, byte, strict=True)]
        )
        for of, byte in zip(varied, shifts, strict=True)
    ]
    varied = torch.stack(rolled)
    varied = color * varied + (1 - color) * varied.mean(2, keepdim=True)
    ends = torch.tensor([0, *stack._sizes(x)]).cumsum(0).tolist()
    noises = [stack.noise * draws[:, a:b] for a, b in pairwise(ends[1:])]
    found = []
    for i, size in enumerate(stack._sides(x)):
        small = _resized(varied[:, i], size)
        small = small + noises[i].view(small.shape)
        found.append(_resized(small, x.shape[2:]) + noises[copies + i].view(x.shape))
    return torch.cat(found, 1).clamp(0, 1)


def _resized(x: Tensor, size: Any) -> Tensor:
    return torch.nn.functional.interpolate(x, size=tuple(size), mode="bicubic")


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 16, 18), (2, 2, 9, 9)])
@pytest.mark.parametrize(
    "options", [{}, {"jitter": 0, "noise": 0.0}, {"resolutions": (0.3, 1.0), "jitter": 5}]
)
def test_it_is_the_stack_step_by_step(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    stack = MultiResolution(**options)
    x = torch.rand(shape, generator=generator(1, 0, 0)).requires_grad_(True)
    draws = torch.rand(len(x), sum(stack._sizes(x)), generator=generator(0, 2, 0))
    ours, theirs = stack(x), by_steps(stack, x, draws)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    weights = torch.rand(ours.shape, generator=generator(2, 0, 0))
    slopes = [torch.autograd.grad((made * weights).sum(), x)[0] for made in (ours, theirs)]
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=0)


def test_sixteen_bits_do_not_round_the_stack() -> None:
    x, stack = torch.rand(2, 1, 28, 28, generator=generator(1, 0, 0)), MultiResolution()
    exact = stack.fixed(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(stack.fixed(x), exact, atol=0, rtol=0)
