"""The reference AutoAttack (pyautoattack) on some points, here or in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from torch import nn

from benchmarks.nets import load_subject
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.search.pass_counter import PassCounter

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass
class Side:
    """What one implementation found on some points, and what it cost."""

    standing: list[bool]
    forwards: int
    backwards: int
    seconds: float


def reference(
    model: nn.Module, data: Dataset, threat: Threat, device: torch.device, seed: int, batch: int
) -> Side:
    """Run pyautoattack's standard evaluation on all of `data`."""
    from pyautoattack import AutoAttack

    x, y = (tensor.to(device) for tensor in data.fetch(np.arange(len(data))))
    counted = PassCounter(model)
    attack = AutoAttack(counted, norm=_NORMS[threat.norm], eps=threat.eps, seed=seed, device=device)
    clock = time.perf_counter()
    found, _ = attack.run_standard_evaluation(x, y, batch_size=batch)
    seconds = time.perf_counter() - clock
    with torch.no_grad():
        standing = torch.cat([model(part).argmax(1) for part in found.split(batch)]) == y
    return Side(standing.tolist(), counted.forwards, counted.backwards, seconds)


@contextmanager
def apart(name: str, data: Dataset, threat: Threat) -> Iterator[ProcessPoolExecutor]:
    """Open a process for the reference that loads the model itself, and wait until it has."""
    given = (name, data, threat, torch.get_num_threads())
    with ProcessPoolExecutor(1, get_context("spawn"), _hold, given) as pool:
        pool.submit(len, _held).result()
        yield pool


_held: list[nn.Module] = []  # the model, in the process of the reference


def _hold(name: str, data: Dataset, threat: Threat, threads: int) -> None:
    torch.set_num_threads(threads)
    _held.append(load_subject(name, data, threat).model)


def there(data: Dataset, threat: Threat, device: torch.device, seed: int, batch: int) -> Side:
    """Run `reference` in the process that `apart` opened, on its model."""
    return reference(_held[0].to(device), data, threat, device, seed, batch)
