"""A model and the points it is evaluated on, after a first look."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from robustkit.core.types import Images, Model
from robustkit.data.dataset import Dataset
from robustkit.models.tuning import Tuned
from robustkit.record.schema import WeightsInfo
from robustkit.verify.diagnostics.probe import Diagnosis


class Prepared(NamedTuple):
    """A model and the points it is evaluated on, after a first look.

    Attributes:
        model: the private copy that verdicts come from.
        tuned: the copy that searches use.
        content: digest of the points.
        sample: the points that were looked at.
    """

    name: str
    model: Model
    tuned: Tuned
    health: Diagnosis
    weights: WeightsInfo
    data: Dataset
    points: np.ndarray[Any, np.dtype[np.int64]]
    content: str
    seed: int
    device: torch.device
    sample: Images
