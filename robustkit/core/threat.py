"""Threat models: norms, radii, projections, steepest directions, random points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from robustkit.core import arguments
from robustkit.core.criterion import UNTARGETED, Criterion
from robustkit.core.rng import Keys, normal, uniform
from robustkit.core.text import number
from robustkit.core.types import Images, Labels, Mask, Scalars, per_point
from robustkit.errors import UsageError, unknown

Norm: TypeAlias = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = get_args(Norm)
_ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}
# Points are float32: every coordinate is off by up to half a unit in the last place of 1.0.
_RELATIVE, _ROUNDING = 1e-6, 2.0**-24
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Threat:
    """Every x' with ‖x' − x‖ ≤ eps and lower ≤ x' ≤ upper. eps is in input units (8/255, not 8).

    In l0 eps is a whole number: how many features may change; every channel of a pixel counts.
    Methods take an optional `eps` of one radius per point, for searches that vary it. `criterion`
    says which of them break a point.
    """

    norm: Norm
    eps: float
    lower: float = 0.0
    upper: float = 1.0
    criterion: Criterion = UNTARGETED

    def __post_init__(self) -> None:
        if str(self.norm) not in _ORDER:  # what is given may be of any type
            raise unknown("norm", arguments.shown(self.norm).strip("'"), NORMS)
        if type(self.eps) not in (int, float):  # NumPy's; these two stay as ledgers hold them
            object.__setattr__(self, "eps", arguments.real("eps", self.eps))
        if not (self.eps > 0 and self.eps < math.inf):
            raise UsageError(f"eps must be positive and finite, got {arguments.shown(self.eps)}")
        if not _SMALLEST <= self.eps <= _LARGEST:
            told = arguments.shown(self.eps)
            raise UsageError(f"eps: expected a number that float32 can hold, got {told}.")
        if not (
            math.isfinite(self.lower) and math.isfinite(self.upper) and self.lower < self.upper
        ):
            raise UsageError(
                "expected a box with lower < upper, both finite, such as 0 and 1, got lower = "
                f"{self.lower!r} and upper = {self.upper!r}"
            )
        expected = "a criterion, as robustkit.registry.read_criterion makes it"
        arguments.instance("criterion", self.criterion, Criterion, expected)
        if self.norm == "l0" and self.eps != int(self.eps):
            raise UsageError(
                f"eps in l0 counts the features that may change: a whole number, got {self.eps!r}"
            )

    @classmethod
    def whole(cls, norm: Norm, features: int, lower: float = 0.0, upper: float = 1.0) -> Threat:
        """Return the threat model that is bounded by the box alone, for inputs of `features`."""
        return replace(one := cls(norm, 1.0, lower, upper), eps=one.diameter(features))

    def diameter(self, features: int) -> float:
        """Largest distance of two inputs in the box."""
        if not self._order:
            return float(features)
        return (self.upper - self.lower) * float(features ** (1 / self._order))

    def refuse_beyond_box(self, shape: Sequence[int]) -> None:
        """Refuse an eps that no two inputs [*shape] in the box are apart (a UsageError)."""
        reach = self.diameter(math.prod(shape))
        if self.eps > reach * (1 + _RELATIVE):
            raise UsageError(
                f"{self} reaches beyond the box [{self.lower:g}, {self.upper:g}]: no two inputs "
                f"{list(shape)} are farther apart than {reach:.6g} in {self.norm}. eps is in units "
                "of the inputs; was 8/255 meant, not 8?"
            )

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Read `linf:8/255`, `l2:0.5`, `l1:12` or `l0:10`.

        Raises:
            UsageError: for another form, an unknown norm or an eps that is not positive.
        """
        if not isinstance(text, str):
            raise arguments.refused("threat", "a text such as 'linf:8/255'", text)
        norm, _, radius = text.partition(":")
        try:
            eps = number(radius)
        except ValueError:
            raise UsageError(
                "expected a threat model such as 'linf:8/255', 'l2:0.5', 'l1:12' or 'l0:10', "
                f"got {text!r}"
            ) from None
        return cls(norm.strip().lower(), eps)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps:.6g}{self.criterion.suffix}"

    def facts(self) -> dict[str, Any]:
        """Return the fields as JSON values; the criterion only where it is not the usual one."""
        found = {"norm": self.norm, "eps": self.eps, "lower": self.lower, "upper": self.upper}
        return found | ({"criterion": str(self.criterion)} if self.criterion.suffix else {})

    @property
    def box(self) -> tuple[float, float]:
        """The range of the inputs."""
        return self.lower, self.upper

    @property
    def _order(self) -> float:
        return _ORDER[self.norm]

    def radius(self, x: Images, eps: Scalars | None = None) -> Scalars:
        """One radius per point of `x`: `eps` if given, else the threat model's own."""
        return x.new_full((len(x),), self.eps) if eps is None else eps

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """‖z − x‖ per point, in float64. No norm asks for their positions in the data, `points`."""
        delta = (z.double() - x.double()).flatten(1)
        length: Scalars = torch.linalg.vector_norm(delta, self._order, dim=1)
        return length

    def limit(self, features: int) -> float:
        """Largest distance that counts as inside, for inputs of so many features.

        The tolerance is what float32 cannot express: 1e-6 of eps, plus one rounding per coordinate;
        none in l0. A rounding is that of the largest number in the box, of 1 at least.
        """
        return self.eps * (1 + self._relative) + self._slack(features)

    @property
    def _relative(self) -> float:
        return _RELATIVE if self._order else 0.0

    def _slack(self, features: int) -> float:
        """What rounding every coordinate to float32 can add to a distance."""
        largest = _ROUNDING * max(1.0, abs(self.lower), abs(self.upper))
        return largest * max(1, features) ** (1 / self._order) if self._order else 0.0

    def contains(
        self,
        z: Images,
        x: Images,
        eps: Scalars | None = None,
        points: Sequence[int] | None = None,
    ) -> Mask:
        """Which points of `z` lie in the box and in the ball around `x`; see `limit`."""
        slack = self._slack(x[0].numel() if len(x) else 1)
        limit = self.radius(x, eps).double() * (1 + self._relative) + slack
        boxed: Mask = ((z >= self.lower) & (z <= self.upper)).flatten(1).all(1)
        return boxed.logical_and_(self.distance(z, x) <= limit)

    def project(self, z: Images, x: Images, eps: Scalars | None = None) -> Images:
        """Return the point of ball and box together that is nearest to `z` in l2.

        `x` must lie in the box. Exact up to float32.
        """
        if self.norm == "linf":
            return self.projection(x, eps)(z)
        radius = self.radius(x, eps)
        if self.norm == "l0":
            return _keep_most(z.clamp(self.lower, self.upper), z, x, radius)
        delta = z - x
        sign = delta.sign()
        # How far the box extends in the direction of each coordinate; torch.where would cost more.
        middle, half = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        room = (middle - x).mul_(sign).add_(half).clamp_min_(0)
        size, room = delta.abs_().flatten(1), room.flatten(1)
        shrink = _shrink_l2 if self.norm == "l2" else _shrink_l1
        inside = shrink(size, room, radius * (1 - _RELATIVE))
        return (x + sign * inside.view_as(x)).clamp_(self.lower, self.upper)

    def projection(self, x: Images, eps: Scalars | None = None) -> Callable[[Images], Images]:
        """Return `project` for one `x`: several projections share what depends on `x` alone."""
        if self.norm != "linf":
            return lambda z: self.project(z, x, eps)
        reach = per_point(self.radius(x, eps), x)
        low, high = (x - reach).clamp_min_(self.lower), (x + reach).clamp_max_(self.upper)
        return lambda z: torch.clamp(z, low, high)

    def steepest(self, gradient: Images) -> Images:
        """Return the v with ‖v‖ ≤ 1 that maximizes ⟨gradient, v⟩ (zero where the gradient is).

        In l0, where that has no bound, the v with one coordinate of at most 1, as in l1.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return unit(gradient)
        flat = gradient.flatten(1)
        value, place = flat.abs().max(dim=1, keepdim=True)
        signs = flat.gather(1, place).sign() * (value > 0)
        return torch.zeros_like(flat).scatter(1, place, signs).view_as(gradient)

    def sample(
        self, x: Images, keys: Keys, stream: int | Labels = 0, eps: Scalars | None = None
    ) -> Images:
        """Draw a random point of the set around each `x`; `stream` may differ by point.

        linf: uniform direction scaled to the surface; l2: uniform on the sphere; l1: a normal draw
        projected. All are the starting points of AutoAttack's APGD. Then clipped to the box.
        l0: as many features as may change, chosen at random, each uniform in the box.
        """
        radius, features = self.radius(x, eps), math.prod(x.shape[1:])
        if self.norm == "l0":
            order, value = uniform(keys, 2 * features, stream).chunk(2, dim=1)
            chosen = order.argsort(1).argsort(1) < radius[:, None]
            fresh = (self.lower + (self.upper - self.lower) * value).view_as(x)
            return torch.where(chosen.view_as(x), fresh, x)
        if self.norm == "linf":
            draw = uniform(keys, features, stream) * 2 - 1
            draw = draw / draw.abs().amax(1, keepdim=True).clamp_min(1e-12)
        else:
            draw = normal(keys, features, stream)
            if self.norm == "l2":
                draw = draw / draw.norm(dim=1, keepdim=True).clamp_min(1e-12)
        reach = 1.0 if self.norm == "l1" else per_point(radius, x)
        return self.project(x + reach * draw.view_as(x), x, eps)


def unit(gradient: Images) -> Images:
    """Scale each gradient to l2 norm 1, whatever its scale; a zero gradient stays zero.

    Entries must be finite. Down to subnormal ones: of a confident model nothing else may be left.
    """
    flat = gradient.flatten(1)
    # Squares overflow from 2e19 on and vanish below 1e-23: the largest entry is divided out first.
    largest = torch.linalg.vector_norm(flat, math.inf, dim=1, keepdim=True)
    flat = flat / largest.clamp_min(torch.finfo(flat.dtype).tiny)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    # 1.2e-7 is the least that a nonzero entry can come to.
    scaled: Images = flat.div_(length.clamp_min_(1e-12)).view_as(gradient)
    return scaled


def _keep_most(clipped: Images, z: Images, x: Images, radius: Scalars) -> Images:
    """Return `clipped` on the features that bring `x` nearest to `z` in l2, else `x`.

    There are ⌊radius⌋ of them; of equal ones the first are taken.
    """
    gain = ((z - x).square() - (z - clipped).square()).flatten(1)
    order = gain.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(gain.shape[1], device=x.device) < radius.floor()[:, None]
    kept = torch.zeros_like(first).scatter(1, order, first)
    return torch.where(kept.view_as(x), clipped, x)


def _shrink_l2(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Scale `size` [b, d] by one factor per row, clip it at `room`, so that its l2 norm fits.

    The factor solves sum(min(t · size, room)²) = radius². Each round fixes what is clipped at the
    current t and solves for the rest; t only grows, so that every round stays inside the ball. Ten
    rounds are exact up to float32 where displacements span no more than eight orders of magnitude.
    """
    scale = (radius / size.norm(dim=1).clamp_min(1e-30)).clamp_max(1)[:, None]
    size2, room2, radius2 = size.square(), room.square(), (radius**2)[:, None]
    for _ in range(10):
        clipped = (scale * size >= room).to(size.dtype)
        fixed = torch.linalg.vecdot(room2, clipped)[:, None]
        free = torch.linalg.vecdot(size2, clipped.neg_().add_(1))[:, None]
        wanted = ((radius2 - fixed).clamp_min(0) / free.clamp_min(1e-30)).sqrt().clamp_max(1)
        grows = wanted > scale
        if size.device.type == "cpu" and not bool(grows.any()):  # elsewhere, looking costs more
            break
        scale = torch.maximum(scale, wanted)
    return torch.minimum(scale * size, room)


def _shrink_l1(size: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """Lower `size` [b, d] by one threshold per row, clip it at `room`, so that its l1 norm fits.

    The kept mass falls with the threshold: bisection, keeping to the side that fits. Thirty
    halvings exhaust float32, at a fifth of what sorting the breakpoints costs.
    """

    def kept(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp_min_(0), room)

    target = radius[:, None]
    low = torch.zeros_like(target)
    high = torch.where(
        torch.minimum(size, room).sum(1, keepdim=True) <= target, low, size.amax(1, keepdim=True)
    )
    for _ in range(30):
        middle = (low + high) / 2
        fits = kept(middle).sum(1, keepdim=True) <= target
        high, low = torch.where(fits, middle, high), torch.where(fits, low, middle)
    return kept(high)
