"""The comparison of verifiers tells right answers from wrong ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.verifiers import largest, main, network

pytest.importorskip("onnx")


@pytest.mark.parametrize("seed", range(3))
def test_the_maximum_is_exact(seed: int) -> None:
    """Beside a fine grid, which never lies above it and comes close."""
    model = network(seed, 2, 5)
    side = np.linspace(0, 1, 201)
    points = torch.tensor(list(itertools.product(side, side)), dtype=torch.float32)
    with torch.no_grad():
        seen = float(model(points).max())
    assert seen - 1e-5 <= largest(model) <= seen + 0.02


def test_a_solver_that_says_sat_to_all_is_wrong_half_of_the_time() -> None:
    options = ["--n", "4", "--inputs", "2", "--hidden", "4", "--solver", "liar=echo sat {network}"]
    found = CliRunner().invoke(main, options)
    assert found.exit_code == 0, found.output
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in found.output.splitlines()
            if "│" in line}  # fmt: skip
    assert [cell.strip() for cell in rows["robustkit"]] == ["4", "0", "0"]
    assert [cell.strip() for cell in rows["liar"]] == ["2", "2", "0"]
