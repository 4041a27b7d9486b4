"""Progress bars, and who gets them: callers from Python only where they ask for them.

The bars of the command line (robustkit.cli.progress) are made here too.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.core import arguments
from robustkit.core.text import clean, short
from robustkit.errors import UsageError
from robustkit.evaluation.watcher import Relay, Watcher, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

_OTHERS = 56  # columns of a bar beside its name
_NARROWEST = 20  # columns of a name
_PAUSE = 0.2  # seconds between two pictures of a notebook


@contextmanager
def listening(watcher: Watcher | None, progress: bool | None) -> Iterator[Watcher]:
    """Hand out who hears a run: `watcher`, else bars where `progress` or a notebook asks for them.

    Raises:
        UsageError: when both are asked for.
    """
    if progress is not None:
        arguments.switch("progress", progress)
    if watcher is not None:
        if not all(hasattr(watcher, name) for name in ("model", "stage", "advance", "note")):
            raise arguments.refused("watcher", "a robustkit.Watcher", watcher)
        if isinstance(watcher, type):
            raise arguments.refused("watcher", "an object, not a class", watcher)
        if progress:
            raise UsageError("progress=True shows bars of its own: leave out watcher, or progress.")
        heard: Any = watcher
        yield heard if isinstance(heard, Watcher) else Relay(partial(tell, heard))
    elif progress or (progress is None and in_notebook()):
        with Display() as display:
            yield display
    else:
        yield Watcher()


def in_notebook() -> bool:
    """Whether this code runs in a cell of a Jupyter notebook, which can show pictures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def _show(what: Any, **how: Any) -> Any:
    return importlib.import_module("IPython.display").display(what, **how)


def columns() -> list[ProgressColumn]:
    """Return what every bar shows: a name, how far it is, its field `told`, the time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

    return [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    ]


def room(console: Console, others: int = _OTHERS) -> int:
    """Return how many columns a text has where the rest of its line takes `others`."""
    return max(_NARROWEST, console.width - others)


_PROVE = ("certify", "certified", "complete")  # stages that count the points that are proved


class StageBars(Watcher):
    """A bar for the stage that runs, with the points that are still robust, or that are proved."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._name = self._stage = self._robust = ""
        self._bar: TaskID | None = None

    @property
    def proves(self) -> bool:
        """Whether the stage counts the points that are proved, not those that are robust."""
        return self._stage.startswith(_PROVE)

    def model(self, name: str, points: int) -> None:
        """An evaluation begins."""
        self._name, self._robust = clean(name), f"{points} points"

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins; `tasks` is an upper bound. The one before has ended."""
        self.end_stage()
        self._stage = clean(name)
        description = short(f"{self._name}: {self._stage}", room(self._bars.console))
        told = "" if self._robust.endswith("proved") else self._robust
        self._bar = self._bars.add_task(description, total=tasks, told=told)

    def advance(self, done: int, robust: int, points: int) -> None:
        """Some tasks have ended."""
        self._robust = f"{robust} of {points} {'proved' if self.proves else 'robust'}"
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, told=self._robust)

    def end_stage(self) -> None:
        """A stage has ended, if one has begun."""


class Display(StageBars):
    """The bars of a run from Python, which stay, as notes do.

    A notebook needs no widgets: the cell's output is replaced as the run goes on, and the last
    picture is what stays in the saved file.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        super().__init__(Progress(*columns(), console=Console(stderr=True)))
        self._notebook = in_notebook()
        self._cell: Any = None
        self._drawn = 0.0

    def __enter__(self) -> Display:
        if self._notebook:
            self._cell = _show(self._picture(), display_id=True)
        else:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._draw(last=True)
        self._bars.stop()

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins."""
        super().stage(name, tasks)
        self._draw()

    def advance(self, done: int, robust: int, points: int) -> None:
        """Some tasks have ended."""
        super().advance(done, robust, points)
        self._draw()

    def kept(self, path: Path) -> None:
        """An evaluation has ended."""
        self.end_stage()
        self._bar = None
        self._say(f"Record: {path}")

    def note(self, message: str) -> None:
        """Something the person should know."""
        self._say(message)

    def end_stage(self) -> None:
        """Fill the bar of the stage: an attack that breaks a point early leaves tasks undone."""
        if self._bar is not None:
            done = self._bars.tasks[-1].completed
            self._bars.update(self._bar, total=done or 1, completed=done or 1)
            self._bars.stop_task(self._bar)

    def _say(self, text: str) -> None:
        from rich.text import Text

        if self._cell is None:
            self._bars.console.print(Text(clean(text)), soft_wrap=True, highlight=False)
        else:
            _show({"text/plain": clean(text)}, raw=True)

    def _draw(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._cell is not None and (last or now - self._drawn >= _PAUSE):
            self._cell.update(self._picture())
            self._drawn = now

    def _picture(self) -> Any:
        return self._bars.make_tasks_table(self._bars.tasks)
