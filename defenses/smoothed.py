"""Randomized smoothing: any classifier, asked many times under Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robustkit.certify.smoothing import Smoothed
from robustkit.data.dataset import Dataset
from robustkit.models.load import load_model
from robustkit.registry import defenses


@defenses.register("smoothed", cites="arXiv:1902.02918")
@dataclass(frozen=True)
class SmoothedClassifier:
    """The smoothed classifier of a registered or imported model; certify it with `smoothing`.

    Cohen et al. 2019. An answer is the vote of `draws` passes; the certificate draws its own.

    Attributes:
        base: the model, such as undefended or "path/to/model.py:make".
        sigma: standard deviation of the noise, in input units.
    """

    base: str = "undefended"
    sigma: Annotated[float, Field(gt=0)] = 0.25
    draws: Annotated[int, Field(ge=1)] = 32

    def load(self, data: Dataset) -> nn.Module:
        """Wrap the base."""
        return Smoothed(load_model(self.base, data=data).model, self.sigma, self.draws)
