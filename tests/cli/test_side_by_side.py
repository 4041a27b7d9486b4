"""Several models at once: the results of one after the other, whoever fails, dies or is stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from robustkit.cli.evaluate.plan import make
from robustkit.cli.evaluate.request import Request
from robustkit.cli.program import program
from robustkit.core import files
from robustkit.record.record import Record, load

MODELS = """
import multiprocessing, os, time
from pathlib import Path
import torch
from torch import nn

HERE = Path({folder!r})
PASSES = []
IN_WORKER = multiprocessing.parent_process() is not None

class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        if seed is not None:
            torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x):
        if IN_WORKER:
            (HERE / "in-a-worker").touch()
        return self.net(x)

def net():
    return Net(0)

def other():
    return Net(1)

def drawn():
    return Net(None)

class Ends(Net):
    def __init__(self):
        super().__init__(2)

    def forward(self, x):
        PASSES.append(len(x))
        if IN_WORKER and ALWAYS_OR_ONCE:
            os._exit(0)
        return super().forward(x)

class Slow(Net):
    def __init__(self):
        super().__init__(3)

    def forward(self, x):
        time.sleep(0.1)
        return super().forward(x)

class Sluggish(Slow):
    pass
"""
ALWAYS = "len(PASSES) > 2"
ONCE = 'len(PASSES) > 6 and not (HERE / "mark").exists() and not (HERE / "mark").touch()'
HOW = ["--data", "npz:data.npz", "--threat", "linf:0.1", "--device", "cpu"]
LINE = ["--attack", "fgsm", "--attack", "apgd(steps=5)"]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with models.py and data.npz: 24 points of 6 x 6, 3 classes."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ALWAYS)
    x = np.random.default_rng(0).random((24, 6, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(24) % 3)
    return tmp_path


def write(room: Path, ends: str) -> None:
    code = MODELS.replace("ALWAYS_OR_ONCE", ends).replace("{folder!r}", repr(str(room)))
    (room / "models.py").write_text(code)


def evaluate(out: str, *more: str) -> Result:
    workers = [] if "--workers" in more else ["--workers", "2"]
    return CliRunner().invoke(program, ["evaluate", *HOW, *LINE, "--out", out, *more, *workers])


def facts(record: Record) -> list[Any]:
    points = record.points
    stages = [(s.attack, s.entered, s.broken, s.forwards, s.backwards) for s in record.stages]
    verdicts = [points.index, points.predicted, points.status, points.attack, points.distance]
    return [record.weights, record.robust, record.forwards, stages, verdicts]


def records(out: Path) -> dict[str, Record]:
    return {path.parent.name: load(path) for path in out.glob("*/record.json")}


@pytest.mark.slow
def test_results_are_those_of_one_after_the_other(room: Path) -> None:
    names = ["models.py:net", "models.py:other"]
    called = ["--name", "mine", "--name", "theirs", "--json"]
    alone = evaluate("alone", *names, "--workers", "1", *called)
    assert alone.exit_code == 0, alone.stderr
    assert not (room / "in-a-worker").exists()
    with files.digesting() as written:
        both = evaluate("both", *names, *called)
    assert both.exit_code == 0, both.stderr
    assert (room / "in-a-worker").exists()
    one, two = records(room / "alone"), records(room / "both")
    assert list(one) == list(two)
    assert len(one) == 2
    assert all(facts(one[name]) == facts(two[name]) for name in one)
    assert {found.defense for found in two.values()} == {"mine", "theirs"}
    assert {found.arguments["model"] for found in two.values()} == set(names)
    tables = [json.loads(result.stdout)["rows"] for result in (alone, both)]
    for row in tables[0] + tables[1]:
        del row["seconds"], row["record"]
    assert tables[0] == tables[1]
    # What the process that the user started compares after the end holds what workers wrote.
    assert {path.parent.name for path in written if path.name == "record.json"} == set(two)
    assert evaluate("both", *names, *called).stdout == both.stdout


@pytest.mark.slow
def test_a_model_whose_process_dies_each_time_is_given_up_alone(room: Path) -> None:
    done = evaluate("out", "models.py:Ends", "models.py:net")
    assert done.exit_code == 3
    assert "error: models.py:Ends: its process died 3 times" in done.stderr
    assert "models.py:net" in done.stdout
    assert list(records(room / "out")) == ["models.py-net"]


@pytest.mark.slow
def test_a_model_whose_process_dies_once_goes_on_from_its_ledger(room: Path) -> None:
    """Beside it, one that is built otherwise each time is evaluated as it was looked at."""
    write(room, ONCE)
    done = evaluate("out", "models.py:Ends", "models.py:drawn")
    assert done.exit_code == 0, done.stderr
    assert (room / "mark").exists()
    assert "a worker was lost (exit code 0)" in done.stderr
    config = json.loads((room / "out" / "config.json").read_text())
    found = records(room / "out")
    digests = [found[f"models.py-{name}"].weights.digest for name in ("Ends", "drawn")]
    assert digests == config["weights"]
    alone = evaluate("alone", "models.py:Ends", "--workers", "1", "--quiet")
    assert alone.exit_code == 0, alone.stderr
    (one,) = records(room / "alone").values()
    assert facts(one)[-1] == facts(found["models.py-Ends"])[-1]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_all_workers_and_the_same_command_resumes(
    room: Path, stop_by_ctrl_c: Callable[..., None]
) -> None:
    names = ["models.py:Slow", "models.py:Sluggish"]
    line = ["--attack", "pgd(steps=200)", "--workers", "2", "--out", "out"]
    ledgers = [
        room / "out" / f"models.py-{name}" / "ledger.sqlite" for name in ("Slow", "Sluggish")
    ]
    stop_by_ctrl_c(["evaluate", *names, *HOW, *line], room, ledgers, 120)


@pytest.mark.parametrize(
    ("more", "at_once"),
    [
        ({}, 1),
        ({"workers": 1}, 1),
        ({"workers": 2}, 2),
        ({"workers": 3}, 3),
        ({"workers": 4}, 1),  # more than models: each is spread over four
        ({"device": "cpu,cpu", "workers": 2}, 1),
        ({"models": ("models.py:net",), "workers": 2}, 1),
    ],
)
def test_how_many_run_at_once(room: Path, more: dict[str, Any], at_once: int) -> None:
    names = ("models.py:net", "models.py:other", "models.py:Slow")
    usual: dict[str, Any] = {"models": names, "device": "cpu"}
    request = Request(data="npz:data.npz", threat="linf:0.1", **{**usual, **more})
    plan = make(request)
    assert plan.at_once == at_once
    # A model that one process has to itself is not spread once more.
    assert plan.settings_of(plan.subjects[0]).workers == (request.workers if at_once == 1 else None)


@pytest.mark.slow
def test_models_that_nobody_named_are_looked_at_by_their_workers(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And found the same as when this process looks at them."""

    def two(*_: object) -> list[str]:
        return ["models.py:net", "models.py:other"]

    monkeypatch.setattr("robustkit.cli.evaluate.plan.bundled", two)
    monkeypatch.setattr("robustkit.cli.evaluate.plan.at_once", lambda _: 2)
    here = CliRunner().invoke(program, ["evaluate", *HOW, *LINE, "--out", "here", "--workers", "1"])
    assert here.exit_code == 0, here.stderr

    def refused(_: object) -> None:
        raise AssertionError("looked at by the driver")

    monkeypatch.setattr("robustkit.cli.evaluate.run.first_look", refused)
    there = CliRunner().invoke(program, ["evaluate", *HOW, *LINE, "--out", "there"])
    assert there.exit_code == 0, there.stderr
    one, two_ = records(room / "here"), records(room / "there")
    assert len(one) == 2
    assert {name: facts(found) for name, found in one.items()} == {
        name: facts(found) for name, found in two_.items()
    }
