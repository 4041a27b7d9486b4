"""Certificates of patches: a closed form on linear models, and every window tried on a network."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.certify.certifier import build_certifier
from robustkit.core.types import Mask
from robustkit.data.arrays import from_arrays
from robustkit.registry import read_threat

TALL, WIDE = 6, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def windows(tall: int, wide: int) -> list[tuple[slice, slice]]:
    places = product(range(TALL - tall + 1), range(WIDE - wide + 1))
    return [(slice(r, r + tall), slice(c, c + wide)) for r, c in places]


def network(*hidden: nn.Module, width: int) -> nn.Module:
    """Three classes, with weights drawn by a seed of their own."""
    net = nn.Sequential(*hidden, nn.Flatten(), nn.Linear(width, 3))
    for number, weight in enumerate(net.parameters()):
        weight.data = draw(*weight.shape, seed=number) - 0.5
    return net.eval()


def points(net: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """Return images from chance to what a label calls for: narrow and wide margins; the labels."""
    z = draw(count, 2, TALL, WIDE).requires_grad_(True)
    slope = toward(net, z, net(z).argmax(1))
    share = torch.linspace(0, 1, count)[:, None, None, None]
    x = (1 - share) * z.detach() + share * (slope > 0)
    with torch.no_grad():
        return x, net(x).argmax(1)


def toward(net: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the margins of labels [b, *f]."""
    out, own = net(z), torch.arange(3) == y[:, None]
    margins = out[own] - out.masked_fill(own, -torch.inf).amax(1)
    found: Tensor = torch.autograd.grad(margins.sum(), z)[0]
    return found


def proved(net: nn.Module, x: Tensor, y: Tensor, method: str, text: str = "patch:2x3") -> Mask:
    found = build_certifier(net, (2, TALL, WIDE), read_threat(text), method)
    assert found is not None
    return found.prove(x, y)


@pytest.mark.parametrize("method", ["ibp", "auto"])
def test_a_linear_model_is_proved_exactly_where_no_window_can_break_it(method: str) -> None:
    net = network(width=2 * TALL * WIDE)
    x, y = points(net, 60)
    logits = net(x).detach().double()
    weight = net[1].weight.detach().double().view(3, 2, TALL, WIDE)  # type: ignore[index]
    least = torch.full((60,), torch.inf, dtype=torch.float64)
    for row, label in enumerate(y.tolist()):
        for other in {0, 1, 2} - {label}:
            slope = weight[other] - weight[label]
            gain = torch.maximum(slope * (1 - x[row]), -slope * x[row]).sum(0)
            most = max(float(gain[window].sum()) for window in windows(2, 3))
            least[row] = min(
                float(least[row]), float(logits[row, label] - logits[row, other]) - most
            )
    assert (least.abs() > 1e-4).all() and 5 < (least > 0).sum() < 55
    assert torch.equal(proved(net, x, y, method), least > 0)


def test_no_patch_breaks_a_point_that_a_bound_proves() -> None:
    """Every window with black, white, and patches by the gradient and by chance."""
    net = network(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), width=4 * TALL * WIDE)
    x, y = points(net, 24)
    inside = {method: proved(net, x, y, method, "patch:1x2") for method in ("ibp", "auto")}
    assert (inside["auto"] | ~inside["ibp"]).all()
    assert 0 < inside["auto"].sum() < 24 and inside["auto"].sum() > inside["ibp"].sum()
    wrong = proved(net, x, (y + 1) % 3, "auto", "patch:1x2")
    assert not wrong.any()
    slope = toward(net, x.clone().requires_grad_(True), y)
    broken = torch.zeros(24, dtype=torch.bool)
    fills = [torch.zeros_like(x), torch.ones_like(x), (slope < 0).float()]
    fills += [draw(*x.shape, seed=seed).round() for seed in range(1, 6)]
    for (rows, columns), fill in product(windows(1, 2), fills):
        held = torch.zeros(TALL, WIDE, dtype=torch.bool)
        held[rows, columns] = True
        broken |= net(torch.where(held, fill, x)).argmax(1) != y
    assert broken.any() and not (broken & inside["auto"]).any()


def test_a_criterion_is_asked() -> None:
    """More points keep their label among the first two than as the first."""
    net = network(width=2 * TALL * WIDE)
    x, y = points(net, 20)
    plain, easier = (proved(net, x, y, "ibp", f"patch:2x3{end}") for end in ("", " top2"))
    assert (easier | ~plain).all() and easier.sum() > plain.sum()


def test_certified_points_are_named_in_a_run(tmp_path: Path) -> None:
    net = network(width=2 * TALL * WIDE)
    x, y = points(net, 12)
    data = from_arrays("small", x.numpy(), y.numpy(), layout="nchw")
    record = robustkit.evaluate(net, data, "patch:2x3", folder=tmp_path, certify="ibp")
    named = torch.tensor([status == "certified" for status in record.points.status])
    assert torch.equal(named, proved(net, x, y, "ibp"))
    assert record.certified == pytest.approx(float(named.float().mean()))
    assert record.certified == record.robust  # the search is exact here, and so is the bound
