"""Attacks through other models by name, from the request to the record."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.record.record import Record

MODELS = """
import torch
from torch import nn

def net(seed, classes=3, size=6):
    torch.manual_seed(seed)
    first = nn.Linear(size * size, 12)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(12, classes))

def first(): return net(0)
def second(): return net(SECOND)
def more(): return net(2, classes=4)
def larger(): return net(2, size=7)
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(MODELS.replace("SECOND", "1"))
    return path


@pytest.fixture
def data(models: Path) -> Dataset:
    x = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = _first(x).argmax(1)
    return from_arrays("small", x.numpy(), y.numpy(), classes=3)


def _first(x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 3))
    answer: Tensor = net(x)
    return answer


def run(models: Path, data: Dataset, source: str) -> Record:
    spec = f"mi(surrogate='source:{models}:{source}')"
    with torch.random.fork_rng():
        return robustkit.evaluate(
            f"{models}:first",
            data,
            "linf:0.3",
            attacks=[spec],
            folder=models.parent / "run",
        )


def test_another_model_is_followed_and_the_row_says_so(models: Path, data: Dataset) -> None:
    record = run(models, data, "second")
    assert "broken" in record.points.status
    (flag,) = (flag for flag in record.flags if flag.name == "transfer_only")
    assert "second" in flag.message
    assert not any("white-box" in note for note in record.notes)
    assert run(models, data, "second").points == record.points


def test_the_model_itself_may_be_its_source_and_is_called_white_box(
    models: Path, data: Dataset
) -> None:
    record = run(models, data, "first")
    (note,) = (note for note in record.notes if "white-box" in note)
    assert note.endswith("attacks through it are white-box")
    with torch.random.fork_rng():
        own = robustkit.evaluate(
            f"{models}:first", data, "linf:0.3", attacks=["mi"], folder=models.parent / "own"
        )
    assert own.points.status == record.points.status
    assert "transfer_only" not in {flag.name for flag in own.flags}


def test_a_run_does_not_go_on_with_other_weights_of_its_source(models: Path, data: Dataset) -> None:
    run(models, data, "second")
    models.with_name("nets.py").write_text(MODELS.replace("SECOND", "5"))
    with pytest.raises(UsageError, match="sources"):
        run(models, data, "second")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("more", r"expected a source with 3 classes.*answers \[12, 4\]"),
        ("larger", r"does not take the inputs \[1, 6, 6\] of small"),
        ("absent", "absent"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    source: str, told: str, models: Path, data: Dataset
) -> None:
    with pytest.raises(UsageError, match=told):
        run(models, data, source)


def test_what_an_attack_cannot_do_with_a_source_is_said_before_the_run(
    models: Path, data: Dataset
) -> None:
    with pytest.raises(UsageError, match="residual branches"):
        spec = f"mi(gamma=0.5, surrogate='source:{models}:second')"
        robustkit.evaluate(
            f"{models}:first", data, "linf:0.3", attacks=[spec], folder=models.parent / "run"
        )
    assert not (models.parent / "run").exists()


def test_the_suite_follows_all_its_sources_and_never_the_model() -> None:
    suite = robustkit.registry.suites.build("transfer(source=('a:b.py', trades))")
    listed = suite.attacks(robustkit.Threat("linf", 0.1))
    assert len(listed) == len(set(listed)) == 12
    specs = [robustkit.core.spec.Spec.parse(text) for text in listed]
    assert {dict(s.options)["surrogate"] for s in specs} == {"source:a:b.py", "source:trades"}
