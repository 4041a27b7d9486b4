"""Errors of models that predict a number, held against the closed form of a linear one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkit
from robustkit import registry
from robustkit.cli.program import program
from robustkit.core.threat import Norm, Threat
from robustkit.data.arrays import from_arrays
from robustkit.errors import UsageError
from robustkit.evaluation.worst_errors import worst_errors
from robustkit.models.regression import for_targets

DRAW = np.random.default_rng(0)
X, WEIGHT = DRAW.uniform(0.4, 0.6, size=(30, 8)), DRAW.normal(size=8)
Y = X @ WEIGHT + 0.1 * DRAW.normal(size=30) + 1
DATA = from_arrays("rows", X, Y)


def linear() -> nn.Linear:
    net = nn.Linear(8, 1).requires_grad_(False)
    net.weight[0], net.bias[0] = torch.tensor(WEIGHT), 1
    return net


class Flat(nn.Module):
    """The same model, which answers [b]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.net(x)
        return answer.flatten()


def worst(norm: Norm, eps: float) -> Any:
    """Largest error of each point in the ball: what it is, and eps times the dual norm."""
    dual = {"linf": 1, "l2": 2}[norm]
    return np.abs(X @ WEIGHT + 1 - Y) + eps * np.linalg.norm(WEIGHT, dual)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.03)])
@pytest.mark.parametrize("relative", [False, True])
def test_verdict_and_certificate_are_those_of_the_worst_error(
    norm: Norm, eps: float, relative: bool, tmp_path: Path
) -> None:
    error = worst(norm, eps) / (np.abs(Y) if relative else 1)
    above = float(np.sort(error)[14:16].mean())
    record = robustkit.evaluate(
        linear(), DATA, f"{norm}:{eps}", attacks=["apgd(steps=10)"], certify="crown", device="cpu",
        criterion=f"{'relative_' if relative else ''}error>{above}", folder=tmp_path,
    )  # fmt: skip
    clean = np.abs(X @ WEIGHT + 1 - Y) / (np.abs(Y) if relative else 1)
    status = np.array(record.points.status)
    assert list(status == "misclassified") == list(clean > above)
    assert list(status == "certified") == list(error < above)
    assert list(status == "broken") == list((clean <= above) & (error > above))
    assert not record.flags


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_worst_error_lies_in_its_bracket(norm: Norm) -> None:
    found, proved = worst_errors(linear(), DATA, Threat(norm, 0.02))
    exact = worst(norm, 0.02)
    assert np.allclose(found, exact, atol=1e-5)
    assert np.allclose(proved, exact, atol=1e-4)
    assert (proved >= found).all()


def test_a_network_is_bracketed_and_branch_and_bound_goes_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 1)).requires_grad_(False)
    data = from_arrays("rows", X[:4], net(torch.tensor(X[:4]).float()).flatten().double().numpy())
    found, proved = worst_errors(net, data, Threat("linf", 0.1))
    assert (found > 0).all()
    assert (proved >= found).all()
    above = float(np.median(proved + found) / 2)
    record = robustkit.evaluate(
        net, data, "linf:0.1", criterion=f"error>{above}", attacks=["apgd(steps=10)"],
        certify="complete(nodes=200)", device="cpu", folder=tmp_path,
    )  # fmt: skip
    status = np.array(record.points.status)
    assert set(status) <= {"broken", "certified"}
    assert (status[found > above * 1.001] == "broken").all()
    assert (status[proved < above * 0.999] == "certified").all()


def test_one_number_a_point_may_be_an_axis_or_none(tmp_path: Path) -> None:
    asked: Any = {"criterion": "error>0.15", "attacks": ["apgd(steps=5)"], "device": "cpu"}
    one, two = (
        robustkit.evaluate(net, DATA, "linf:0.01", folder=tmp_path / name, **asked)
        for name, net in (("axis", linear()), ("none", Flat()))
    )
    assert [s == "broken" for s in one.points.status] == [s == "broken" for s in two.points.status]
    assert one.clean == two.clean


def test_the_command_line_takes_it_and_the_record_verifies(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X, y=Y)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Linear(8, 1)\n"
    )
    out = tmp_path / "out"
    asked = ["evaluate", f"{tmp_path}/net.py:make", "--data", f"npz:{tmp_path}/x.npz", "--quiet",
             "--threat", "linf:0.02", "--device", "cpu", "--attack", "apgd(steps=5)",
             "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(program, [*asked, "--criterion", "error>2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = out.glob("*/record.json")
    words = ["verify-record", str(path), "--model", f"{tmp_path}/net.py:make"]
    checked = CliRunner().invoke(program, words, catch_exceptions=False)
    assert checked.exit_code == 0, checked.output
    plain = CliRunner().invoke(program, [*asked, "--fresh"])
    assert plain.exit_code == 2


@pytest.mark.parametrize(
    ("y", "criterion", "told"),
    [
        (Y, None, "the y of this data are floats, and the criterion untargeted is of classes"),
        (Y, "top2", "the criterion top2 is of classes"),
        (np.arange(30) % 2, "error>1", "the labels of this data are classes: store y as floats"),
        (Y, "error>0", "a tolerance above 0, such as error>0.5, got error>0"),
        (Y, "error<1", "a tolerance above 0"),
        (Y - Y[3], "relative_error>0.1", "a target is 0, of which no error is a share"),
    ],
)
def test_what_does_not_fit_is_refused(y: Any, criterion: str | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        robustkit.evaluate(linear(), from_arrays("r", X, y), "linf:0.1", criterion=criterion)


def test_targets_that_no_model_can_be_judged_at_are_refused() -> None:
    with pytest.raises(UsageError, match="y as finite numbers, got nan at point 1"):
        from_arrays("r", X[:2], np.array([1.0, np.nan]))
    with pytest.raises(UsageError, match="at most 2,000 different targets, got 2,001"):
        from_arrays("r", np.zeros((2001, 1)), np.arange(2001.0))
    assert from_arrays("r", X[:2], np.array([1.0, 1.0])).classes == 2


def test_a_model_that_is_judged_by_targets_is_not_judged_twice() -> None:
    x = np.linspace(0, 1, 8, dtype=np.float32)[:, None]
    data, criterion = from_arrays("x", x, x[:, 0]), registry.read_criterion("error>0.5")
    once = for_targets(nn.Linear(1, 1), data, criterion)
    twice = for_targets(once, data, criterion)
    assert twice.model is once.model
    assert torch.equal(twice(torch.from_numpy(x)), once(torch.from_numpy(x)))
