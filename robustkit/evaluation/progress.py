"""Progress for callers from Python: bars in a terminal or a notebook, silence unless asked for."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustkit.core.text import clean
from robustkit.errors import UsageError
from robustkit.evaluation.watcher import Watcher

_PAUSE = 0.2  # seconds between two pictures of a notebook


@contextmanager
def listening(watcher: Watcher | None, progress: bool | None) -> Iterator[Watcher]:
    """Hand out who hears a run: `watcher`, else bars where `progress` or a notebook asks for them.

    Raises:
        UsageError: when both are asked for.
    """
    if watcher is not None:
        if progress:
            raise UsageError("progress=True shows bars of its own: leave out watcher, or progress.")
        yield watcher
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


class Display(Watcher):
    """A bar for the stage that runs, with the points that are still robust; notes stay visible.

    A notebook needs no widgets: the cell's output is replaced as the run goes on, and the last
    picture is what stays in the saved file.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._notebook = in_notebook()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[robust]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._name = self._robust = ""
        self._bar: Any = None
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

    def model(self, name: str, points: int) -> None:
        """An evaluation begins."""
        self._name, self._robust = clean(name), f"{points} points"

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins; the one before has ended, whatever its bound was."""
        self._end()
        description = clean(f"{self._name}: {name}")
        self._bar = self._bars.add_task(description, total=tasks, robust=self._robust)
        self._draw()

    def advance(self, done: int, robust: int, points: int) -> None:
        """Some tasks have ended."""
        self._robust = f"{robust} of {points} robust"
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, robust=self._robust)
        self._draw()

    def kept(self, path: Path) -> None:
        """An evaluation has ended."""
        self._end()
        self._bar = None
        self._say(f"Record: {path}")

    def note(self, message: str) -> None:
        """Something the person should know."""
        self._say(message)

    def _end(self) -> None:
        """Fill the bar of a stage: an attack that breaks a point early leaves tasks undone."""
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
