"""The reference AutoAttack (pyautoattack) on some points, here or in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.nets import resnet18
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.models.load import Subject
from robustkit.search.pass_counter import PassCounter

Points: TypeAlias = tuple[Tensor, Tensor]
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass
class Side:
    """What one implementation found on some points, and what it cost."""

    standing: list[bool]
    forwards: int
    backwards: int
    seconds: float


def reference(
    model: nn.Module, points: Points, threat: Threat, device: torch.device, seed: int, batch: int
) -> Side:
    """Run pyautoattack's standard evaluation on `points`."""
    from pyautoattack import AutoAttack

    x, y = (tensor.to(device) for tensor in points)
    counted = PassCounter(model)
    attack = AutoAttack(counted, norm=_NORMS[threat.norm], eps=threat.eps, seed=seed, device=device)
    clock = time.perf_counter()
    found, _ = attack.run_standard_evaluation(x, y, batch_size=batch)
    seconds = time.perf_counter() - clock
    with torch.no_grad():
        standing = torch.cat([model(part).argmax(1) for part in found.split(batch)]) == y
    return Side(standing.tolist(), counted.forwards, counted.backwards, seconds)


def fetched(data: Dataset) -> Points:
    """Return all of `data` as tensors."""
    return data.fetch(range(len(data)))


@contextmanager
def apart(subject: Subject) -> Iterator[ProcessPoolExecutor]:
    """Open a process for the reference that holds the model, and wait until it does."""
    # The class of this one lives in a file without a module name, so that it does not travel.
    model = None if subject.name == "resnet18" else subject.model
    given = (model, torch.get_num_threads())
    with ProcessPoolExecutor(1, get_context("spawn"), _hold, given) as pool:
        pool.submit(len, _held).result()
        yield pool


_held: list[nn.Module] = []  # the model, in the process of the reference


def _hold(model: nn.Module | None, threads: int) -> None:
    torch.set_num_threads(threads)
    _held.append(resnet18().model if model is None else model)


def there(points: Points, threat: Threat, device: torch.device, seed: int, batch: int) -> Side:
    """Run `reference` in the process that `apart` opened, on its model."""
    return reference(_held[0].to(device), points, threat, device, seed, batch)
