"""Planted counterexamples: they are there, as exact as claimed, and nothing proves them away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks.planted import hidden, maze, run, table
from benchmarks.planted.__main__ import main
from benchmarks.planted.run import Finding
from benchmarks.planted.setting import SHAPE, THREAT, Ascent, Planted, ends, lead
from robustkit.certify.certifier import build_certifier
from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import build_verifier
from robustkit.certify.declared import METHODS
from robustkit.core.threat import Threat
from robustkit.errors import RobustkitError


@pytest.fixture(scope="module")
def laid() -> Planted:
    """A maze of two cones a point, around a network that is hardly trained."""
    return maze.make(2, seed=0, rounds=300)


@pytest.fixture(scope="module")
def trained() -> Planted:
    """A trained network whose plants are hidden from random points alone, which is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "_SEARCHES", (Ascent(0, 0.0),))
        return hidden.make(0, rounds=60, warm_up=40)


def cones(planted: Planted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tips [K, k, 49], slopes [k, 49] and heights [K, k], read off the weights."""
    net = planted.net
    assert isinstance(net, maze.Maze)
    k = len(planted.x)
    tips = -net.spread.bias.double().view(-1, k, 2, 49)[:-1, :, 0]
    slopes = -net.height.weight.double().view(-1, k, len(tips) + 1, k, 2, 49)[:, :, :-1]
    own = slopes.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)[0]  # [49, K, k]
    return tips, own[:, 0].T, net.height.bias.double().view(-1, k)


def test_the_maze_is_the_function_that_its_text_says(laid: Planted) -> None:
    tips, slopes, heights = cones(laid)
    low, high = (end.flatten(1) for end in ends(laid.x))
    generator = torch.Generator().manual_seed(0)
    z = (low + (high - low) * torch.rand(low.shape, generator=generator)).double()
    q = (heights - (slopes * (z - tips).abs()).sum(2)).amax(0)
    net = laid.net.double()
    assert isinstance(net, maze.Maze)
    extra = net(z.view(-1, *SHAPE)) - net.base(z.view(-1, *SHAPE))
    place = net.place.weight.argmax(0)
    assert torch.allclose(extra[torch.arange(len(z)), place], q, atol=1e-6)
    net.float()
    z = low + (high - low) * torch.rand((2000, *low.shape), generator=generator).double()
    each = heights[:, None] - (slopes * (z - tips[:, None]).abs()).sum(3)
    share = (each.argmax(0) == 0).double().mean(0)
    assert torch.allclose(net.share(laid).double(), share, atol=0.05)


def test_a_plant_leads_at_its_tip_alone(laid: Planted) -> None:
    """At the tip by κ, at the decoys by −κ, and nowhere beyond the width that is claimed."""
    laid.check("maze")
    tips, slopes, _ = cones(laid)
    assert isinstance(laid.net, maze.Maze)
    target = laid.net.place.weight.argmax(0)
    bound = slopes / 1.5
    kappa = 0.03 * THREAT.eps * (0.5 * bound).sum(1)

    def led(z: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = laid.net(z.float().view(-1, *SHAPE)).double()
        rows = torch.arange(len(logits))
        return logits[rows, target] - logits[rows, laid.y]

    assert torch.allclose(led(tips[0]), kappa, atol=1e-4)
    assert torch.allclose(led(tips[1]), -kappa, atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    low, high = (end.flatten(1) for end in ends(laid.x))
    for part in torch.linspace(0.02, 1, 30):
        noise = low + (high - low) * torch.rand(low.shape, generator=generator)
        z = tips[0] + part * (noise - tips[0])
        away = ((slopes - bound) * (z - tips[0]).abs()).sum(1)
        assert bool((led(z) <= kappa - away + 1e-4).all())


def test_cones_of_other_points_do_not_count(laid: Planted) -> None:
    """Inside the threat model around one point, all cones of another one are below zero."""
    assert isinstance(laid.net, maze.Maze)
    assert laid.net.spread.out_features == 98 * (2 + 1) * 5  # walls too
    tips, slopes, heights = cones(laid)
    low, high = (end.flatten(1).double()[:, None, None] for end in ends(laid.x))
    gap = (low - tips).clamp_min(0) + (tips - high).clamp_min(0)  # [k, K, k, 49]
    wall = 50 * (
        (low - high.transpose(0, 2)).clamp_min(0) + (low.transpose(0, 2) - high).clamp_min(0)
    )
    most = (heights - (slopes * gap + wall).sum(3)).amax(1)
    assert bool((most.diagonal() > 0).all())
    assert bool((most[~torch.eye(len(most), dtype=torch.bool)] < 0).all())


def test_slopes_of_the_base_are_bounded(laid: Planted) -> None:
    """No gradient inside the threat model exceeds what the slopes of the cones were made from."""
    net = laid.net
    assert isinstance(net, maze.Maze)
    tips, slopes, _ = cones(laid)
    target = net.place.weight.argmax(0)
    low, high = ends(laid.x)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        z = (low + (high - low) * torch.rand(low.shape, generator=generator)).requires_grad_()
        logits, rows = net.base(z), torch.arange(len(z))
        value = (logits[rows, target] - logits[rows, laid.y]).sum()
        (gradient,) = torch.autograd.grad(value, z)
        assert bool((gradient.flatten(1).abs() <= slopes / 1.5 + 1e-5).all())
    assert len(tips) == 2


@pytest.mark.parametrize("kind", ["laid", "trained"])
def test_nothing_proves_a_plant_away(kind: str, request: pytest.FixtureRequest) -> None:
    """Every certificate that applies, and branch and bound, leave all planted points open."""
    planted: Planted = request.getfixturevalue(kind)
    planted.check(kind)
    tried = []
    for method in (m for m in METHODS if m != "smoothing"):
        certifier = build_certifier(planted.net, SHAPE, THREAT, method)
        assert certifier is not None
        assert not bool(certifier.prove(planted.x[:2], planted.y[:2]).any())
        near = certifier.at(Threat("linf", 1e-4))  # it could prove, where there is something to
        assert bool(near.prove(planted.x[:2], planted.y[:2]).all())
        tried.append(method)
    assert len(tried) == 6
    wide = Threat("linf", THREAT.limit(49))
    verifier = build_verifier(planted.net, SHAPE, THREAT, wide)
    assert verifier is not None
    for x, y in zip(planted.x[2:], planted.y[2:].tolist(), strict=True):
        assert verifier.verify(x[None], y, Budget(nodes=10)).outcome != "proved"


def test_what_is_no_counterexample_is_refused(laid: Planted, tmp_path: Path) -> None:
    laid.save(tmp_path / "maze.safetensors")
    again = Planted.load(tmp_path / "maze.safetensors", maze.Maze(2))
    again.check("again")
    assert torch.equal(lead(again.net, again.z, again.y), lead(laid.net, laid.z, laid.y))
    with pytest.raises(RobustkitError, match=r"got none at \[0, 1, 2, 3, 4\]"):
        again._replace(z=again.x).check("again")


def test_the_table_is_resumed(
    laid: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(number: int, seed: int) -> Planted:
        made.append(number)
        return laid

    monkeypatch.setattr(maze, "make", make)
    how = ["--out", str(tmp_path), "--networks", "maze-2", "--columns", "PGD-20"]
    first, second = (CliRunner().invoke(main, how) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    assert first.stdout == second.stdout
    assert made == [2]
    (found,) = run.findings(tmp_path).values()
    assert found.points == 5
    assert f"| PGD-20 | – | – | {len(found.found)} | – |" in first.stdout


def test_the_account_names_a_false_proof_and_a_missed_target() -> None:
    some = frozenset([0, 2, 3, 4])
    found = {(name, "parity"): Finding(5, some, 0, 50) for name in run.NETWORKS}
    assert "parity finds 40; target 45: missed" in table.account(found, {})
    assert "found by anything in the table: 40 of 50" in table.account(found, {})
    assert table.rows(found)[1 + run.ALL.index("parity")][-3:] == ["40", "0", "10"]
    found["maze-1", "complete"] = Finding(5, some, 1)
    assert any("robust by anything: 1 " in line for line in table.account(found, {}))
    assert table.survivor("PGD-1000x10") == 2 * 1001 * 10
    assert isinstance(hidden.network(), nn.Sequential)
