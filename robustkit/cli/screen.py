"""One display for the models of a command: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from robustkit.cli.console import say, stderr
from robustkit.cli.progress import Bars, bars, leave_line, lively
from robustkit.core.text import clean, short
from robustkit.evaluation.progress import StageBars, room
from robustkit.evaluation.watcher import Watcher

if TYPE_CHECKING:
    from typing_extensions import Self

_EARLY = 0.05  # share of the work before which nothing is said of the time that is left
_SOON = 3.0  # seconds, likewise
_LATE = 60.0  # seconds from which on it is said, however little is done
_NEARLY = 0.99  # of a stage, at most, by its queries: they are fewer where points break early
_BESIDE = 36  # columns beside what is said before the first stage


class StageCost(NamedTuple):
    """What a stage of a model takes at most, for each point that comes to it.

    Attributes:
        work: in forward passes; those back count twice.
        queries: how often the model is asked; 0: not known.
    """

    work: float
    queries: float = 0.0


class Lane(StageBars):
    """One model: a bar for the stage that it is at, and what is known of its points."""

    def __init__(self, screen: Screen, bars: Bars, console: Console, *, quiet: bool) -> None:
        super().__init__(bars)
        self._screen, self._console, self._quiet = screen, console, quiet
        self._stages, self._part, self._before, self._passes = 0, 0.0, 0, 0
        self._tasks = 1
        self._alive, self._left, self._points = 1.0, 1.0, 0
        self.broken = self.proved = self.asked = 0

    @property
    def forwards(self) -> int:
        """Passes, those at larger eps included."""
        return self._before + self._passes

    @property
    def where(self) -> str:
        """The model, its stage and what is left of its points."""
        return f"{self._name}: {self._stage}: {self._robust}"

    @property
    def begun(self) -> bool:
        """Whether any stage has begun: one that resumes may find that all are done."""
        return self._stages > 0

    def share(self, stages: Sequence[StageCost]) -> float:
        """Return how much of the model is done, if these are its stages.

        Of those to come each costs as much as there are points that are still robust.
        """
        if not self._stages or not stages:
            return 0.0
        now = min(self._stages, len(stages)) - 1
        part = self._part
        if expected := stages[now].queries * self._alive * self._points:
            part = max(part, min(_NEARLY, self.asked / expected))
        current = stages[now].work * self._alive
        done = sum(stage.work for stage in stages[:now]) + part * current
        left = (1 - part) * current + sum(stage.work for stage in stages[now + 1 :]) * self._left
        return done / (done + left)

    def model(self, name: str, points: int) -> None:
        """A model begins, or the next eps of a grid."""
        self.end_stage()
        super().model(name, points)
        self._before, self._passes = self.forwards, 0
        self._alive, self._left, self._points = 1.0, 1.0, points

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins."""
        super().stage(name, tasks)
        self._stages, self._part, self._tasks = self._stages + 1, 0.0, max(1, tasks)
        self._alive, self.asked = self._left, 0
        self._screen.draw()

    def queries(self, done: int) -> None:
        """The attack of the stage has asked the model so often."""
        self.asked = done
        self._screen.draw()

    def advance(self, done: int, robust: int, points: int) -> None:
        """Some tasks have ended."""
        super().advance(done, robust, points)
        self._part = min(1.0, done / self._tasks)
        if not self.proves:
            self._left = robust / max(1, points)
        self._screen.draw()

    def tally(self, broken: int, proved: int, forwards: int) -> None:
        """So much is known."""
        self.broken, self.proved, self._passes = broken, proved, forwards
        self._screen.draw()

    def note(self, message: str) -> None:
        """Something the person should know."""
        self._screen.note(message)

    def end_stage(self) -> None:
        """Take the bar of the stage away; where there are no bars, leave a line."""
        if self._bar is None:
            return
        self._bars.remove_task(self._bar)
        self._bar = None
        if self._bars.disable and not self._quiet:
            self._screen.leave(self.where)


class GateLane(Lane):
    """Shows how many points are finished; stages are those of a part, and get no lines."""

    def model(self, name: str, points: int) -> None:
        """A candidate begins."""
        super().model(name, points)
        description = short(f"{self._name}: points", room(self._console))
        self._all = self._bars.add_task(description, total=points, told="")

    def part(self, done: int, points: int) -> None:
        """Some points are finished."""
        self._bars.update(self._all, completed=done)

    def end_stage(self) -> None:
        """Take the bar of the stage away."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None


class Screen(Watcher):
    """The display of a command; silent when `quiet`.

    Args:
        models: how many there are.
        stages: of each, for the time that is left; without any, nothing is said of it.
        lane: what shows one model.
    """

    def __init__(
        self,
        models: int,
        *,
        quiet: bool,
        stages: Sequence[StageCost] = (),
        lane: type[Lane] = Lane,
    ) -> None:
        self._console, self._quiet, self._models = stderr(), quiet, models
        self._bars = bars(self._console, disable=quiet or not lively(self._console))
        self._stages, self._lane = stages, lane
        self._lanes: dict[str, Lane] = {}
        self._weights: dict[str, float] = {}
        self._ended = set[str]()
        self._since = self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        self._all = self._bars.add_task("models", total=self._models, told="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for lane in self._lanes.values():
                lane.end_stage()
        self._bars.stop()

    def weigh(self, seconds: Mapping[str, float]) -> None:
        """Say what one look at each model has taken: that is how their costs compare."""
        self._weights, self._since = dict(seconds), time.monotonic()
        self._told_at = self._since

    def say(self, what: str) -> None:
        """Say what goes on before the first stage."""
        self._bars.update(self._all, told=short(clean(what), room(self._console, _BESIDE)))

    def lane(self, name: str) -> Lane:
        """Return what hears one model."""
        if name not in self._lanes:
            self._lanes[name] = self._lane(self, self._bars, self._console, quiet=self._quiet)
        return self._lanes[name]

    def end(self, name: str, row: str = "") -> None:
        """A model has ended, whether it could be finished or not; `row`: what came of it."""
        lane = self.lane(name)
        lane.end_stage()
        self._ended.add(name)
        self.draw()
        if self._quiet or self._models == 1:
            return
        if self._bars.disable and lane.begun:
            self.leave(f"{name}: {self._told([lane])}")
        if row:
            leave_line(
                self._console, f"{name}: {row} ({len(self._ended)} of {self._models} models)"
            )

    def leave(self, line: str) -> None:
        """Leave a line in a log, from the first minute on with the time that is left."""
        self._told_at = time.monotonic()
        left = self.left() if self._told_at - self._since >= _LATE else None
        leave_line(self._console, line if left is None else f"{line}; {_time(left)} left")

    def note(self, message: str) -> None:
        """Something the person should know."""
        if not self._quiet:
            say(self._console, "warning", message, "bold yellow")

    def draw(self) -> None:
        """Show how far all models are."""
        lanes = [lane for name, lane in self._lanes.items() if name not in self._ended]
        if self._bars.disable:
            if not self._quiet and time.monotonic() - self._told_at >= _LATE:
                for lane in lanes:
                    self.leave(f"{lane.where}, {lane.asked:,} queries")
            return
        left = self.left()
        told = "" if left is None else f"{_time(left)} left"
        self._bars.below = self._told(list(self._lanes.values()))
        if asked := sum(lane.asked for lane in lanes):
            self._bars.below += f"; {asked:,} queries"
        self._bars.update(self._all, completed=len(self._ended), told=told)

    def left(self) -> float | None:
        """Return the seconds that are left, by the pace so far; None before there is one."""
        # A model that was found finished says nothing of the pace.
        found = {name for name in self._ended if not self._lanes[name].begun}
        names = {*self._weights, *self._lanes} - found
        more = self._models - len(names) - len(found)  # not heard of yet
        usual = sum(self._weights.values()) / len(self._weights) if self._weights else 1.0
        weight = {name: self._weights.get(name, usual) for name in names}
        whole = sum(weight.values()) + more * usual
        done = sum(
            weight[name] * (1.0 if name in self._ended else lane.share(self._stages))
            for name, lane in self._lanes.items()
            if name in names
        )
        passed = time.monotonic() - self._since
        early = passed < _SOON or (passed < _LATE and done < _EARLY * whole)
        if not self._stages or early or not done:
            return None
        return max(0.0, passed * (whole - done) / done)

    def _told(self, lanes: list[Lane]) -> str:
        broken, proved, passes = (
            sum(getattr(lane, fact) for lane in lanes) for fact in ("broken", "proved", "forwards")
        )
        return f"{broken:,} broken, {proved:,} proved, {passes:,} passes"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
