"""The BPDA surrogates: the model's own logits, and gradients that break it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.models.load import load_model
from robustkit.models.surrogates.resolve import source
from robustkit.registry import attacks
from robustkit.search.functional import attack

Front = Callable[[Tensor], Tensor]
THREAT = Threat("linf", 0.1)
LEVELS = torch.linspace(0, 1, 33)


@cache
def robust() -> nn.Module:
    model: nn.Module = load_model("pgd_at", data=open_dataset("bundled")).model
    return model.eval().requires_grad_(False)


@cache
def images() -> tuple[Tensor, Tensor]:
    return open_dataset("bundled").fetch(np.arange(32))


def broken(model: Any, surrogate: str = "") -> Tensor:
    """Which images APGD breaks by the gradients of a surrogate, verified on the model."""
    x, y = images()
    search = attacks.build(
        f"apgd(steps=20, surrogate={surrogate})" if surrogate else "apgd(steps=20)"
    )
    found = attack(model, x, y, search, THREAT)
    with torch.no_grad():
        wrong: Tensor = model(found).argmax(1) != y
    return wrong


@cache
def reference() -> Tensor:
    return broken(robust())


class Flipped(torch.autograd.Function):
    """The identity, with a gradient that leads uphill."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Silent(torch.autograd.Function):
    """The identity without a gradient, in the newer style."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 0 * grads[0]


class Whole(torch.autograd.Function):
    """The classifier inside a custom function, with noise for a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        logits: Tensor = robust()(x)
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.randn_like(ctx.saved_tensors[0])


KEPT = Whole.apply  # bound at import, as models do


def array(x: Tensor) -> Tensor:
    """Code every image outside of torch, channels last, in bytes."""
    coded = []
    for image in x:
        pixels = image.mul(255).byte().permute(1, 2, 0).cpu().numpy()
        coded.append(torch.from_numpy(pixels // 8 * 8).permute(2, 0, 1).float() / 255)
    return torch.stack(coded)


def purified(x: Tensor) -> Tensor:
    """Two steps toward confidence, by autograd inside the forward pass."""
    z = x.detach().clone()
    for _ in range(2):
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = robust()(z).log_softmax(1).amax(1).sum()
            (gradient,) = torch.autograd.grad(loss, z)
        with torch.no_grad():
            z = (z + 0.002 * gradient.sign()).clamp(0, 1)
    return z.detach()


def optimized(x: Tensor) -> Tensor:
    """The same by an optimizer."""
    z = x.detach().clone().requires_grad_(True)
    optimizer = torch.optim.SGD([z], lr=1e-3)
    with torch.enable_grad():
        optimizer.zero_grad()
        (-robust()(z).log_softmax(1).amax(1).sum()).backward()
    optimizer.step()
    return z.detach()


def masked(x: Tensor) -> Tensor:
    y = x.clone()
    y[x < 0.02] = 0.0
    return (y * 32).round_().div_(32)


FRONTS: dict[str, Front] = {
    "round": lambda x: (x * 32).round() / 32,
    "straight through": lambda x: x + ((x * 32).floor() / 32 - x).detach(),
    "remainder": lambda x: x - torch.remainder(x, 1 / 32),
    "bytes": lambda x: (x * 255).byte().float() / 255,
    "bits of bytes": lambda x: ((x * 255).to(torch.uint8) & 0xF8).float() / 255,
    "shifts": lambda x: ((x * 255).to(torch.uint8) >> 3 << 3).float() / 255,
    "bits of floats": lambda x: (x.view(torch.int32) & ~0xFFFF).view(torch.float32),
    "half": lambda x: x.half().float(),
    "float8": lambda x: x.to(torch.float8_e4m3fn).float(),
    "fake quantize": lambda x: torch.fake_quantize_per_tensor_affine(x, 1 / 32, 0, 0, 32),
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "thermometer": lambda x: (x[..., None] > LEVELS[1:] - 1 / 64).float().mean(-1),
    "one-hot code": lambda x: F.one_hot((x * 32).round().long(), 33).float() @ LEVELS,
    "palette": lambda x: LEVELS[(x[..., None] - LEVELS).abs().argmin(-1)],
    "buckets": lambda x: LEVELS[torch.bucketize(x.contiguous(), LEVELS[1:] - 1 / 64)],
    "array": array,
    "array of a batch": lambda x: torch.tensor(np.round(x.detach().numpy() * 32) / 32),
    "buffer": lambda x: torch.empty(x.shape, dtype=torch.uint8).copy_(x * 255).float() / 255,
    "masked": masked,
    "flipped": Flipped.apply,
    "silent": Silent.apply,
    "not a number": lambda x: x + ((x - x.detach()) ** 2).sqrt(),
    "purified": purified,
    "optimized": optimized,
}


def hooked(z: Tensor) -> Tensor:
    if z.requires_grad:
        z.register_hook(lambda gradient: -gradient)
    return z


def ranks(z: Tensor) -> Tensor:
    return z.argsort(1).argsort(1).float()


def scattered(z: Tensor) -> Tensor:
    return torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1.0)


BACKS: dict[str, Front] = {
    "scale": lambda z: z * 1e6,
    "temperature": lambda z: z * 1e-8,
    "saturated": lambda z: (z * 1e3).softmax(1).clamp_min(1e-12).log(),
    "one-hot": lambda z: F.one_hot(z.argmax(1), 10).float(),
    "scattered": scattered,
    "largest": lambda z: (z == z.amax(1, keepdim=True)).float(),
    "where": lambda z: torch.where(z >= z.max(1, keepdim=True).values, 5.0, 0.0),
    "ranks": ranks,
    "clamped": lambda z: z.clamp(-0.1, 0.1) + 1e-6 * z.detach(),
    "flipped": Flipped.apply,
    "hooked": hooked,
    "detached": lambda z: z.detach() * 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FRONTS)
def test_bpda_sees_through_what_stands_before_a_network(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        logits: Tensor = robust()(FRONTS[name](x))
        return logits

    x = images()[0].clone().requires_grad_(True)
    torch.testing.assert_close(source(model, "bpda")(x).detach(), model(x.detach()), rtol=0, atol=0)
    assert int((reference() & ~broken(model, "bpda")).sum()) <= 1


@pytest.mark.parametrize("name", BACKS)
def test_logits_and_smooth_undo_what_stands_behind_it(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return BACKS[name](robust()(x))

    x = images()[0].clone().requires_grad_(True)
    answer = model(x.detach())
    assert torch.equal(source(model, "bpda")(x).detach(), answer)
    top = answer.gather(1, source(model, "logits")(x).argmax(1, keepdim=True))[:, 0]
    assert torch.equal(top, answer.amax(1))
    assert int((reference() & ~broken(model, "logits")).sum()) <= 1


@pytest.mark.parametrize("model", [
    KEPT,
    lambda x: torch.no_grad()(robust())(x),
    lambda x: torch.inference_mode()(robust())(x),
    lambda x: robust()(x) + 1e3 * ((trap := robust()(1 - x)) - trap.detach()),
], ids=["kept apply", "no_grad", "inference_mode", "honeypot"])  # fmt: skip
def test_bpda_sees_through_what_hides_a_whole_network(model: Front) -> None:
    assert int((reference() & ~broken(model, "bpda")).sum()) <= 1


def test_comparisons_that_may_turn_count_for_most_and_none_for_nothing() -> None:
    """The slope of a fast sigmoid, an eighth as wide as the margins of the row: 0, 1, −2 and 5."""
    x = torch.tensor([[3.0, 4.0, 1.0, 8.0], [0.3, 0.4, 0.1, 0.8]], requires_grad=True)
    over = source(lambda z: (z > torch.tensor([[3.0], [0.3]])).float(), "bpda")(x)
    assert over.tolist() == [[0, 1, 0, 1]] * 2
    (slope,) = torch.autograd.grad(over.sum(), x)
    ratio = torch.tensor([0.0, 4.0, 8.0, 20.0])  # margins, in units of 1/8 of their mean size, 2
    expected = 2 / (1 + ratio) ** 2
    torch.testing.assert_close(slope, torch.stack([expected, 10 * expected]))


def test_the_reference_means_something() -> None:
    wrong = robust()(images()[0]).argmax(1) != images()[1]
    assert int((reference() & ~wrong).sum()) >= 3
    hidden = broken(lambda x: robust()(FRONTS["round"](x)))
    assert int((hidden & ~wrong).sum()) == 0  # what the same attack does without a surrogate


def test_rows_follow_what_had_left_one_by_one() -> None:
    """One row that comes back as something else takes the gradient of no other row."""

    def model(x: Tensor) -> Tensor:
        array = x.detach().numpy().copy()
        dark = array.reshape(len(array), -1).mean(1) < 0.2
        array[dark] = np.flip(array[dark], (-1, -2))
        return torch.from_numpy(array).flatten(1) @ torch.linspace(-1, 1, 32).view(16, 2)

    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[1] *= 0.2

    def gradient(x: Tensor) -> Tensor:
        query = x.clone().requires_grad_(True)
        logits = source(model, "bpda")(query)
        if not logits.requires_grad:
            return torch.zeros_like(x)
        (found,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), query)
        return found

    whole = gradient(x)
    assert bool((whole[0] != 0).any())
    assert torch.allclose(whole, torch.cat([gradient(row[None]) for row in x]))
