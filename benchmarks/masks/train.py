"""Training what the masks need: the bare model once, and a network for each that learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.masks.mask import Mask, Masked
from robustkit.data.dataset import Dataset
from robustkit.models.protocols import Network, assemble
from robustkit.models.training import Trainable, fit


def wear(
    mask: Mask, data: Dataset, folder: Path, *, seed: int, report: Callable[[str], None]
) -> Masked:
    """Return the masked model, in evaluation mode and without gradients of weights.

    Args:
        data: training data.
        folder: holds the trainings; what is there is read back or goes on.

    Raises:
        UsageError: when a folder holds another training.
    """
    bare = bare_model(mask, data, folder, seed=seed, report=report)
    learned = None
    if mask.learns:
        identity = {"mask": mask.name, **asdict(mask)}
        learned = _trained(mask, mask, data, folder / mask.name, identity, seed, report)
    return mask.wrap(bare, learned, data).eval().requires_grad_(False)


def bare_model(
    mask: Mask, data: Dataset, folder: Path, *, seed: int, report: Callable[[str], None]
) -> nn.Module:
    """Return the adversarially trained small CNN of the width and the epochs of `mask`."""
    defense = mask.adversarial
    identity = {"mask": "", **asdict(cast(Any, defense)), "epochs": mask.epochs}
    return _trained(mask, defense, data, folder / "bare", identity, seed, report)


def _trained(
    mask: Mask,
    objective: Trainable,
    data: Dataset,
    folder: Path,
    identity: dict[str, Any],
    seed: int,
    report: Callable[[str], None],
) -> nn.Module:
    identity |= {"seed": seed, "data": data.name}
    for step in fit(objective, data, folder, recipe=mask.recipe, seed=seed,
                    device=torch.device("cpu"), identity=identity):  # fmt: skip
        if step.step % 100 == 0:
            report(f"{folder.name}: training, step {step.step} of {step.steps}, {step.loss:.3f}")
    net = assemble(cast(Network, objective), data)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval().requires_grad_(False)
