"""The parameters of a threat model such as style: a grid of all, then ascent from the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin
from robustkit.core.parametric import STEPS, ParametricThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search.protocol import Job, Reply, Tasks

_GRID = 2  # with more parameters than this, points of a Sobol sequence take the grid's place


class State(NamedTuple):
    """Per slot the position of its query and those it will climb from; `moves`: queries so far.

    Attributes:
        position: of the query in the range of each parameter [s, p].
        margins: of the first queries [s, g], −inf where they are still to come.
        place: while it climbs, where it is [s, p], in shares of the range.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    position: Int[Tensor, "s p"]
    margins: Tensor
    place: Tensor
    moves: Integers

    @property
    def climbing(self) -> Mask:
        """Which slots are past the grid: only they need a gradient."""
        return self.moves >= self.margins.shape[1]

    @property
    def closest(self) -> Scalars:
        """The largest margin on the grid."""
        return self.margins.amax(1)


@attacks.register("parametric", white_box=True, cites="arXiv:2301.12643")
@dataclass(frozen=True)
class Parametric:
    """Look at a grid of all parameters, then climb the margin from the best of it.

    For threat models that move an image along a few parameters, such as `style:mean,scale`. With
    one or two parameters the grid is regular, with more it is a Sobol sequence. Each of the
    `starts` best then takes `steps` steps along the sign of the gradient, from half the spacing of
    the grid down to nothing. A run costs grid + starts · steps passes. `grid=41, starts=0` looks at
    a fine grid alone, the truth to hold a search against. No random draws.

    Attributes:
        grid: values of each of one or two parameters, an odd number.
        points: of the Sobol sequence.
        starts: how many of them to climb from.
        steps: of each climb.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every step of a climb, for randomized models.
    """

    grid: Annotated[int, Field(ge=3, le=2001)] = 5
    points: Annotated[int, Field(ge=1, le=4096)] = 64
    starts: Annotated[int, Field(ge=0)] = 4
    steps: Annotated[int, Field(ge=1)] = 20
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True
    parametric = True

    def __post_init__(self) -> None:
        if self.grid % 2 == 0:
            raise UsageError(
                f"parametric: expected an odd grid, whose middle leaves the image, got {self.grid}."
            )

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for a threat model without parameters.
        """
        if not isinstance(threat, ParametricThreat):
            raise UsageError(
                "parametric supports threat models with parameters, such as style:mean,scale, got "
                f"{threat.norm}. Use --suite fast for a norm, --suite exhaustive for a list."
            )
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin with the first point of the grid."""
        assert isinstance(threat, ParametricThreat)  # `jobs` refuses others
        grid = self._grid(threat.size(tasks.x.shape[1:])).to(tasks.x.device)
        count, no = len(tasks.x), torch.zeros_like(tasks.y, dtype=torch.bool)
        first = grid[:1].expand(count, -1).clone()
        margins = tasks.x.new_full((count, len(grid)), -torch.inf)
        return State(threat.made(tasks.x, first), no, tasks.x, tasks.y, first, margins,
                     first.double() / STEPS, torch.zeros_like(tasks.y))  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take in one point of the grid, or one step of a climb."""
        assert isinstance(threat, ParametricThreat)
        grid = self._grid(state.position.shape[1]).to(state.x.device)
        moves, looks = state.moves + 1, len(grid)
        seen = torch.arange(looks, device=moves.device) == state.moves[:, None]
        margins = torch.where(seen, reply.value[:, None].to(state.margins.dtype), state.margins)
        place = state.place
        if bool((moves >= looks).any()):
            place = self._climbed(state._replace(margins=margins, moves=moves), reply, grid, threat)
        looked = grid[moves.clamp_max(looks - 1)]
        position = torch.where((moves < looks)[:, None], looked, (place * STEPS).round().long())
        # The start of a climb was a query of the grid: it is asked again for its gradient.
        budget = looks + min(self.starts, looks) * self.steps
        return state._replace(
            query=threat.made(state.x, position), done=state.done | (moves >= budget),
            position=position, margins=margins, place=place, moves=moves,
        )  # fmt: skip

    def _climbed(
        self, state: State, reply: Reply, grid: Int[Tensor, "g p"], threat: ParametricThreat
    ) -> Tensor:
        """Return where the climbs have come to [s, p]: `steps` steps of one start after another."""
        past = (state.moves - len(grid)).clamp_min(0)
        climb, taken = past // self.steps, past % self.steps
        ahead = (state.place + self._ahead(state, reply, taken, threat)).clamp(-1, 1)
        best = state.margins.sort(dim=1, descending=True, stable=True).indices
        start = best.gather(1, climb.clamp_max(len(grid) - 1)[:, None])[:, 0]
        begins = (taken == 0) & (state.moves >= len(grid))
        return torch.where(begins[:, None], grid[start].double() / STEPS, ahead)

    def _ahead(
        self, state: State, reply: Reply, taken: Integers, threat: ParametricThreat
    ) -> Tensor:
        """Return a step along the sign of the gradient of the margin by the parameters."""
        with torch.enable_grad():
            theta = threat.values(state.position).requires_grad_()
            made = threat.images(state.x, theta)
            (slope,) = torch.autograd.grad((made * reply.gradient.to(made.dtype)).sum(), theta)
        longest = 1 / (self.grid - 1) if state.position.shape[1] <= _GRID else 0.25
        size = longest * 2 * (1 - taken.double() / self.steps)
        return slope.sign() * size[:, None]

    def _grid(self, parameters: int) -> Int[Tensor, "g p"]:
        return _grid(parameters, self.grid, self.points)


@lru_cache
def _grid(parameters: int, grid: int, points: int) -> Int[Tensor, "g p"]:
    """Return positions in the ranges of the parameters, the middle among them."""
    if parameters <= _GRID:
        line = (torch.linspace(-1, 1, grid, dtype=torch.float64) * STEPS).round().long()
        return torch.cartesian_prod(*[line] * parameters).view(-1, parameters)
    drawn = torch.quasirandom.SobolEngine(parameters).draw(points, dtype=torch.float64)
    return ((2 * drawn - 1) * STEPS).round().long()


@suites.register("parametric", cites="")
@dataclass(frozen=True)
class Alone:
    """The attack `parametric` alone: what a threat model with parameters is evaluated by."""

    parametric = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """On the model itself, and through each surrogate that it declares.

        Raises:
            UsageError: for a norm.
        """
        Parametric().jobs(threat, 2)
        return ["parametric", *(f"parametric(surrogate={name})" for name in surrogates)]
