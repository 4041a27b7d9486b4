"""What both constructions share: the images, the threat model, and a network with its plants."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core import files
from robustkit.core.losses import margin, targeted_margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Scalars
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError

SHAPE, CLASSES, PLANTS = (1, 7, 7), 10, 5
THREAT = Threat("linf", 0.15)


class Planted(NamedTuple):
    """A network, k points of real images, and for each an adversarial input that we put there.

    Attributes:
        x, y: images [k, 1, 7, 7] in [0, 1] that the network gets right, and labels [k].
        z: inside the threat model around `x`, and misclassified.
    """

    net: nn.Module
    x: Images
    y: Labels
    z: Images

    def check(self, name: str) -> None:
        """Make sure that every plant is a counterexample.

        Raises:
            RobustkitError: naming the points where it is none.
        """
        with torch.no_grad():
            right = self.net(self.x).argmax(1) == self.y
            wrong = self.net(self.z).argmax(1) != self.y
        holds = right & wrong & THREAT.contains(self.z, self.x)
        if not bool(holds.all()):
            raise RobustkitError(
                f"{name}: expected a counterexample inside {THREAT} at every point that the "
                f"network gets right, got none at {(~holds).nonzero().flatten().tolist()}. Delete "
                "the stored network and make it again."
            )

    def save(self, path: Path) -> None:
        """Store weights and points."""
        held = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        held |= {"x": self.x, "y": self.y, "z": self.z}
        files.make_folder(path.parent)
        files.write(save({key: value.contiguous() for key, value in held.items()}), path)

    @classmethod
    def load(cls, path: Path, net: nn.Module) -> Planted:
        """Read what `save` stored into `net`, of the same architecture."""
        held = load_file(path)
        points = [held.pop(key) for key in ("x", "y", "z")]
        net.load_state_dict({key.removeprefix("net."): value for key, value in held.items()})
        return cls(net.eval().requires_grad_(False), *points)


@lru_cache
def images() -> tuple[Images, Labels]:
    """Return the bundled images, averaged over 4 × 4 pixels [1000, 1, 7, 7], and their labels."""
    x, y = open_dataset("bundled").fetch(np.arange(1000))
    return F.avg_pool2d(x, 4), y


def ends(x: Images) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value of every pixel inside the threat model."""
    return (x - THREAT.eps).clamp_min(0), (x + THREAT.eps).clamp_max(1)


class Ascent(NamedTuple):
    """PGD from a random point: steps, and their size as a fraction of eps."""

    steps: int
    size: float


def ascend(
    net: nn.Module,
    x: Images,
    y: Labels,
    ascent: Ascent,
    generator: torch.Generator,
    target: Labels | None = None,
) -> Images:
    """Return what PGD comes to, on the margin or on the lead of the classes `target` over `y`."""
    low, high = ends(x)
    z = low + (high - low) * torch.rand(x.shape, generator=generator)
    for _ in range(ascent.steps):
        logits = net(z.requires_grad_(True))
        value = margin(logits, y, y) if target is None else targeted_margin(logits, y, target)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        z = torch.clamp(z.detach() + ascent.size * THREAT.eps * gradient.sign(), low, high)
    return z.detach()


def lead(net: nn.Module, z: Images, y: Labels) -> Scalars:
    """Return the largest logit of a wrong class minus that of `y`: above 0 is misclassified."""
    return margin(net(z), y, y)
