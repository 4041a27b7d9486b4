"""Construction 2, in closed form: cones of which one alone turns the decision, at its tip.

The truth is exact. Around a point x, a class t that is not its label y gets the extra logit

    q(z) = max_k h_k − Σ_i s_i |z_i − c_ki|,   c_0 … c_(K−1) inside the threat model,

on a network f whose lead of t over y changes by at most G_i per unit of pixel i there. With s_i =
1.5 G_i, the lead of t rises toward the tip of the nearest cone from everywhere. The heights h_k put
it at κ > 0 on the tip of cone 0, the plant, and at −κ on the others, the decoys. Hence t leads y at
z only if Σ_i (s_i − G_i) |z_i − c_0i| < κ, and the other classes lead nowhere, as alpha-CROWN
proves for f. Which cone a random start climbs is chance, about one in K; and a search that moves
every pixel by α a step stays α / 2 away on average, where κ allows 3% of eps at most. Outside of
the threat model q falls so steeply that it is negative around the other points of the network.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.planted.setting import (
    CLASSES,
    PLANTS,
    SHAPE,
    THREAT,
    Ascent,
    Planted,
    ascend,
    ends,
    images,
)
from robustkit.certify.certifier import build_certifier
from robustkit.core.types import Images, Labels
from robustkit.errors import RobustkitError

CONES = (1, 2, 4, 8, 16)  # of a point, by network: powers of two
HIDDEN, ROUNDS = 32, 2000
_STEEP = 1.5  # s / G
_NARROW = 0.03  # mean distance of a pixel from the tip within which t leads, as a fraction of eps
_PIXELS = 49
_KEPT = (0, 1, 7, 8, 9)  # labels of the points: robustness is proved most often there
_WALL, _APART = 50.0, 1.0  # slope of all cones outside of the threat model; least way up there


class Maze(nn.Module):
    """f(x) plus the cones of k points, each on the logit of a class of its own.

    Attributes:
        spread: the parts of z − c above and below 0, of every pixel and cone; then what of z lies
            above and below the threat model around each point, the walls.
        height: h − Σ_i s_i |z_i − c_i| less the walls [b, K k]: all points of cone 0, of cone 1, …
        place: from the greatest of each point to its class.
    """

    def __init__(self, cones: int, points: int = PLANTS) -> None:
        super().__init__()
        self.base = nn.Sequential(
            nn.Flatten(), nn.Linear(_PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
        )
        rows = cones * points
        units = 2 * _PIXELS * (rows + points)
        self.spread, self.height = nn.Linear(_PIXELS, units), nn.Linear(units, rows)
        self.place = nn.Linear(points, CLASSES, bias=False)
        self.halves = [rows >> k for k in range(1, cones.bit_length())]

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 7, 7] -> [b, 10]."""
        found = self.height(self.spread(x.flatten(1)).relu())
        for half in self.halves:  # max(a, b) = b + relu(a − b)
            found = found[:, half:] + (found[:, :half] - found[:, half:]).relu()
        logits: Tensor = self.base(x) + self.place(found)
        return logits

    def share(self, planted: Planted, draws: int = 4000) -> Tensor:
        """Return which share of random starts lies on the planted cone of each point [k]."""
        low, high = ends(planted.x)
        generator = torch.Generator().manual_seed(0)
        z = low + (high - low) * torch.rand((draws, *low.shape), generator=generator)
        height: Tensor = self.height(self.spread(z.flatten(2)).relu())
        first = height.unflatten(2, (-1, len(low))).argmax(2) == 0  # [draws, k, k]
        shares: Tensor = first.float().mean(0).diagonal()
        return shares


class Points(NamedTuple):
    """What a maze is laid around: images, labels, classes to turn to [k], tips [K, k, 49]."""

    x: Images
    y: Labels
    target: Labels
    tips: Tensor


def make(cones: int, seed: int, rounds: int = ROUNDS) -> Planted:
    """Train f adversarially, draw points where it is proved robust, and lay the maze.

    Labels are among five classes, and each point turns to one of the others, which no other point
    turns to. Tips are drawn uniformly inside the threat model.

    Raises:
        RobustkitError: when too few points are proved.
    """
    generator = torch.Generator().manual_seed(seed)
    net = Maze(cones)
    net.base.load_state_dict(_trained(rounds, seed, generator).state_dict())
    points = _points(net.base, cones, generator)
    net.double()
    bound = steepest(net.base, points)
    _lay(net, points, _STEEP * bound)
    _raise(net, points, _NARROW * THREAT.eps * ((_STEEP - 1) * bound).sum(1))
    net.float().eval().requires_grad_(False)
    return Planted(net, points.x, points.y, points.tips[0].view(-1, *SHAPE))


def _trained(rounds: int, seed: int, generator: torch.Generator) -> nn.Sequential:
    x, y = images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Maze(1).base
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=1e-4)
    for _ in range(rounds):
        rows = torch.randint(len(x), (64,), generator=generator)
        z = ascend(net, x[rows], y[rows], Ascent(5, 0.4), generator)
        optimizer.zero_grad()
        F.cross_entropy(net(z), y[rows]).backward()
        optimizer.step()
    return net


def _points(base: nn.Module, cones: int, generator: torch.Generator) -> Points:
    x, y = images()
    certifier = build_certifier(base.eval(), SHAPE, THREAT, "alpha-crown")
    assert certifier is not None
    rows = torch.isin(y, torch.tensor(_KEPT)).nonzero().flatten()
    order = rows[torch.randperm(len(rows), generator=generator)]
    chosen = order[:0]
    for part in order.split(32):
        for row in part[certifier.prove(x[part], y[part])]:
            beyond = ((x[chosen] - x[row]).abs() - 2 * THREAT.eps).clamp_min(0)  # of both balls
            if bool((beyond.flatten(1).sum(1) > _APART).all()):
                chosen = torch.cat([chosen, row[None]])
        if len(chosen) >= PLANTS:
            chosen = chosen[:PLANTS]
            break
    else:
        raise RobustkitError(f"expected {PLANTS} points proved robust, got {len(chosen)}.")
    low, high = (end.flatten(1) for end in ends(x[chosen]))
    part = torch.rand((cones, *low.shape), generator=generator)
    turned = torch.tensor([c for c in range(CLASSES) if c not in _KEPT])
    target = turned[torch.randperm(PLANTS, generator=generator)]
    return Points(x[chosen], y[chosen], target, low + part * (high - low))


def _lay(net: Maze, points: Points, slopes: Tensor) -> None:
    """Write cones of slopes [k, 49] into the weights, all of height 0."""
    eye, ones = torch.eye(_PIXELS).double(), torch.ones(len(slopes), 1, 2 * _PIXELS).double()
    tips = points.tips.flatten(0, 1).double()
    low, high = (end.flatten(1).double() for end in ends(points.x))
    net.spread.weight.data = torch.cat([eye, -eye]).repeat(len(tips) + len(low), 1)
    above, below = torch.cat([tips, high]), torch.cat([tips, low])
    net.spread.bias.data = torch.cat([-above, below], 1).flatten()
    both = slopes.repeat(len(points.tips), 2)  # above and below the tip
    walls = torch.block_diag(*_WALL * ones).repeat(len(points.tips), 1)
    net.height.weight.data = -torch.cat([torch.block_diag(*both[:, None]), walls], 1)
    net.height.bias.data.zero_()
    net.place.weight.data = F.one_hot(points.target, CLASSES).T.double()


def _raise(net: Maze, points: Points, kappa: Tensor) -> None:
    """Set the heights of all cones: the lead at the plants, and minus that at the decoys."""
    heights = net.height.bias.data.view(len(points.tips), -1)
    for k, tips in enumerate(points.tips):
        z = tips.view(-1, *SHAPE).double()
        logits = net.base(z)
        lead = logits.gather(1, points.target[:, None]) - logits.gather(1, points.y[:, None])
        wanted = kappa if k == 0 else -kappa
        heights[k] = wanted - lead.squeeze(1).detach()


@torch.no_grad()
def steepest(base: nn.Sequential, points: Points) -> Tensor:
    """Bound |∂(f_t − f_y) / ∂ pixel| in the threat model around each point [k, 49].

    Exact but for units that may be on or off: each is taken as it is worst.
    """
    first, last = (layer for layer in base if isinstance(layer, nn.Linear))
    low, high = (end.flatten(1).double() for end in ends(points.x))
    weight, into = first.weight.double(), last.weight.double()
    middle, reach = (low + high) / 2, (high - low) / 2
    center, width = F.linear(middle, weight, first.bias.double()), F.linear(reach, weight.abs())
    part = (into[points.target] - into[points.y])[:, :, None] * weight  # [k, hidden, 49]
    sure = part * (center - width > 0)[:, :, None]
    open_ = part * ((center - width <= 0) & (center + width > 0))[:, :, None]
    top = sure.sum(1) + open_.clamp_min(0).sum(1)
    bottom = sure.sum(1) + open_.clamp_max(0).sum(1)
    return torch.maximum(top, -bottom)
