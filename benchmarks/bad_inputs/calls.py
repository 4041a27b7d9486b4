"""Calls of the Python interface with one argument changed, and files that only Python can make."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import robustkit
from benchmarks.bad_inputs import mutate
from robustkit.evaluation.budget import Budget
from robustkit.models.tuning import Tuning

_MORE: tuple[Callable[[], Any], ...] = (
    lambda: b"fgsm",
    lambda: Path("run"),
    lambda: object,
    lambda: math.sqrt,
    lambda: 1j,
    lambda: Fraction(1, 3),
    lambda: datetime.date(2020, 1, 1),
    lambda: np.int64(1),
    lambda: np.int64(-1),
    lambda: np.uint64(2**63),
    lambda: np.float64(0.1),
    lambda: np.float32("nan"),
    lambda: np.bool_(True),
    lambda: np.array([True, False, True, True]),
    lambda: np.array([[0, 1]]),
    lambda: np.array([0.5]),
    lambda: np.array([], dtype=np.int64),
    lambda: torch.tensor([0, 1]),
    lambda: torch.tensor([True, False, True, True]),
    lambda: torch.tensor(1),
    lambda: torch.device("cpu"),
    lambda: torch.device("meta"),
    lambda: torch.float16,
    lambda: range(2),
    lambda: {0, 1},
    lambda: iter([0, 1]),
    lambda: [0, 0],
    lambda: [-1],
    lambda: [99],
    lambda: ["x"],
    lambda: [True],
    lambda: [1.5],
    lambda: [None],
    lambda: ["fgsm", "fgsm"],
    lambda: [b"fgsm"],
    lambda: ["fgsm", 1],
    lambda: {"x": float("nan")},
    lambda: {1: {2}},
    lambda: Budget(1.0, 1),
    lambda: Tuning("x"),  # type: ignore[arg-type]
    lambda: Tuning(None, None, None),  # type: ignore[arg-type]
    lambda: nn.Linear(1, 1),
    lambda: nn.Sequential,
    lambda: robustkit.Threat("linf", 0.1),
    lambda: (torch.rand(2, 1, 5, 5), torch.tensor([0, 1])),
    lambda: (torch.rand(2, 1, 5, 5), torch.tensor([0.0, 1.0])),
    lambda: (torch.rand(2, 1, 5, 5) * 2, torch.tensor([0, 1])),
    lambda: (torch.rand(0, 1, 5, 5), torch.tensor([], dtype=torch.long)),
    lambda: (torch.rand(2, 1, 5, 5), [0, 1]),
    lambda: (None, None),
    lambda: (1, 2, 3),
)


def value(rng: Random) -> Any:
    """Return something that no argument, or only another one, may be."""
    kind = rng.randrange(5)
    if kind < 2:
        return rng.choice(_MORE)()
    return rng.choice(mutate.VALUES) if kind < 4 else rng.choice(mutate.WORDS)


def draw(rng: Random) -> tuple[str, Callable[[], object]]:
    """Return a call in words, and the call."""
    name, function, given = rng.choice(_functions())
    key = rng.choice(sorted(given))
    given[key] = value(rng)
    shown = f"{key}={given[key]!r}"
    return f"{name}({shown if len(shown) < 200 else shown[:200] + '...'})", lambda: function(
        **given
    )


def _functions() -> list[tuple[str, Callable[..., object], dict[str, Any]]]:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(4, 1, 5, 5, generator=draw), torch.tensor([0, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).eval()
    common: dict[str, Any] = {
        "model": model, "name": "model", "data": (x, y), "folder": "mine", "suite": None,
        "attacks": ["fgsm"], "certify": None, "attack_certified": False, "n": None, "seed": 0,
        "device": "cpu", "distributed": None, "batch_size": None, "tuning": Tuning(),
        "fresh": False, "save_adversarial": None, "arguments": None, "notes": (), "watcher": None,
        "progress": None,
    }  # fmt: skip
    whole = {**common, "threat": "linf:0.1", "points": None, "replay": None, "budget": None,
             "minimum_norm": False}  # fmt: skip
    search = robustkit.registry.attacks.build("fgsm")
    ball = robustkit.Threat("linf", 0.1)
    return [
        *[("robustkit.evaluate", robustkit.evaluate, dict(whole)) for _ in range(5)],
        ("robustkit.evaluate_grid", robustkit.evaluate_grid,
         {**common, "threat": "linf", "grid": [0.05, 0.1]}),
        ("Budget", Budget, {"seconds": 1.0, "forwards": None}),
        ("robustkit.Threat", robustkit.Threat, {"norm": "linf", "eps": 0.1}),
        ("robustkit.Threat.parse", robustkit.Threat.parse, {"text": "linf:0.1"}),
        ("robustkit.open_dataset", robustkit.open_dataset,
         {"text": "npz:data.npz", "root": None, "split": "test", "download": False}),
        ("robustkit.load_model", robustkit.load_model,
         {"text": "model.py:make", "data": robustkit.open_dataset("npz:data.npz"), "weights": None,
          "mean": None, "std": None}),
        ("robustkit.attack", robustkit.attack,
         {"seed": 0, "slots": 8, "threat": ball, "model": model, "x": x, "y": y, "search": search}),
        ("robustkit.adversarial_inputs", robustkit.adversarial_inputs,
         {"folder": "run/model.py-make"}),
    ]  # fmt: skip


def save_arrays(rng: Random, path: Path) -> None:
    """Write an npz of arrays that do not fit in one way: type, shape, range, key, layout."""
    rest = np.random.default_rng(rng.randrange(2**32))
    x, y = rest.random((4, 1, 5, 5), dtype=np.float32), np.array([0, 1, 0, 1])
    kinds = (
        "int32",
        "float16",
        "float64",
        "bool",
        "complex64",
        "U3",
        "datetime64[s]",
        "int8",
        ">f4",
    )
    arrays: dict[str, Any] = {"x": x, "y": y}
    key = rng.choice(("x", "y", "classes", "layout"))
    if key in arrays and rng.randrange(2):
        arrays[key] = (arrays[key] * 100).astype(rng.choice(kinds))
    elif key in arrays:
        arrays[key] = rng.choice((
            arrays[key][..., None], arrays[key][:0], arrays[key][0], arrays[key] * 2 - 1,
            arrays[key] * np.nan, arrays[key] + 1e30, arrays[key][:2], np.array(1), np.zeros((0,)),
            np.zeros((4, 0, 5, 5), np.float32), np.zeros((4, 5, 5, 3), np.uint8), arrays[key].T,
        ))  # fmt: skip
    else:
        arrays[key] = rng.choice((0, 1, 2**40, -1, 1.5, "nchw", "x", "", [1, 2], b"nhwc", True))
    if rng.randrange(8) == 0:
        del arrays[rng.choice(sorted(arrays))]
    np.savez(path, **arrays)


def save_weights(rng: Random, path: Path) -> None:
    """Write weights that do not fit in one way: key, shape, type, number."""
    state: dict[str, Any] = {"1.weight": torch.zeros(2, 25), "1.bias": torch.zeros(2)}
    key = rng.choice(sorted(state))
    tensor = state.pop(key)
    odd = (tensor * torch.nan, tensor + torch.inf, tensor.half(), tensor.double(), tensor.long(),
           tensor.bool(), tensor[:1], tensor.reshape(-1), tensor.new_zeros(()), tensor[:0],
           tensor.to(torch.complex64), tensor.bfloat16(), tensor + 1e38)  # fmt: skip
    if rng.randrange(4):
        state[key] = rng.choice(odd)
    if rng.randrange(4) == 0:
        state[rng.choice(("x", "", "module.1.bias", "1.bias."))] = tensor.clone()
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        return
    numbered: dict[Any, Any] = dict(state)
    numbered[1] = 2
    holders: tuple[Any, ...] = (state, {"model": state}, [state], {"x": {"y": state}}, numbered)
    torch.save(rng.choice(holders), path)
