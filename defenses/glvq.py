"""GLVQ: the class of the nearest of a few learned points, with a certificate by formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from robustkit.certify.declared import Proof
from robustkit.certify.ibp import input_box
from robustkit.certify.smoothing import reach
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

_ULP = 2.0**-22  # two roundings of a logit to float32, relative


class Prototypes(nn.Module):
    """−‖x − w‖₂² of the nearest prototype of each class, [b, *f] -> [b, k] in float32.

    Certificates: "prototypes" and, in l2, "prototypes-published"; see `radius`.
    """

    def __init__(self, features: int, classes: int, each: int) -> None:
        super().__init__()
        self.classes, self.each = classes, each
        self.w = nn.Parameter(torch.empty(classes * each, features).uniform_(0.45, 0.55))

    def distances(self, x: Images) -> Float[Tensor, "b n"]:
        """‖x − w‖₂² in float64; a class's prototypes stand side by side."""
        z, w = x.flatten(1).double(), self.w.double()
        square = z.square().sum(1, keepdim=True) + w.square().sum(1) - 2 * z @ w.T
        return square.clamp_min(0)

    def forward(self, x: Tensor) -> Tensor:
        """[b, *f] -> [b, k]."""
        nearest: Tensor = self.distances(x).unflatten(1, (self.classes, self.each)).amin(2)
        return -nearest.float()

    def certificates(self) -> dict[str, Proof]:
        """Return the certificates, the tightest first."""
        return {
            "prototypes": self._holds,
            "prototypes-published": lambda x, y, threat: (
                self._holds(x, y, threat)  # implied by the other, and minds the rounding
                & (radius(self, x, y, published=True) > reach(threat, x[0].numel()))
            ),
        }

    def owner(self, y: Labels) -> Bool[Tensor, "b n"]:
        """Whether a prototype is of the label's class."""
        classes = torch.arange(len(self.w), device=y.device) // self.each
        return classes == y[:, None]

    def _holds(self, x: Images, y: Labels, threat: Threat) -> Mask:
        """Bound ‖x − w_j‖² − ‖x − w_i‖², which is linear in x, over the threat model."""
        w, z = self.w.double(), x.flatten(1).double()
        between = 2 * (w[:, None] - w)  # [i, j, f], the gradient
        square, moved = self.distances(x), reach(threat, w.shape[1])
        lead = square[:, None] - square[:, :, None]
        box = input_box(x.double(), threat)
        if threat.norm == "linf":
            down, up = z - box.low.flatten(1), box.high.flatten(1) - z
            rise, fall = between.clamp_min(0).flatten(0, 1), (-between).clamp_min(0).flatten(0, 1)
            lead = lead - (down @ rise.T + up @ fall.T).view_as(lead)
        elif threat.norm == "l1":
            lead = lead - moved * between.abs().amax(2)
        else:
            lead = lead - moved * between.norm(dim=2)
        # Anywhere in the ball float64 sums lose (f + 4) 2⁻⁵³ (‖z‖ + ‖w‖)² at most, and float32 an
        # ulp of the distance to i.
        most = z.norm(dim=1, keepdim=True) + moved + w.norm(dim=1).max()
        lost = (w.shape[1] + 4) * 2.0**-49 * most.square()
        own, rounding = self.owner(y), lost + _ULP * (square.sqrt() + moved).square()
        beaten: Mask = ((lead > rounding[:, :, None]) & own[:, :, None]).any(1)
        return (beaten | own).all(1)


def radius(net: Prototypes, x: Images, y: Labels, *, published: bool = False) -> Scalars:
    """Return the l2 radius in which the label is proved, float64 [b]; negative where it is wrong.

    min over j of the other classes of max over i of the label of the distance to the plane between
    both, (δ_j² − δ_i²) / (2 ‖w_i − w_j‖): exact where a class has one prototype and the box does
    not matter. Published: (min δ_j − min δ_i) / 2, by the triangle inequality alone (Saralajew,
    Holdijk, Villmann, NeurIPS 2020). Without regard to rounding.
    """
    square, own, w = net.distances(x), net.owner(y), net.w.double()
    if published:
        delta = square.sqrt()
        nearest = delta.masked_fill(~own, torch.inf).amin(1)
        return (delta.masked_fill(own, torch.inf).amin(1) - nearest) / 2
    apart = 2 * torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist")
    found = (square[:, None] - square[:, :, None]) / apart.clamp_min(1e-300)
    best = found.masked_fill(~own[:, :, None], -torch.inf).amax(1)
    return best.masked_fill(own, torch.inf).amin(1)


@defenses.register("glvq", cites="Sato & Yamada 1995", against="l2")
@dataclass(frozen=True)
class Glvq:
    """Generalized learning vector quantization: nearest prototype, certified by formula.

    Minimizes (d⁺ − d⁻) / (d⁺ + d⁻) with the squared distances to the nearest prototype of the label
    and of another class. [b, c, h, w] in [0, 1] -> negative squared distances [b, k]. The baseline
    of `cbc`. Certificates for every norm: `--certify prototypes`, which `auto` takes.
    Differs from the paper: AdamW with a cosine schedule, no sigmoid around the loss, prototypes
    that begin near the center of the box.

    Attributes:
        each: prototypes per class.
    """

    each: Annotated[int, Field(ge=1)] = 2

    @property
    def recipe(self) -> Recipe:
        """Few steps are needed: each moves two prototypes."""
        return Recipe(epochs=10, lr=5e-3, weight_decay=0.0, half=False)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the prototypes."""
        c, h, w = shape
        return Prototypes(c * h * w, classes, self.each)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b]; prototypes are first brought back to the box.

        Raises:
            UsageError: for a model that `network` did not build.
        """
        if not isinstance(model, Prototypes):
            raise UsageError(
                f"glvq trains the network that it builds, got a {type(model).__name__}. Pass the "
                "module that `network` returns."
            )
        with torch.no_grad():
            model.w.clamp_(0, 1)
        own, square = model.owner(y), model.distances(x)
        right = square.masked_fill(~own, torch.inf).amin(1)
        wrong = square.masked_fill(own, torch.inf).amin(1)
        return ((right - wrong) / (right + wrong).clamp_min(1e-12)).mean()
