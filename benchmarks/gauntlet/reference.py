"""pyautoattack's verdict on a wrapper, kept as JSON and an npz of what it found."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from benchmarks.gauntlet.setting import Setting
from benchmarks.gauntlet.truth import points_array
from robustkit.core import json_files
from robustkit.core.types import Images

Version = Literal["standard", "rand"]
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def judge(
    setting: Setting, model: nn.Module, place: str, points: list[int], version: Version
) -> None:
    """Let pyautoattack judge `points`, unless it has: which of them it claims to stand.

    An error of its own is noted, as its verdict. A run that is cut off starts again.
    """
    folder = setting.folder / place
    if kept(folder, version, points):
        return
    x, y = setting.data.fetch(points_array(points))
    clock, standing, error = time.perf_counter(), list[bool](), ""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found, standing = _run(setting, model, x, y, version)
        np.savez_compressed(folder / f"{version}.npz", found=found.numpy())
    except (RuntimeError, ValueError, IndexError, AssertionError, ZeroDivisionError) as problem:
        error = f"{type(problem).__name__}: {problem}"[:300]
    seconds = round(time.perf_counter() - clock, 1)
    report = {"points": points, "standing": standing, "error": error, "seconds": seconds}
    json_files.write(report, folder / f"{version}.json")


def kept(folder: Path, version: Version, points: list[int]) -> dict[str, Any]:
    """Return what a finished run on these points reported; empty when there is none."""
    path = folder / f"{version}.json"
    raw: dict[str, Any] = json_files.read(path) if path.exists() else {}
    return raw if raw.get("points") == points else {}


def claims(folder: Path, version: Version, points: list[int]) -> dict[int, Images]:
    """Return the inputs that a finished run calls adversarial."""
    raw = kept(folder, version, points)
    if not raw or not raw["standing"]:
        return {}
    images = torch.from_numpy(np.load(folder / f"{version}.npz")["found"])
    return {p: z for p, ok, z in zip(points, raw["standing"], images, strict=True) if not ok}


def _run(
    setting: Setting, model: nn.Module, x: Images, y: torch.Tensor, version: Version
) -> tuple[Images, list[bool]]:
    from pyautoattack import AutoAttack

    device = setting.device if setting.device != "auto" else "cpu"
    with _silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attack = AutoAttack(model.to(device), norm=_NORMS[setting.threat.norm],
                            eps=setting.threat.eps, seed=setting.seed, device=device,
                            version=version)  # fmt: skip
        torch.manual_seed(setting.seed)
        found, decided = attack.run_standard_evaluation(x.to(device), y.to(device), batch_size=250)
    # Its own last word on a point: the label it saw last, of the clean input or of what it found.
    standing = (decided.cpu() == y).tolist()
    return found.cpu(), standing


@contextmanager
def _silent() -> Iterator[None]:
    logger = logging.getLogger("auto-attack")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
