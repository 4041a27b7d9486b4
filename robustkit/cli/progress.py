"""Bars, and where they cannot be drawn lines; evaluations have `robustkit.cli.screen`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.text import Text

from robustkit.cli.console import stderr
from robustkit.evaluation.progress import columns

if TYPE_CHECKING:
    from robustkit.models.training import Progress as Report


def training_progress(reports: Iterator[Report], name: str, *, quiet: bool) -> None:
    """Run a training to its end, showing where it stands: a bar, or a line per epoch."""
    console, loss, epoch = stderr(), 0.0, 0
    silent = quiet or not lively(console)
    with bars(console, disable=silent) as shown:
        bar = shown.add_task(name, total=None, told="")
        for step, steps, current, value in reports:
            loss = value if loss == 0.0 else 0.98 * loss + 0.02 * value
            shown.update(bar, completed=step, total=steps, told=f"epoch {current}, loss {loss:.3f}")
            if silent and not quiet and current > epoch > 0:
                leave_line(console, f"{name}: epoch {epoch} done, loss {loss:.3f}")
            epoch = current


@contextmanager
def counting(name: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show one bar; what it yields is called with the name of each thing that is done."""
    console = stderr()
    with bars(console, disable=quiet or not lively(console)) as shown:
        bar = shown.add_task(name, total=total, told="")
        yield lambda last: shown.update(bar, advance=1, told=last)


class Bars(Progress):
    """Bars without estimates of their own; `below` is a line under them, if there is one.

    Among the columns of the bars it would leave no room for the time where there are 80.
    """

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis")


def bars(console: Console, *, disable: bool) -> Bars:
    """Return bars that leave nothing behind."""
    return Bars(*columns(), console=console, transient=True, disable=disable)


def lively(console: Console) -> bool:
    """Whether bars can be drawn over each other: not in a pipe, and not in the log of a CI run."""
    ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return console.file.isatty() and not console.is_dumb_terminal and not ci


def leave_line(console: Console, text: str) -> None:
    """Print one line of progress."""
    console.print(Text(text), soft_wrap=True, highlight=False)
