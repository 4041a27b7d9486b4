"""TI-FGSM: momentum, with gradients convolved with a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.registry import attacks

from ._diverse import DiverseAttack

_SPREAD = 3.0  # standard deviations from the middle of the kernel to its edge


@attacks.register("ti", white_box=True, cites="arXiv:1904.02884")
@dataclass(frozen=True)
class Ti(DiverseAttack):
    """Momentum along convolved gradients (TI-FGSM) for linf and l2, on pictures, to transfer.

    Dong et al. 2019, equation 7: the gradient is convolved with a Gaussian kernel of 3 standard
    deviations to each side, zero beyond the picture, which stands for gradients at shifted
    pictures. With `probability` > 0 the gradient is that of di (TI-DIM). Differs from the paper:
    its 15 pixels are for pictures of 299; l2 as well; any query on the way may be the success.

    Attributes:
        steps, step_size, decay, gamma, surrogate: as in mi.
        eot, probability, least: as in di.
        kernel: pixels along a side of the kernel, an odd number; 1 leaves the gradient as it is.
    """

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    kernel: Annotated[int, Field(ge=1)] = 5

    name: ClassVar[str] = "ti"

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise UsageError(
                f"ti: kernel={self.kernel} has no middle. Use an odd number, such as "
                f"{self.kernel + 1}."
            )

    def check(self, shape: Sequence[int]) -> None:
        """Refuse what is no picture, and kernels that are larger than it (a UsageError)."""
        super().check(shape)
        self.least_side(shape, self.kernel, f"kernel={self.kernel}")

    def smooth(self, gradient: Images) -> Images:
        """Convolve [s, c, h, w] with the kernel, one axis after the other."""
        half = self.kernel // 2
        places = torch.linspace(-_SPREAD, _SPREAD, self.kernel, dtype=torch.float64)
        weights = (-places.square() / 2).exp()
        # Sums of shifted pictures: a convolution may round by how many there are in the batch.
        for axis, margin in ((2, (0, 0, half, half)), (3, (half, half))):
            wide, size = F.pad(gradient, margin), gradient.shape[axis]
            shifted = [
                weight * wide.narrow(axis, place, size)
                for place, weight in enumerate((weights / weights.sum()).tolist())
            ]
            gradient = sum(shifted[1:], shifted[0])
        return gradient
