"""Who hears what a run does."""

from __future__ import annotations

from pathlib import Path


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

    def kept(self, path: Path) -> None:
        """An evaluation has ended; its record lies at `path`."""

    def note(self, message: str) -> None:
        """Something the person should know."""
