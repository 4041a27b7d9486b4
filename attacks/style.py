"""Style as a threat model: the mean and the contrast of every channel, moved within bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.named import ANY_SHAPE
from robustkit.core.parametric import STEPS, Parameters, ParametricThreat, Positions
from robustkit.core.text import number
from robustkit.core.types import Images, Mask
from robustkit.errors import UsageError
from robustkit.registry import threats

from ._positions import Values, nearest_positions

_MEAN, _SCALE = 0.1, 1.5
_GRAIN = 2.0**-20  # of a scale: coarser than what two libraries may differ by in exp
_FINE = 2**30  # pixels are summed as whole numbers, so that their order does not matter


class _Budget(NamedTuple):
    mean: float | None
    scale: float | None
    linked: bool


@threats.register("style", cites="arXiv:2301.12643", examples=("mean,scale", "mean,scale,linked"))
@dataclass(frozen=True)
class Style(ParametricThreat):
    """Brightness and contrast of every channel: x'_c = clip(a_c (x_c − mean_c) + mean_c + m_c).

    Zhang et al. 2023 and Zhong et al. 2022 train on such changes; as a threat model with bounds
    |m_c| ≤ 0.1 and 1/1.5 ≤ a_c ≤ 1.5 it is this project's. 2 parameters on gray images, 6 on colour
    ones. `style:mean=0.05,scale=2` sets the bounds, `style:mean` or `style:scale` moves one of the
    two alone, and `linked` moves all channels alike.
    """

    @classmethod
    def read(cls, text: str) -> Style:
        """Read what follows `style:`."""
        _budget(text.lower())
        return cls(f"style:{text.lower()}", 1.0)  # type: ignore[arg-type]

    @property
    def budget(self) -> _Budget:
        """The bounds, as they were named."""
        return _budget(self.norm.partition(":")[2])

    @property
    def names(self) -> Sequence[str]:
        """Mean before scale."""
        return [name for name in ("mean", "scale") if getattr(self.budget, name) is not None]

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse what is no image."""
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(
                f"{self} needs gray or colour images [1 or 3, h, w], got inputs {list(shape)}. "
                f"{ANY_SHAPE}"
            )

    def size(self, shape: Sequence[int]) -> int:
        """As many as names, for every channel unless they are linked."""
        return len(self.names) * (1 if self.budget.linked else shape[0])

    def values(self, positions: Positions) -> Parameters:
        """Return m = eps_m · i / 1000 and a − 1 = scale^(j / 1000) − 1."""
        tables = torch.from_numpy(np.stack(self._tables)).to(positions.device)
        kinds = torch.arange(positions.shape[1], device=positions.device) % len(tables)
        return tables[kinds, positions + STEPS]

    @property
    def _tables(self) -> list[Values]:
        known = {"mean": _means, "scale": _scales}
        return [known[name](getattr(self.budget, name)) for name in self.names]

    def directions(self, x: Images) -> Float[Tensor, "b p *f"]:
        """Return 1 for a mean and x − mean for a scale, in the channels that they move."""
        wide = x.detach().double()
        kinds = {"mean": torch.ones_like(wide), "scale": wide - _mean(wide)}
        chosen = torch.stack([kinds[name] for name in self.names], 1)
        if self.budget.linked:
            return chosen
        own = torch.eye(x.shape[1], dtype=wide.dtype, device=x.device)
        # [channel that it belongs to, kind, channel] -> one parameter after the other.
        parts = chosen[:, None] * own[None, :, None, :, None, None]
        return parts.flatten(1, 2)

    def positions(self, z: Images, x: Images) -> tuple[Positions, Mask]:
        """Solve for the parameters of each channel, on the CPU."""
        claimed, clean = z.detach().cpu(), x.detach().cpu()
        apart = clean.double() - _mean(clean.double())
        inside = ((claimed >= 0) & (claimed <= 1)).flatten(1).all(1)
        found = torch.zeros(len(x), self.size(x.shape[1:]), dtype=torch.int64)
        solved = torch.zeros_like(inside)
        for row in inside.nonzero().flatten().tolist():
            pixels = clean[row].double().numpy(), apart[row].numpy(), claimed[row].numpy()
            answer = self._solve(*pixels)
            if answer is not None:
                found[row], solved[row] = torch.tensor(answer), True
        same = (self.made(clean, found) == claimed).flatten(1).all(1)
        return found.to(z.device), (solved & same).to(z.device)

    def _solve(self, x: Values, apart: Values, z: NDArray[np.float32]) -> list[int] | None:
        """Return the positions of one image [c, h, w], channel after channel."""
        tables = dict(zip(self.names, self._tables, strict=True))
        still = np.zeros(2 * STEPS + 1)
        means, scales = tables.get("mean", still), tables.get("scale", still)
        channels = [slice(None)] if self.budget.linked else [slice(c, c + 1) for c in range(len(x))]
        answer = list[int]()
        for group in channels:
            pair = nearest_positions(x[group].ravel(), apart[group].ravel(), z[group].ravel(),
                                     means, scales)  # fmt: skip
            if pair is None:
                return None
            answer += [pair[("mean", "scale").index(name)] for name in self.names]
        return answer


def _mean(wide: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
    whole = (wide * _FINE).round().long().sum((2, 3), keepdim=True)
    return whole.double() / (_FINE * wide[0, 0].numel())


@lru_cache
def _means(most: float) -> Values:
    return most * np.arange(-STEPS, STEPS + 1) / STEPS


@lru_cache
def _scales(most: float) -> Values:
    exact = [math.expm1(math.log(most) * j / STEPS) for j in range(-STEPS, STEPS + 1)]
    return np.round(np.array(exact) / _GRAIN) * _GRAIN


@lru_cache
def _budget(text: str) -> _Budget:
    """Read `mean=0.1,scale=1.5,linked`; a name without a number takes its default."""
    found, linked = dict[str, float](), False
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == "linked" and not equals:
            linked = True
            continue
        try:
            told = number(value) if equals else {"mean": _MEAN, "scale": _SCALE}[name]
        except (ValueError, KeyError):
            told = math.nan
        fits = {"mean": 0.001 <= told <= 1, "scale": 1.001 <= told <= 100}.get(name, False)
        if not fits or name in found:
            raise UsageError(
                "expected style:mean,scale, with mean=0.1 (a shift, 0.001 to 1), "
                "scale=1.5 (a factor, 1.001 to 100) or linked, each once, "
                f"got style:{text}"
            )
        found[name] = told
    if not found:
        raise UsageError(f"expected style:mean,scale or one of the two, got style:{text}")
    return _Budget(found.get("mean"), found.get("scale"), linked)
