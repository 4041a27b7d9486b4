"""Who hears what a run does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Watcher:
    """Hears what a run does; does nothing itself. Subclass it to show progress."""

    def model(self, name: str, points: int) -> None:
        """An evaluation begins."""

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins: the clean pass or an attack, with an upper bound of its tasks."""

    def advance(self, done: int, robust: int, points: int) -> None:
        """`done` tasks of the stage are finished, `robust` of `points` are still robust."""

    def part(self, done: int, points: int) -> None:
        """`done` of `points` are finished, in a run that goes part by part."""

    def tally(self, broken: int, proved: int, forwards: int) -> None:
        """So many points of the evaluation are broken, so many proved, after so many passes."""

    def queries(self, done: int) -> None:
        """The attack of the stage has put `done` inputs through the model; told several times."""

    def kept(self, path: Path) -> None:
        """An evaluation has ended; its record lies at `path`."""

    def note(self, message: str) -> None:
        """Something the person should know."""


class Relay(Watcher):
    """Hands what it hears, by its name and arguments, to one function."""

    def __init__(self, hear: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._hear = hear

    def model(self, name: str, points: int) -> None:
        """Hand on."""
        self._hear("model", (name, points))

    def stage(self, name: str, tasks: int) -> None:
        """Hand on."""
        self._hear("stage", (name, tasks))

    def advance(self, done: int, robust: int, points: int) -> None:
        """Hand on."""
        self._hear("advance", (done, robust, points))

    def part(self, done: int, points: int) -> None:
        """Hand on."""
        self._hear("part", (done, points))

    def tally(self, broken: int, proved: int, forwards: int) -> None:
        """Hand on."""
        self._hear("tally", (broken, proved, forwards))

    def queries(self, done: int) -> None:
        """Hand on."""
        self._hear("queries", (done,))

    def kept(self, path: Path) -> None:
        """Hand on."""
        self._hear("kept", (path,))

    def note(self, message: str) -> None:
        """Hand on."""
        self._hear("note", (message,))


def tell(watcher: Any, event: str, arguments: tuple[Any, ...]) -> None:
    """Tell a watcher what happened, if it wants to hear it: a user's own may lack some methods."""
    if hear := getattr(watcher, event, None):
        hear(*arguments)
