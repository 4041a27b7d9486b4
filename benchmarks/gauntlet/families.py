"""Every wrapper, by name; importing this fills the list."""

from __future__ import annotations

from benchmarks.gauntlet import (
    chance,
    computation,
    gradients,
    inputs,
    outputs,
    served,
    strangers,
    strangers_nets,
)
from benchmarks.gauntlet.wrapper import ENTRIES

__all__ = [
    "ENTRIES",
    "chance",
    "computation",
    "gradients",
    "inputs",
    "outputs",
    "served",
    "strangers",
    "strangers_nets",
]
