"""The display: what it says, and what it does not say before it knows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from torch import nn

from robustkit.cli import screen as module
from robustkit.cli.progress import lively
from robustkit.cli.screen import GateLane, Lane, Screen, StageCost
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher

TWO = [StageCost(1), StageCost(1)]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def at_square(screen: Screen, stage: str) -> Lane:
    """Return the lane of a model of 10 points, of which 8 go into the last stage."""
    lane = screen.lane("a")
    lane.model("a", 10)
    lane.stage("clean", 10)
    lane.advance(10, 8, 10)
    lane.stage(stage, 8)
    return lane


@pytest.fixture
def screen(clock: Clock) -> Iterator[Screen]:
    with Screen(3, quiet=True, stages=TWO) as screen:
        yield screen


class TestTimeLeft:
    def test_nothing_is_said_before_there_is_a_pace(self, screen: Screen, clock: Clock) -> None:
        assert screen.left() is None
        screen.weigh({"a": 1.0, "b": 1.0, "c": 2.0})
        clock.now += 10
        assert screen.left() is None
        lane = screen.lane("a")
        lane.model("a", 10)
        lane.stage("clean", 10)
        assert screen.left() is None

    def test_it_goes_by_what_a_look_at_each_model_took(self, screen: Screen, clock: Clock) -> None:
        screen.weigh({"a": 1.0, "b": 1.0, "c": 2.0})
        for name in ("a", "b"):
            screen.lane(name).stage("clean", 10)
            screen.end(name)
        clock.now += 10
        assert screen.left() == pytest.approx(10)
        third = screen.lane("c")
        third.stage("clean", 10)
        third.stage("apgd", 4)  # the second of two stages
        third.advance(2, 5, 10)
        assert screen.left() == pytest.approx(10 * 0.5 / 3.5)

    def test_it_never_falls_below_zero(self, screen: Screen, clock: Clock) -> None:
        screen.weigh({"a": 1.0, "b": 1.0, "c": 2.0})
        for name in ("a", "b", "c"):
            lane = screen.lane(name)
            for _ in range(5):  # more stages than were announced, and more tasks
                lane.stage("apgd", 4)
                lane.advance(9, 5, 10)
            clock.now += 10
            left = screen.left()
            assert left is not None and left >= 0
        assert screen.left() == 0

    def test_models_that_were_done_before_tell_nothing_of_the_pace(
        self, screen: Screen, clock: Clock
    ) -> None:
        screen.weigh({"a": 1.0, "b": 1.0, "c": 2.0})
        for name in ("a", "b"):
            screen.lane(name).model(name, 10)
            screen.end(name)
        clock.now += 10
        assert screen.left() is None

    def test_from_the_first_minute_on_it_is_said_however_little_is_done(
        self, screen: Screen, clock: Clock
    ) -> None:
        screen.weigh({"a": 1.0, "b": 1.0, "c": 1.0})
        lane = screen.lane("a")
        lane.model("a", 10)
        lane.stage("clean", 100)
        lane.advance(1, 1, 1)  # a hundredth of a half of one of three
        clock.now += 59
        assert screen.left() is None
        clock.now += 1
        assert screen.left() == pytest.approx(60 * 599)

    def test_queries_move_a_stage_whose_tasks_end_late(self, clock: Clock) -> None:
        with Screen(1, quiet=True, stages=[StageCost(1), StageCost(99, 5000)]) as screen:
            lane = at_square(screen, "square")
            lane.queries(8 * 2500)
            clock.now += 60
            share = (1 + 99 * 0.8 * 0.5) / (1 + 99 * 0.8)
            assert screen.left() == pytest.approx(60 * (1 - share) / share)

    def test_what_is_broken_need_not_be_attacked_again(self, clock: Clock) -> None:
        with Screen(1, quiet=True, stages=[StageCost(10), StageCost(10), StageCost(10)]) as screen:
            lane = screen.lane("a")
            lane.model("a", 10)
            lane.stage("clean", 10)
            lane.advance(10, 10, 10)
            lane.stage("apgd", 10)
            lane.advance(10, 1, 10)
            clock.now += 60
            assert screen.left() == pytest.approx(60 / 20)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "ci", "drawn"),
    [
        (Terminal(), "", True),
        (Terminal(), "false", True),
        (Terminal(), "true", False),
        (io.StringIO(), "", False),
    ],
)
def test_bars_are_for_terminals_outside_ci(
    monkeypatch: pytest.MonkeyPatch, file: io.StringIO, ci: str, drawn: bool
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes a terminal of any log, for colors
    assert lively(Console(file=file)) is drawn


def test_a_log_gets_a_line_per_stage_and_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen(2, quiet=False, stages=TWO) as screen:
        for name in ("a", "b"):
            lane = screen.lane(name)
            lane.model(name, 10)
            lane.stage("clean", 10)
            lane.advance(10, 9, 10)
            lane.stage("certify ibp", 9)
            lane.advance(9, 4, 9)
            lane.stage("apgd", 9)
            lane.advance(9, 6, 10)
            lane.tally(3, 1, 1234)
            screen.end(name)
    told = capsys.readouterr().err
    assert "\r" not in told
    assert told.splitlines() == [
        line
        for name in ("a", "b")
        for line in (
            f"{name}: clean: 9 of 10 robust",
            f"{name}: certify ibp: 4 of 9 proved",
            f"{name}: apgd: 6 of 10 robust",
            f"{name}: 3 broken, 1 proved, 1,234 passes",
        )
    ]


def test_a_log_hears_of_a_long_stage_once_a_minute(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with Screen(2, quiet=False, stages=[StageCost(1), StageCost(99, 5000)]) as screen:
        lane = at_square(screen, "square(queries=5000)")
        for step in range(1, 7):
            clock.now += 20
            lane.queries(1000 * step)
        screen.end("a", "robust 0.800 [0.444, 0.975]")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "a: clean: 8 of 10 robust"
    for line, queries in zip(told[1:3], ("3,000", "6,000"), strict=True):
        assert line.startswith(f"a: square(queries=5000): 8 of 10 robust, {queries} queries; ")
        assert line.endswith(" left")
    assert told[-1] == "a: robust 0.800 [0.444, 0.975] (1 of 2 models)"


@pytest.mark.parametrize("lane_type", [Lane, GateLane])
def test_nothing_is_cut_short_but_names_where_there_are_80_columns(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, lane_type: type[Lane]
) -> None:
    console = Console(file=Terminal(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(module, "stderr", lambda: console)
    monkeypatch.setattr(module, "lively", lambda _: True)
    screen = Screen(3, quiet=False, stages=TWO, lane=lane_type)
    with screen:
        screen.say("a first look at a_model_with_a_name_of_many_words_of_which_not_all_fit")
        assert drawn(screen)[0].split()[-1] == "0:00:00"
        screen.weigh({"a": 1.0})
        lane = screen.lane("b")
        for letter in "ab":
            lane = screen.lane(letter)
            lane.model(f"{letter}_model_with_a_name_of_many_words", 10_000)
            lane.stage("apgd(loss=targeted_dlr, targets=9)", 90_000)
            lane.tally(5_432, 1_234, 123_456_789)
            lane.advance(45_678, 10_000, 10_000)
        screen.end("a")
        clock.now += 3600
        lane.advance(45_679, 10_000, 10_000)
        lines = drawn(screen)
        assert "1/3" in lines[0] and "1:23:34 left" in lines[0]
        assert "45679/90000" in lines[-2] and "10000 of 10000 robust" in lines[-2]
        assert [line.split()[-1] for line in lines[:-1]] == ["0:00:00"] * (len(lines) - 1)
        assert lines[-1] == "10,864 broken, 2,468 proved, 246,913,578 passes"
        lane.queries(123_456_789)
        assert drawn(screen)[-1] == f"{lines[-1]}; 123,456,789 queries"


def drawn(screen: Screen) -> list[str]:
    """What a terminal of 80 columns shows, line by line."""
    file = io.StringIO()
    Console(file=file, width=80).print(screen._bars.get_renderable())
    return [line.rstrip() for line in file.getvalue().splitlines()]


class Counts(Watcher):
    def __init__(self) -> None:
        self.told: list[tuple[int, int, int]] = []
        self.asked: list[int] = []

    def queries(self, done: int) -> None:
        self.asked.append(done)

    def tally(self, broken: int, proved: int, forwards: int) -> None:
        self.told.append((broken, proved, forwards))


class Own:
    """A watcher from before `tally`, which does not inherit."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def model(self, name: str, points: int) -> None: ...

    def stage(self, name: str, tasks: int) -> None:
        self.stages.append(name)

    def advance(self, done: int, robust: int, points: int) -> None: ...

    def note(self, message: str) -> None: ...


def test_a_watcher_hears_what_is_broken_and_what_it_took(
    nearest: nn.Module, blobs: Dataset, tmp_path: Path
) -> None:
    watcher, own = Counts(), Own()
    how = {"data": blobs, "threat": Threat("linf", 0.06), "attacks": ["fgsm", "pgd(steps=4)"]}
    record = evaluate(nearest, **how, watcher=watcher, folder=tmp_path / "a")  # type: ignore[arg-type]
    broken, proved, forwards = watcher.told[-1]
    assert broken == sum(status == "broken" for status in record.points.status) > 0
    assert proved == 0
    assert record.forwards - len(record.points.index) <= forwards <= record.forwards
    assert watcher.told == sorted(watcher.told)
    assert watcher.asked and all(count > 0 for count in watcher.asked)
    evaluate(nearest, **how, watcher=own, folder=tmp_path / "b")  # type: ignore[arg-type]
    assert own.stages == ["clean", "fgsm", "pgd(steps=4)"]
