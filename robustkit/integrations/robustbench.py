"""RobustBench's `benchmark`, run by robustkit: the same signature, with verified results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkit.core.text import slug
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError, unknown
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.identity import RUNS

_NORMS = {"Linf": "linf", "L2": "l2"}
_EPS = {"Linf": 8 / 255, "L2": 0.5}  # of RobustBench's CIFAR leaderboards


def benchmark(
    model: nn.Module | str,
    n_examples: int = 10_000,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: Path | str = "./data",
    corruptions_data_dir: Path | str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 32,
    eps: float | None = None,
    log_path: Path | str | None = None,
    preprocessing: str | Callable[..., Any] | None = None,
    aa_state_path: Path | str | None = None,
) -> tuple[float, float]:
    """Return the clean and the robust accuracy; takes the place of `robustbench.eval.benchmark`.

        from robustkit.integrations.robustbench import benchmark

        clean, robust = benchmark(model, dataset="cifar10", threat_model="Linf", eps=8 / 255)

    The suite is `standard`, AutoAttack's; the points are the first `n_examples` of the test data,
    as there. The record, with intervals, flags and every verdict, lies in robustkit-runs.

    Differs from RobustBench: weights are never downloaded; `eps` may be left out on CIFAR (8/255,
    0.5); `dataset` is any data of robustkit's ("npz:PATH", "folder:PATH"), whose own preprocessing
    holds; nothing is printed.

    Args:
        model: images [b, c, h, w] in [0, 1] to logits [b, k], or a name of `robustkit evaluate`.
        dataset, threat_model: RobustBench's names or its enums.
        to_disk: as there, needs `model_name`; the record then lies in robustkit-runs/MODEL_NAME.
        data_dir: folder that holds data sets.
        device: by default a GPU where there is one.
        log_path: file to which the two numbers are added.
        aa_state_path: folder in which the run resumes.

    Raises:
        UsageError: for data or a threat model that is not known, corruptions, and ImageNet's
            preprocessing.
        RobustkitError: when the run cannot finish.
    """
    norm = str(getattr(threat_model, "value", threat_model))
    if norm not in _NORMS:
        raise unknown("threat model", norm, tuple(_NORMS))
    name = str(getattr(dataset, "value", dataset))
    if preprocessing is not None or corruptions_data_dir is not None:
        raise UsageError(
            "preprocessing and corruptions_data_dir are RobustBench's: expected images as they are "
            "attacked, such as dataset='folder:PATH'."
        )
    if eps is None and not name.startswith("cifar"):
        raise UsageError(f"eps: expected a number for {name}: only CIFAR has a usual one here.")
    if to_disk and not model_name:
        raise UsageError("model_name: expected a name for the folder of the record, got none.")
    data = open_dataset(name, root=Path(data_dir), split="test")
    record = evaluate(
        model, data, f"{_NORMS[norm]}:{_EPS[norm] if eps is None else eps}",
        name=model_name, suite="standard", points=range(min(n_examples, len(data))),
        device="auto" if device is None else str(device), batch_size=batch_size,
        folder=aa_state_path or (RUNS / slug(str(model_name)) if to_disk else None),
    )  # fmt: skip
    if log_path is not None:
        with Path(log_path).open("a", encoding="utf-8") as log:
            log.write(f"clean accuracy: {record.clean:.2%}\nrobust accuracy: {record.robust:.2%}\n")
    return record.clean, record.robust
