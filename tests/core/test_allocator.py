"""Memory that passes have freed stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")

_PROGRAM = """
import ctypes, resource, statistics, torch
from robustkit.models.tuning import AUTOMATIC, tune

# Freed memory goes back to the system, as it does by default wherever it ends the heap: what
# lies there is otherwise luck. -3: M_MMAP_THRESHOLD.
assert ctypes.CDLL(None).mallopt(-3, 128 * 1024) == 1

torch.set_num_threads(1)
layers = [torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 32 * 32, 2))
model = model.eval().requires_grad_(False)
x = torch.rand(64, 8, 32, 32)

def faults():
    with torch.no_grad():
        for _ in range(4):
            model(x)
        counts = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
        for _ in range(11):
            model(x)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    # The kernel may split a huge page at any time: 512 faults in one pass.
    return statistics.median(b - a for a, b in zip(counts, counts[1:]))

print(faults())
tune(model, x[:2], AUTOMATIC)
print(faults())
"""


def faults(**environment: Any) -> list[float]:
    """Return how many pages a forward pass of 6 MB of activations faults in, in a new process.

    Before a model is tuned for the first time, and after it.
    """
    program = [sys.executable, "-c", _PROGRAM]
    told = subprocess.run(
        program, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return list(map(float, told.stdout.split()))


def test_a_pass_reuses_the_memory_of_the_one_before() -> None:
    """A page has 4,096 bytes: a few hundred pages a pass without it."""
    before, after = faults()
    assert before > 200
    assert after < 20


def test_an_allocator_that_the_user_set_up_stays_as_it_is() -> None:
    assert min(faults(MALLOC_TRIM_THRESHOLD_="1000000")) > 200
