"""Answers of `robustkit verify` beside those of an exact solver and of other verifiers.

    python -m benchmarks.verifiers --n 50
    python -m benchmarks.verifiers --n 50 --solver "marabou=ENV/bin/python -m maraboupy {network} \
        {property}" --solver "vibecheck=ENV/bin/vibecheck --net {network} --spec {property}"

The instances are small random ReLU networks; the property asks for an output just above
or below its maximum, which a mixed-integer program (HiGHS, in SciPy) finds exactly. A solver is a
command whose last word of the kind is sat, unsat, unknown or timeout; it is installed in an
environment of its own. Exits with 1 when an answer of ours is wrong.
"""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from robustkit.certify.vnnlib.instance import Instance, answer

GAP = 0.01  # between the maximum and what is asked for
_ANSWER = re.compile(r"\b(unsat|sat|unknown|timeout|error)\b", re.IGNORECASE)


def network(seed: int, inputs: int, hidden: int) -> nn.Sequential:
    """Return two layers of ReLUs and one output, at random."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, 1),
        )  # fmt: skip


def largest(model: nn.Sequential) -> float:
    """Maximize the output over [0, 1]^n exactly: one binary variable for each ReLU."""
    parts = [p.detach().double().numpy() for p in model.parameters()]
    layers = list(zip(parts[::2], parts[1::2], strict=True))
    n, sizes = layers[0][0].shape[1], [len(b) for _, b in layers[:-1]]
    total = n + 2 * sum(sizes)  # inputs, then values and signs of every layer
    low, high = np.zeros(n), np.ones(n)
    rules, before, begin = list[Any](), 0, n
    upper = np.concatenate([high, np.zeros(total - n)])
    whole = np.zeros(total)
    for (weight, bias), size in zip(layers, sizes, strict=False):
        center, radius = weight @ (low + high) / 2 + bias, np.abs(weight) @ (high - low) / 2
        least, most = np.minimum(center - radius, 0), np.maximum(center + radius, 0)
        table = np.zeros((size, total))
        table[:, before : before + weight.shape[1]] = -weight
        table[:, begin : begin + size] = np.eye(size)
        rules.append(LinearConstraint(table.copy(), bias, np.inf))
        table[:, begin + size : begin + 2 * size] = np.diag(-least)
        rules.append(LinearConstraint(table.copy(), -np.inf, bias - least))
        off = np.zeros((size, total))
        off[:, begin : begin + size] = np.eye(size)
        off[:, begin + size : begin + 2 * size] = -np.diag(most)
        rules.append(LinearConstraint(off, -np.inf, 0))
        upper[begin : begin + size], upper[begin + size : begin + 2 * size] = most, 1
        whole[begin + size : begin + 2 * size] = 1
        low, high, before, begin = np.zeros(size), most, begin, begin + 2 * size
    weight, bias = layers[-1]
    cost = np.zeros(total)
    cost[before : before + weight.shape[1]] = -weight[0]
    found = milp(cost, constraints=rules, bounds=Bounds(np.zeros(total), upper), integrality=whole)
    return float(-found.fun + bias[0])


def write(
    folder: Path, seed: int, inputs: int, hidden: int, seconds: float
) -> tuple[Instance, str]:
    """Write one instance; return it with the right answer."""
    model, net = network(seed, inputs, hidden), folder / f"{seed}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, inputs),)
        torch.onnx.export(model, example, net, dynamo=False, opset_version=13)
    truth = "sat" if seed % 2 else "unsat"
    asked = largest(model) + (-GAP if truth == "sat" else GAP)
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += ["(declare-const Y_0 Real)"]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} 1.0))" for i in range(inputs)]
    lines += [f"(assert (>= Y_0 {asked:.9f}))"]
    text = folder / f"{seed}.vnnlib"
    text.write_text("\n".join(lines) + "\n")
    return Instance(net, text, seconds), truth


def asked(command: str, one: Instance) -> str:
    """Ask another verifier; what is no answer is an error."""
    words = [
        part.format(network=one.network, property=one.property) for part in shlex.split(command)
    ]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=one.seconds)
    except subprocess.TimeoutExpired:
        return "timeout"
    said = _ANSWER.findall(ran.stdout)
    return str(said[-1]).lower() if said else "error"


@click.command()
@click.option("--n", default=50, show_default=True, help="Instances.")
@click.option("--inputs", default=3, show_default=True)
@click.option("--hidden", default=8, show_default=True, help="ReLUs of each of two layers.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for an instance.")
@click.option("--solver", "solvers", multiple=True, metavar="NAME=COMMAND", help="Repeatable.")
def main(n: int, inputs: int, hidden: int, timeout: float, solvers: tuple[str, ...]) -> None:
    """Print right, wrong and missing answers, and the median seconds."""
    commands = dict(text.split("=", 1) for text in solvers)
    tallies: dict[str, list[tuple[str, str, float]]] = {
        "robustkit": [],
        **{k: [] for k in commands},
    }
    with tempfile.TemporaryDirectory() as place:
        for seed in range(n):
            one, truth = write(Path(place), seed, inputs, hidden, timeout)
            for name, said in tallies.items():
                begun = time.monotonic()
                told = asked(commands[name], one) if name in commands else answer(one)[1].verdict
                said.append((truth, told, time.monotonic() - begun))
    table = Table("verifier", "right", "wrong", "no answer", "median seconds")
    wrong = {}
    for name, said in tallies.items():
        right = sum(truth == told for truth, told, _ in said)
        wrong[name] = sum(truth != told and told in ("sat", "unsat") for truth, told, _ in said)
        middle = statistics.median(seconds for _, _, seconds in said)
        missing = len(said) - right - wrong[name]
        table.add_row(name, str(right), str(wrong[name]), str(missing), f"{middle:.2f}")
    Console().print(table)
    sys.exit(1 if wrong["robustkit"] else 0)


if __name__ == "__main__":
    main()
