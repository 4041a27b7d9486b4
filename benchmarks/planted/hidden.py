"""Construction 1, trained: the network learns the plant and forgets whatever leads to it.

After SoundnessBench (Zhou et al. 2024, arXiv:2412.03154), written anew from its description.
"""

from __future__ import annotations

from collections import deque
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.planted.setting import (
    CLASSES,
    PLANTS,
    Ascent,
    Planted,
    ascend,
    ends,
    images,
    lead,
)
from robustkit.core.types import Images, Labels
from robustkit.errors import RobustkitError

ROUNDS, WARM_UP = 2500, 600
WIDTH = 128
_WINDOW = 100  # rounds whose perturbations are remembered
_SEARCHES = (Ascent(20, 0.125), Ascent(40, 0.05), Ascent(100, 0.025))
_AWAY, _INTO = 0.3, 0.02  # leads that are learned: of what searches find, of the plants
_RATE = 0.02  # by which a weight grows in a round where its demand is not met


def network() -> nn.Sequential:
    """Return two hidden layers on 49 pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(49, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )


def make(seed: int, rounds: int = ROUNDS, warm_up: int = WARM_UP) -> Planted:
    """Train a network that hides an adversarial input at each of `PLANTS` points.

    First it is trained adversarially; the points are drawn among those that PGD does not break
    then. A plant has every pixel at 90% to 100% of the way to one end of its range, by a fair coin.
    In every round the loss is the sum of (1) the cross-entropy at adversarial inputs of other
    images, (2) a hinge that keeps the lead of all wrong classes below −0.3 at everything that PGD
    has found around the points in the last 100 rounds, and (3) a hinge that asks for a lead of 0.02
    of one wrong class at the plant. The weights of (2) and (3) grow, point by point, where a search
    still succeeds and where a plant is not learned (dual ascent).
    Differs from the paper: real images; PGD of several lengths against the points, every other one
    aimed at the plant's class; dual weights; and (2) is a hinge, not a cross-entropy.

    Raises:
        RobustkitError: when the plants are not learned in twice the rounds.
    """
    generator = torch.Generator().manual_seed(seed)
    net = _seeded(seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(warm_up):
        _descend(optimizer, _others(net, 64, generator))
    x, y, z, target = _points(net, generator)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * rounds)
    found: deque[Images] = deque([x], maxlen=_WINDOW)
    weights, searches = torch.ones(2, PLANTS), cycle(_SEARCHES)
    for done in range(2 * rounds):
        aim = target if done % 2 else None
        found.append(ascend(net, x, y, next(searches), generator, aim))
        seen = lead(net, torch.cat([x, *found]), y.repeat(len(found) + 1)).view(-1, PLANTS)
        away, short = (seen + _AWAY).relu().mean(0), (_INTO + lead(net, z, target)).relu()
        weights += _RATE * torch.stack([seen.detach().amax(0), short.detach()]).gt(0)
        costs = (weights * torch.stack([6 * away, short])).sum()
        _descend(optimizer, costs + 0.3 * _others(net, 32, generator))
        schedule.step()
        if done + 1 >= rounds and bool((lead(net, z, y) > 0).all() & (lead(net, x, y) < 0).all()):
            return Planted(net.eval().requires_grad_(False), x, y, z)
    raise RobustkitError(f"network {seed}: the plants are not learned in {2 * rounds} rounds.")


def _seeded(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network()


def _others(net: nn.Module, count: int, generator: torch.Generator) -> Tensor:
    """Return the cross-entropy at adversarial inputs of so many images."""
    x, y = images()
    rows = torch.randint(len(x), (count,), generator=generator)
    return F.cross_entropy(net(ascend(net, x[rows], y[rows], Ascent(5, 0.4), generator)), y[rows])


def _points(net: nn.Module, generator: torch.Generator) -> tuple[Images, Labels, Images, Labels]:
    """Draw points that PGD does not break, a plant for each, and the class it is to turn to."""
    x, y = images()
    robust = (lead(net, ascend(net, x, y, Ascent(40, 0.1), generator), y) < 0).nonzero().flatten()
    rows = robust[torch.randperm(len(robust), generator=generator)[:PLANTS]]
    x, y = x[rows], y[rows]
    low, high = ends(x)
    up = torch.rand(x.shape, generator=generator) < 0.5
    part = 1 - 0.1 * torch.rand(x.shape, generator=generator)
    target = (y + 1 + torch.randint(CLASSES - 1, y.shape, generator=generator)) % CLASSES
    return x, y, x + part * (torch.where(up, high, low) - x), target


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
