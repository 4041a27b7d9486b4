"""The pytest plugin, in test runs of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.integrations.testing import assert_not_regressed, assert_robust
from robustkit.registry import load_packs

load_packs()  # pytester forgets what is imported in a test of its own; the registry does not
pytest_plugins = ["pytester"]
CONFTEST = """
import warnings
import pytest, torch
from torch import nn

def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    with torch.no_grad():
        model[1].weight.mul_(5)
    return model
"""
TESTS = """
import pytest
from conftest import net

LINE = dict(threat="linf:0.05", data="npz:data.npz", attacks=["apgd(steps=5)"])

@pytest.mark.robustness(at_least=0.01, **LINE)
def test_robust(robustness):
    record = robustness(net())
    assert record.robust > 0.01

@pytest.mark.robustness(at_least=0.999, **LINE)
def test_too_much(robustness):
    robustness(net(), name="mine")

@pytest.mark.robustness(at_least=0.5, **LINE)
def test_without_the_fixture():
    pass

@pytest.mark.robustness(at_least=0.5, **LINE)
def test_that_forgets_to_call(robustness):
    pass

@pytest.mark.robustness(at_lest=0.5)
def test_with_a_slip(robustness):
    robustness(net())

def test_gate(robustness):
    verdict = robustness.assert_not_regressed(net(), "base", tolerance=0.2)
    assert verdict.answer == "pass"

def test_gate_fails(robustness):
    model = net()
    model[1].weight.data.neg_()
    robustness.assert_not_regressed(model, "base", tolerance=0.2, name="worse")
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with points, a baseline and tests."""
    x = np.random.default_rng(0).random((60, 1, 6, 6), dtype=np.float32)
    scope: dict[str, object] = {}
    exec(CONFTEST, scope)
    net = scope["net"]()  # type: ignore[operator]
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(pytester.path / "data.npz", x=x, y=y)
    from robustkit.data.open import open_dataset

    monkeypatch.chdir(pytester.path)
    evaluate(
        net,
        name="net",
        data=open_dataset("npz:data.npz"),
        threat=Threat.parse("linf:0.05"),
        attacks=["apgd(steps=5)"],
        folder=pytester.path / "base",
        device="cpu",
        arguments={"data": "npz:data.npz"},
    )
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    return pytester


def judged(result: pytest.RunResult) -> None:
    result.assert_outcomes(passed=3, failed=2, errors=3)
    text = result.stdout.str()
    for told in (
        "mine is robust on ",
        "less than the 0.999 that is asked for. Weakest classes: ",
        "is marked robustness but does not take the fixture `robustness`",
        "is marked robustness but evaluated nothing: call the fixture",
        "Unknown option of robustness 'at_lest'. Did you mean 'at_least'?",
        "worse has regressed against net (npz:data.npz, linf:0.05",
    ):
        assert told in text, f"{told!r} is missing in:\n{text}"
    assert "95% interval" in text
    assert "_pytest" not in text


@pytest.mark.slow
def test_marker_fixture_and_gate(project: pytest.Pytester) -> None:
    judged(project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist"))


@pytest.mark.slow
def test_with_xdist(project: pytest.Pytester) -> None:
    judged(project.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2"))


def test_the_marker_is_declared(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["*@pytest.mark.robustness(threat, at_least, suite, data, ...)*"])


def test_the_plugin_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\n\ndef test_light():\n"
        "    assert not {'torch', 'pandas', 'pydantic'} & set(sys.modules)\n"
    )
    pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-p", "no:hypothesispytest"
    ).assert_outcomes(passed=1)


class TestAssertions:
    def test_they_stop_when_the_answer_is_certain(self, nearest: nn.Module, blobs: Dataset) -> None:
        given = {"data": blobs, "threat": "linf:0.06", "attacks": ["apgd(steps=5)"]}
        assert assert_robust(nearest, at_least=0.05, device="cpu", **given).n < 80  # type: ignore[arg-type]
        assert assert_robust(nearest, at_least=0.0, device="cpu", **given).n == 16  # type: ignore[arg-type]

    def test_the_limit_is_kept_to_the_point(
        self, nearest: nn.Module, blobs: Dataset, tmp_path: Path
    ) -> None:
        given = {"data": blobs, "threat": "linf:0.06", "attacks": ["apgd(steps=5)"]}
        whole = evaluate(
            nearest, name="n", data=blobs, threat=Threat.parse("linf:0.06"),
            attacks=["apgd(steps=5)"], folder=tmp_path, device="cpu",
        )  # fmt: skip
        assert_robust(nearest, at_least=whole.robust, device="cpu", **given)  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="less than the"):
            assert_robust(nearest, at_least=whole.robust + 1 / 80, device="cpu", **given)  # type: ignore[arg-type]

    def test_an_open_answer_is_no_pass(self, nearest: nn.Module, blobs: Dataset) -> None:
        from robustkit.integrations.testing import _Threshold

        watch = _Threshold(at_least=0.5, total=80)
        assert watch.answer(np.array([1.0, 0.0])) is None
        assert watch.answer(np.ones(40)) is True
        assert watch.answer(np.zeros(41)) is False

    def test_nonsense_is_refused(self, nearest: nn.Module, blobs: Dataset, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="from 0 to 1, got 45"):
            assert_robust(nearest, at_least=45, data=blobs)
        with pytest.raises(UsageError, match="there is no baseline"):
            assert_not_regressed(nearest, tmp_path / "gone")
        with pytest.raises(UsageError, match="'fail' or 'pass', got 'shrug'"):
            assert_not_regressed(nearest, tmp_path, undecided="shrug")
