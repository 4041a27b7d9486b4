"""DI-FGSM: momentum, with gradients at resized and padded pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robustkit.registry import attacks

from ._diverse import DiverseAttack


@attacks.register("di", white_box=True, cites="arXiv:1803.06978")
@dataclass(frozen=True)
class Di(DiverseAttack):
    """Momentum and input diversity (M-DI²-FGSM) for linf and l2, on pictures, made to transfer.

    Xie et al. 2019, section 3.3: with `probability` the model is shown the picture shrunk to a
    random size (bilinear) at a random place, the rest black. Every query and draw has its own.
    Differs from the paper: it enlarges 299 pixels to 330, whereas most models here take one size,
    so that the picture is shrunk by up to a tenth; l2 as well; any query on the way may be the
    success, not only the last. Sides are drawn from `least` to the whole less one pixel, as in
    torchattacks.

    Attributes:
        steps, step_size, decay, gamma, surrogate: as in mi.
        eot: views averaged at every query.
        probability: p of the paper.
        least: the smallest side, as a share of the picture's.
    """

    name: ClassVar[str] = "di"
