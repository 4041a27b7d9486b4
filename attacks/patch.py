"""Adversarial patches: any values in one window, wherever it lies; and the search for both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from robustkit.core.boxed import BoxedThreat
from robustkit.core.losses import margin, targeted_margin
from robustkit.core.named import ANY_SHAPE
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites, threats
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row
from ._patches import every, extent, inside, lattice

_TOGETHER = 32  # windows that are bounded at once
_PROBES = 3  # what a window is looked at with: best by the gradient, black, white


@threats.register("patch", cites="arXiv:1712.09665", examples=("5x5", "3x8"))
@dataclass(frozen=True)
class Patch(BoxedThreat):
    """Every x' that differs from x in one window of pixels alone: any place, any values in [0, 1].

    Brown et al. 2017 and Karmon et al. 2018, with a patch of its own for every image. `patch:5x5`
    is 5 pixels high and 5 wide, all channels of them; `patch:3x8` lies down. The distance is the
    number of pixels that changed, infinite where no window holds them all; eps is the area. Differs
    from the papers: the patch is not rotated or scaled, and may cover what the image shows.
    """

    suite, searched_by = "patch", "patch"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what follows `patch:`."""
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.lower())
        height, width = (int(found[1]), int(found[2])) if found else (0, 0)
        if not height or not width:
            raise UsageError(f"expected patch:5x5, height and width in pixels, got patch:{text}")
        return cls(f"patch:{height}x{width}", float(height * width))  # type: ignore[arg-type]

    @property
    def window(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, _, width = self.norm.partition(":")[2].partition("x")
        return int(height), int(width)

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no image, and one that is smaller than the patch."""
        if len(shape) != 3:
            raise UsageError(
                f"{self} needs images [c, h, w], got inputs {list(shape)}. {ANY_SHAPE}"
            )
        height, width = self.window
        if height > shape[1] or width > shape[2]:
            raise UsageError(
                f"{self}: expected a patch no larger than the images, {shape[1]}x{shape[2]} "
                f"(inputs {list(shape)}), got {height}x{width}."
            )

    @property
    def instead(self) -> str:
        """A window."""
        return "changes one window of pixels: leave out --attack and --suite."

    def boxes(self, x: Images) -> Iterator[tuple[Images, Images]]:
        """Yield what a patch in each window may turn an image [1, c, h, w] into."""
        for places in every(self.window, x).split(_TOGETHER):
            held = inside(places, self.window, x)
            yield torch.where(held, 0.0, x), torch.where(held, 1.0, x)

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Pixels that changed; infinite where they fit in no window, or leave the box."""
        changed = (z != x).any(1)
        height, width = self.window
        fits = (extent(changed.any(2)) <= height) & (extent(changed.any(1)) <= width)
        boxed = ((z >= 0) & (z <= 1)).flatten(1).all(1)
        count: Scalars = changed.flatten(1).sum(1).double()
        return count.masked_fill(~(fits & boxed), torch.inf)


class State(NamedTuple):
    """Per slot what it saw and where it climbs; a window is the number of its upper left pixel.

    Attributes:
        corner: each pixel at the end of the box that the gradient at the clean point calls for.
        windows: to look at [s, w].
        values: of the objective, at each window with each probe [s, w · 3]; −inf: still to come.
        place: the window of the climb.
        moves: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    corner: Images
    windows: Int[Tensor, "s w"]
    values: Tensor
    place: Integers
    moves: Integers

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient: at the clean point, and past the looks."""
        return (self.moves == 0) | (self.moves > self.values.shape[1])


@attacks.register("patch", white_box=True, cites="arXiv:1712.09665")
@dataclass(frozen=True)
class PatchSearch:
    """Look at many windows with three probes, then climb in the best of them.

    For the threat model `patch:5x5`. A gradient at the clean image ranks all windows by what
    their pixels could gain if the model were linear: the `near` best are looked at, and a lattice
    of windows half a side apart, at most `looks` (Rao et al. 2020 search the place too, by moves
    to neighbours). A look is one pass with the patch that the gradient calls for, with black, and
    with white. In each of the `starts` best windows follow `steps` steps of sign ascent on the
    margin (Madry et al. 2018) from its best probe, from half the box down to nothing. A run costs
    1 + 3 · windows + starts · steps passes. Exact for linear models of two classes, and with
    `targets` for all. No random draws.

    Attributes:
        looks: windows of the lattice at most.
        near: windows beside them, by the gradient.
        starts: how many windows to climb in.
        steps: of each climb.
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged where gradients are taken, for randomized models.
    """

    looks: Annotated[int, Field(ge=1)] = 256
    near: Annotated[int, Field(ge=1)] = 16
    starts: Annotated[int, Field(ge=0)] = 4
    steps: Annotated[int, Field(ge=1)] = 30
    targets: Annotated[int, Field(ge=0)] = 0
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True
    patch = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, Patch):
            raise UsageError(f"patch supports patch:5x5 and the like, got {threat.norm}.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the clean point: its gradient ranks the windows."""
        assert isinstance(threat, Patch)  # `jobs` refuses others
        spread = lattice(threat.window, tasks.x, self.looks)
        near = min(self.near, len(every(threat.window, tasks.x)) - len(spread))
        windows = torch.cat([spread, spread.new_zeros(near)]).repeat(len(tasks.x), 1)
        values = tasks.x.new_full((len(tasks.x), windows.shape[1] * _PROBES), -torch.inf)
        return State(tasks.x, torch.zeros_like(tasks.y, dtype=torch.bool), tasks.x, tasks.y,
                     tasks.target, tasks.x, windows, values, torch.zeros_like(tasks.y),
                     torch.zeros_like(tasks.y))  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, of the target where there is one."""
        loss = targeted_margin if self.targets else margin
        return loss(logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take in the gradient of the clean point, one look, or one step of a climb."""
        assert isinstance(threat, Patch)
        looks, first = state.values.shape[1], state.moves == 0
        if any_row(first):
            corner = torch.where(reply.gradient == 0, state.x, (reply.gradient > 0).to(state.x))
            ranked = self._ranked(state, reply.gradient, threat)
            state = state._replace(
                corner=torch.where(per_point(first, corner), corner, state.corner),
                windows=torch.where(first[:, None], ranked, state.windows),
            )
        seen = torch.arange(looks, device=first.device) == (state.moves - 1)[:, None]
        values = torch.where(seen, reply.value[:, None].to(state.values.dtype), state.values)
        state = state._replace(values=values)
        looking, place = state.moves < looks, state.place
        query = _probe(state, state.moves.clamp_max(looks - 1), threat)
        if any_row(~looking):
            climbed, place = self._climbed(state, reply, threat)
            query = torch.where(per_point(looking, query), query, climbed)
        budget = looks + min(self.starts, looks // _PROBES) * self.steps
        return state._replace(query=query, place=place, moves=state.moves + 1,
                              done=state.done | (state.moves >= budget))  # fmt: skip

    def _climbed(self, state: State, reply: Reply, threat: Patch) -> tuple[Images, Integers]:
        """Return the next queries of the climbs, and their windows."""
        looks = state.values.shape[1]
        past = (state.moves - looks).clamp_min(0)
        climb, taken = past // self.steps, past % self.steps
        best, probe = state.values.view(len(past), -1, _PROBES).max(2)
        order = best.sort(dim=1, descending=True, stable=True).indices
        number = order.gather(1, climb.clamp_max(order.shape[1] - 1)[:, None])
        look = (number * _PROBES + probe.gather(1, number))[:, 0]
        begins = taken == 0
        place = torch.where(begins, state.windows.gather(1, number)[:, 0], state.place)
        # The first query of a climb was a look: it is asked again for its gradient, and the step
        # from it is the first of `steps` - 1.
        size = per_point((1 - taken / self.steps).to(state.x.dtype) / 2, state.x)
        ahead = (state.query + size * reply.gradient.sign()).clamp(0, 1)
        ahead = torch.where(inside(place, threat.window, state.x), ahead, state.x)
        fresh = per_point(begins, ahead)
        return torch.where(fresh, _probe(state, look, threat), ahead), place

    def _ranked(self, state: State, gradient: Images, threat: Patch) -> Int[Tensor, "s w"]:
        """Return the lattice, and beside it the windows that could gain most by the gradient."""
        spread = lattice(threat.window, state.x, self.looks)
        places = every(threat.window, state.x)
        near = state.windows.shape[1] - len(spread)
        gain = torch.maximum(gradient * (1 - state.x), -gradient * state.x).double().sum(1)
        mean = functional.avg_pool2d(gain[:, None], threat.window, stride=1).flatten(1)
        mean[:, torch.isin(places, spread)] = -torch.inf
        best = mean.sort(dim=1, descending=True, stable=True).indices[:, :near]
        return torch.cat([spread.expand(len(gain), -1), places[best]], 1)


def _probe(state: State, look: Integers, threat: Patch) -> Images:
    """Return the query of one look."""
    place = state.windows.gather(1, (look // _PROBES)[:, None])[:, 0]
    kind = per_point(look % _PROBES, state.x)
    shown = torch.where(kind == 0, state.corner, (kind == 2).to(state.x.dtype))
    return torch.where(inside(place, threat.window, state.x), shown, state.x)


@suites.register("patch", cites="")
@dataclass(frozen=True)
class Alone:
    """The attack `patch`, untargeted and then at five classes: for threat models `patch:5x5`."""

    patch = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """On the model itself, and through each surrogate that it declares.

        Raises:
            UsageError: for a norm.
        """
        PatchSearch().jobs(threat, 2)
        through = [f"patch(surrogate={name})" for name in surrogates]
        return ["patch", "patch(starts=2, targets=5)", *through]
