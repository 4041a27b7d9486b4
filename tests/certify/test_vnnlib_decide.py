"""Answers of `verify`: those of an exact solver, with counterexamples that hold as written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from robustkit.certify.graph import Graph
from robustkit.certify.vnnlib.decide import Answer, _Search, by_bounds, decide
from robustkit.certify.vnnlib.instance import Instance, answer, instances
from robustkit.certify.vnnlib.query import Query
from robustkit.certify.vnnlib.read import query_of
from robustkit.certify.vnnlib.specification import Group, Specification
from robustkit.certify.vnnlib.tree import by_tree
from robustkit.cli.program import program
from robustkit.errors import UsageError
from robustkit.models.onnx_network import Onnx

pytest.importorskip("onnx")


def save(network: nn.Module, path: Path, n: int = 2) -> Path:
    """Export by the legacy exporter, which needs no other package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(1, n),), str(path), dynamo=False, opset_version=11)
    return path


def two_layers(path: Path, seed: int, n: int = 2, hidden: int = 6) -> dict[str, NDArray[Any]]:
    """Export v · relu(w x + b) + c with two outputs, and return its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    save(network, path, n)
    held = (part.detach().double().numpy() for part in network.parameters())
    return dict(zip("wbvc", held, strict=True))


def opened(path: Path) -> Onnx:
    return Onnx(path, path.read_bytes())


def text(n: int, k: int, low: float, high: float, assertion: str) -> str:
    declared = [f"(declare-const X_{i} Real)" for i in range(n)]
    declared += [f"(declare-const Y_{j} Real)" for j in range(k)]
    sides = [f"(assert (and (>= X_{i} {low}) (<= X_{i} {high})))" for i in range(n)]
    return "\n".join([*declared, *sides, assertion])


def largest(held: dict[str, Any], row: NDArray[Any], low: float, high: float) -> float:
    """Maximize row · y over the box exactly."""
    return smallest_of(held, row[None], low, high)


def smallest_of(held: dict[str, Any], rows: NDArray[Any], low: float, high: float) -> float:
    """Maximize the smallest of rows · y exactly: a mixed-integer program over signs of ReLUs."""
    w, b, v, c = (held[name] for name in "wbvc")
    hidden, n = w.shape
    big = np.abs(w).sum(1) * max(abs(low), abs(high)) + np.abs(b) + 1
    # Variables: x, r = relu(w x + b), z in {0, 1}, t ≤ rows · (v r + c) for each row;
    # r ≥ w x + b, r ≤ w x + b + M (1 − z), r ≤ M z.
    eye, none, free = np.eye(hidden), np.zeros((hidden, hidden)), np.zeros((hidden, 1))
    above = LinearConstraint(np.hstack([-w, eye, none, free]), b, np.inf)
    on = LinearConstraint(np.hstack([-w, eye, np.diag(big), free]), -np.inf, b + big)
    off = LinearConstraint(np.hstack([0 * w, eye, -np.diag(big), free]), -np.inf, 0)
    met = LinearConstraint(
        np.hstack([np.zeros((len(rows), n)), -rows @ v, 0 * rows @ v, np.ones((len(rows), 1))]),
        -np.inf,
        rows @ c,
    )
    found = milp(
        -np.eye(n + 2 * hidden + 1)[-1],
        constraints=[above, on, off, met],
        bounds=Bounds(
            np.concatenate([np.full(n, low), np.zeros(2 * hidden), [-np.inf]]),
            np.concatenate([np.full(n, high), np.full(hidden, np.inf), np.ones(hidden), [np.inf]]),
        ),
        integrality=np.concatenate([np.zeros(n + hidden), np.ones(hidden), [0]]),
    )
    return float(-found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_an_exact_solver(seed: int, tmp_path: Path) -> None:
    held = two_layers(tmp_path / "net.onnx", seed)
    runtime = opened(tmp_path / "net.onnx")
    network = runtime.network()
    most = largest(held, np.array([1.0, -1.0]), -0.5, 0.75)
    for gap, verdict in ((-0.02, "sat"), (0.02, "unsat")):
        asked = query_of(text(2, 2, -0.5, 0.75, f"(assert (>= (- Y_0 Y_1) {most + gap}))"))
        found = decide(network, runtime, asked, 30.0)
        assert found.verdict == verdict
        if verdict == "sat":
            assert found.x is not None
            assert found.y is not None
            assert asked.disjuncts[0].holds(found.x, found.y)
            x = found.x.astype(np.float32)
            np.testing.assert_array_equal(runtime.answer(x), found.y.astype(np.float32))


def check(path: Path, assertion: str, seconds: float = 20.0, n: int = 2, k: int = 2) -> Answer:
    runtime = opened(path)
    asked = query_of(text(n, k, 0.0, 1.0, assertion))
    return decide(runtime.network(), runtime, asked, seconds)


class Identity(nn.Module):
    """y = x, by way of relu(x) − relu(−x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - torch.relu(-x)


class SteepElu(nn.Module):
    """No bounds are known for it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.elu(x, 3.0)


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    return save(Identity(), tmp_path / "id.onnx")


@pytest.mark.parametrize(
    ("assertion", "verdict"),
    [
        ("(assert (and (>= Y_0 0.9) (<= Y_0 0.1)))", "unsat"),  # each alone can be met
        ("(assert (and (>= Y_0 0.9) (<= Y_1 0.1)))", "sat"),
        ("(assert (>= (+ Y_0 Y_1) 2.0))", "sat"),  # at one corner alone
        ("(assert (> (+ Y_0 Y_1) 2.01))", "unsat"),
        ("(assert (>= (+ X_0 (* -1.0 Y_0)) 0.25))", "unsat"),  # inputs and outputs together
        ("(assert (>= (+ X_0 X_1) 1.5))", "sat"),
        ("(assert (and (>= (+ X_0 X_1) 1.5) (<= (+ Y_0 Y_1) 1.4)))", "unsat"),
        ("(assert (or (>= Y_0 3.0) (and (<= X_0 0.5) (>= Y_1 0.5))))", "sat"),
        ("(assert (and (<= X_0 -1.0) (<= Y_0 5.0)))", "unsat"),  # no point in the box
        ("(assert (<= X_0 0.5))", "sat"),  # nothing about the outputs
    ],
)
def test_constraints_of_every_kind(identity: Path, assertion: str, verdict: str) -> None:
    assert check(identity, assertion).verdict == verdict


def test_a_witness_lies_in_the_box_as_written(identity: Path) -> None:
    """0.6 is no float32: its nearest, 0.60000002384, lies outside."""
    runtime = opened(identity)
    asked = query_of(text(2, 2, 0.1, 0.6, "(assert (>= (+ Y_0 Y_1) 1.2))"))
    found = decide(runtime.network(), runtime, asked, 20.0)
    assert found.x is not None
    assert found.x.tolist() == [0.6, 0.6]
    asked = query_of(text(2, 2, 0.6, 0.6, "(assert (>= Y_0 0.5))"))
    found = decide(runtime.network(), runtime, asked, 20.0)
    assert found.x is not None
    assert found.x.tolist() == [0.6, 0.6]


def test_an_input_without_bounds_is_named(identity: Path) -> None:
    runtime = opened(identity)
    declared = text(2, 2, 0, 1, "").replace("(>= X_1 0) ", "")
    with pytest.raises(UsageError, match="no lower bound of X_1 in one of the alternatives"):
        decide(runtime.network(), runtime, query_of(declared), 5.0)


def test_what_bounds_leave_goes_to_the_next_verifier(tmp_path: Path) -> None:
    """60 inputs: too many to cut the box in halves."""
    save(nn.Sequential(Identity(), nn.Linear(60, 1)), tmp_path / "net.onnx", 60)
    runtime = opened(tmp_path / "net.onnx")
    network = runtime.network()
    asked = query_of(text(60, 1, 0.0, 1.0, "(assert (>= Y_0 100.0))"))
    seen: list[tuple[int, ...]] = []

    def never(spec: Specification, graph: Graph, group: Group, seconds: float) -> bool:
        return False

    def proves(spec: Specification, graph: Graph, group: Group, seconds: float) -> bool:
        seen.append(tuple(spec(torch.zeros(1, 60)).shape))
        assert 0 < seconds <= 20
        assert graph.nodes[0].shape == group.low.shape
        return True

    assert decide(network, runtime, asked, 20.0, refuters=(never,)).verdict == "unknown"
    assert decide(network, runtime, asked, 20.0, refuters=(never, proves)).verdict == "unsat"
    assert seen == [(1, 2)]


def test_time_that_ends_is_said(tmp_path: Path) -> None:
    held = two_layers(tmp_path / "net.onnx", 0, n=8, hidden=40)
    most = largest(held, np.array([1.0, 0.0]), 0.0, 1.0)
    assertion = f"(assert (>= Y_0 {most + 1e-4}))"
    found = check(tmp_path / "net.onnx", assertion, 1e-3, n=8)
    assert (found.verdict, found.reason) == ("timeout", "the time was up")


def run(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


class TestCommand:
    @pytest.fixture
    def folder(self, identity: Path) -> Path:
        room = identity.parent
        (room / "a.vnnlib").write_text(text(2, 2, 0, 1, "(assert (>= (+ Y_0 Y_1) 2.0))"))
        (room / "b.vnnlib").write_text(text(2, 2, 0, 1, "(assert (>= Y_0 2.0))"))
        (room / "instances.csv").write_text("id.onnx,a.vnnlib,30\nid.onnx,b.vnnlib,30\n")
        return room

    def test_the_answer_has_the_form_of_the_competition(self, folder: Path) -> None:
        sat = run("verify", folder / "id.onnx", folder / "a.vnnlib", "--out", folder / "r.txt")
        expected = "sat\n((X_0 1.0)\n (X_1 1.0)\n (Y_0 1.0)\n (Y_1 1.0))\n"
        assert (sat.exit_code, sat.stdout) == (0, expected)
        assert (folder / "r.txt").read_text() == expected
        unsat = run("verify", folder / "b.vnnlib", "--network", f"N={folder / 'id.onnx'}")
        assert (unsat.exit_code, unsat.stdout) == (0, "unsat\n")

    def test_a_folder_is_answered_line_by_line(self, folder: Path) -> None:
        found = run("verify", folder, "--out", folder / "results.csv")
        assert found.exit_code == 0
        cells = [line.split(",") for line in found.stdout.splitlines()]
        assert [row[:3] for row in cells] == [
            ["id.onnx", "a.vnnlib", "sat"], ["id.onnx", "b.vnnlib", "unsat"]
        ]  # fmt: skip
        assert (folder / "results.csv").read_text() == found.stdout

    def test_one_instance_that_fails_does_not_end_the_others(self, folder: Path) -> None:
        (folder / "a.vnnlib").write_text("nonsense")
        found = run("verify", folder / "instances.csv")
        assert found.exit_code == 3
        assert [line.split(",")[2] for line in found.stdout.splitlines()] == ["error", "unsat"]

    def test_an_error_is_written_where_the_competition_looks(self, folder: Path) -> None:
        (folder / "a.vnnlib").write_text(text(3, 2, 0, 1, "(assert (>= Y_0 2.0))"))
        found = run("verify", folder / "id.onnx", folder / "a.vnnlib", "--out", folder / "r.txt")
        assert found.exit_code == 2
        assert "expected the 2 inputs of" in found.stderr
        assert (folder / "r.txt").read_text() == "error\n"

    @pytest.mark.parametrize("line", ["id.onnx,a.vnnlib", "id.onnx,a.vnnlib,soon", "x,y,-1"])
    def test_a_list_that_cannot_be_read_names_its_line(self, folder: Path, line: str) -> None:
        (folder / "instances.csv").write_text(f"id.onnx,b.vnnlib,30\n{line}\n")
        with pytest.raises(UsageError, match="line 2: expected network,property,seconds"):
            instances(folder)

    def test_arguments_that_do_not_fit_are_refused(self, folder: Path) -> None:
        net = folder / "id.onnx"
        assert run("verify", net, net, net).exit_code == 2
        assert run("verify", net, net, "--network", f"N={net}").exit_code == 2

    def test_what_it_supports_is_told_in_the_words_of_the_standard(self) -> None:
        assert run("supports", "--vnnlib-versions").stdout == "1.0\n2.0\n"
        assert "Gemm" in run("supports", "--onnx-operators").stdout.splitlines()
        assert run("supports", "--multiple-network-theories").stdout == "SNET\n"
        assert run("supports").exit_code == 2

    def test_a_network_that_bounds_cannot_read_is_unknown_not_proved(self, tmp_path: Path) -> None:
        path = save(SteepElu(), tmp_path / "n.onnx")
        (tmp_path / "p.vnnlib").write_text(text(2, 2, 0, 1, "(assert (>= Y_0 2.0))"))
        _, found = answer(Instance(path, tmp_path / "p.vnnlib", 10.0))
        assert found.verdict == "unknown"
        assert "ELU" in found.reason


@pytest.mark.parametrize("seed", range(3))
def test_branch_and_bound_answers_where_boxes_are_not_halved(seed: int, tmp_path: Path) -> None:
    """60 inputs: bounds alone leave open what a tree over the ReLUs closes, as the solver does."""
    held = two_layers(tmp_path / "net.onnx", seed, n=60, hidden=10)
    runtime = opened(tmp_path / "net.onnx")
    network = runtime.network()
    most = largest(held, np.array([1.0, -1.0]), -0.5, 0.75)
    both = (by_bounds, by_tree)

    def asked(limit: float) -> Query:
        return query_of(text(60, 2, -0.5, 0.75, f"(assert (>= (- Y_0 Y_1) {limit}))"))

    assert decide(network, runtime, asked(most - 0.02), 60.0, refuters=both).verdict != "unsat"
    assert decide(network, runtime, asked(most + 0.02), 60.0).verdict == "unknown"
    assert decide(network, runtime, asked(most + 0.02), 60.0, refuters=both).verdict == "unsat"


@pytest.mark.parametrize("seed", (0, 1))
def test_disjuncts_of_several_constraints_are_branched_on_too(seed: int, tmp_path: Path) -> None:
    """Each constraint can be met, and so can their sum: no single one refutes the disjunct."""
    held = two_layers(tmp_path / "net.onnx", seed, n=60, hidden=8)
    runtime = opened(tmp_path / "net.onnx")
    network = runtime.network()
    rows = np.array([[1.0, -1.0], [-1.0, 1.5], [0.3, 1.0]])
    most = smallest_of(held, rows, -0.5, 0.75)
    assert min(largest(held, row, -0.5, 0.75) for row in rows) > most + 0.1

    def asked(limit: float) -> Query:
        met = " ".join(f"(>= (+ (* {p} Y_0) (* {q} Y_1)) {limit})" for p, q in rows.tolist())
        other = "(and (>= Y_0 1000.0))"  # a disjunct of one constraint beside it
        return query_of(text(60, 2, -0.5, 0.75, f"(assert (or (and {met}) {other}))"))

    both = (by_bounds, by_tree)
    assert decide(network, runtime, asked(most - 0.05), 60.0, refuters=both).verdict != "unsat"
    assert decide(network, runtime, asked(most + 0.05), 60.0, refuters=both).verdict == "unsat"


def test_what_the_tree_finds_is_a_counterexample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no search finds one: it is replayed in the runtime like any other."""
    held = two_layers(tmp_path / "net.onnx", 4, hidden=12)
    most = largest(held, np.array([1.0, 0.0]), -1.0, 1.0)
    onnx = opened(tmp_path / "net.onnx")
    monkeypatch.setattr(_Search, "_attack", lambda *_, **__: None)

    def found(above: float) -> Answer:
        asked = query_of(text(2, 2, -1, 1, f"(assert (>= Y_0 {above:.6f}))"))
        return decide(onnx.network(), onnx, asked, 120.0, refuters=(by_bounds, by_tree))

    answer = found(most - 0.02)
    assert answer.verdict == "sat"
    assert answer.x is not None and answer.y is not None
    assert np.abs(answer.x).max() <= 1
    assert answer.y[0] >= most - 0.02
    assert found(most + 0.02).verdict == "unsat"
