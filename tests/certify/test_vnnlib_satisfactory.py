"""The public conformance tests of VNN-LIB solvers, where the package vnnlib-satisfactory is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustkit.certify.vnnlib.instance import Instance, answer
from robustkit.errors import UsageError

generator: Any = pytest.importorskip("vnntest.core.generator")
cases: Any = pytest.importorskip("vnntest.models.test_case")
# Theories that `robustkit supports` does not claim.
_OTHERS = {"arithmetic_poly", "hidden", "multi_io", "network_equal", "network_isomorphic",
           "network_multiple"}  # fmt: skip


@pytest.mark.slow
def test_no_answer_is_wrong_and_most_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(".vnnlib-satisfactory") / "tests"
    right, wrong, unknown, refused = (list[str]() for _ in range(4))
    for entry in generator.generate_all_tests(suite="full", node_type=None):
        case = cases.TestCase.from_manifest_entry(entry, folder / entry["category"])
        if case.category in _OTHERS:
            continue
        try:
            _, found = answer(Instance(case.onnx_path, case.vnnlib_path, 10.0))
        except UsageError:
            refused.append(case.id)
            continue
        if found.verdict in ("sat", "unsat"):
            (right if found.verdict == case.expected.value else wrong).append(case.id)
        else:
            unknown.append(case.id)
    assert wrong == []
    assert len(right) >= 110, (unknown, refused)
