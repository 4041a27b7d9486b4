"""Randomized smoothing: the majority vote of any classifier under Gaussian noise."""

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

    Cohen et al. 2019, algorithm PREDICT: a pass is the vote of `draws` noisy passes of the base;
    the certificate draws its own. [b, *f] -> log vote shares [b, k], randomized. Differs from the
    paper: it never abstains, and ties are broken by mean probabilities.

    Attributes:
        base: the model, such as undefended or "path/to/model.py:make".
        sigma: standard deviation of the noise, in input units.
        draws: noisy passes of the base per pass.
    """

    base: str = "undefended"
    sigma: Annotated[float, Field(gt=0)] = 0.25
    draws: Annotated[int, Field(ge=1)] = 32

    def load(self, data: Dataset) -> nn.Module:
        """Load and wrap the base.

        Raises:
            UsageError: when the base cannot be loaded.
        """
        return Smoothed(load_model(self.base, data=data).model, self.sigma, self.draws)
