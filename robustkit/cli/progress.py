"""How a running evaluation or training looks: bars on a terminal, a line per stage elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, TaskID, TimeRemainingColumn
from rich.text import Text

from robustkit.cli.console import say, stderr
from robustkit.evaluation.progress import StageBars, columns

if TYPE_CHECKING:
    from typing_extensions import Self

    from robustkit.models.training import Progress as Report


class Screen(StageBars):
    """Shows one bar for the models and one for the stage; silent when `quiet`."""

    def __init__(self, models: int, *, quiet: bool) -> None:
        self._console, self._quiet, self._models = stderr(), quiet, models
        super().__init__(_bars(self._console, disable=quiet or not self._console.is_terminal))
        self._all: TaskID | None = None
        self._begun = 0

    def __enter__(self) -> Self:
        self._bars.start()
        if self._models > 1:
            self._all = self._bars.add_task("models", total=self._models, told="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.end_stage()
        self._bars.stop()

    def model(self, name: str, points: int) -> None:
        """A model begins."""
        self.end_stage()
        if self._all is not None:
            self._bars.update(self._all, completed=self._begun)
        super().model(name, points)
        self._begun += 1

    def note(self, message: str) -> None:
        """Something the person should know."""
        if not self._quiet:
            say(self._console, "warning", message, "bold yellow")

    def end_stage(self) -> None:
        """Take the bar of the stage away; where there are no bars, leave a line."""
        if self._bar is None:
            return
        self._bars.remove_task(self._bar)
        self._bar = None
        if self._bars.disable and not self._quiet:
            _line(self._console, f"{self._name}: {self._stage}: {self._robust}")


class GateScreen(Screen):
    """Shows how many points are finished; stages are those of a part, and get no lines."""

    def __init__(self, models: int, *, quiet: bool) -> None:
        super().__init__(models, quiet=quiet)
        self._points: TaskID | None = None

    def model(self, name: str, points: int) -> None:
        """A candidate begins."""
        super().model(name, points)
        if self._points is not None:
            self._bars.remove_task(self._points)
        self._points = self._bars.add_task(f"{name}: points", total=points, told="")

    def part(self, done: int, points: int) -> None:
        """Some points are finished."""
        if self._points is not None:
            self._bars.update(self._points, completed=done)

    def end_stage(self) -> None:
        """Take the bar of the stage away."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None


def training_progress(reports: Iterator[Report], name: str, *, quiet: bool) -> None:
    """Run a training to its end, showing where it stands: a bar, or a line per epoch."""
    console, loss, epoch = stderr(), 0.0, 0
    silent = quiet or not console.is_terminal
    with _bars(console, disable=silent) as bars:
        bar = bars.add_task(name, total=None, told="")
        for step, steps, current, value in reports:
            loss = value if loss == 0.0 else 0.98 * loss + 0.02 * value
            bars.update(bar, completed=step, total=steps, told=f"epoch {current}, loss {loss:.3f}")
            if silent and not quiet and current > epoch > 0:
                _line(console, f"{name}: epoch {epoch} done, loss {loss:.3f}")
            epoch = current


@contextmanager
def counting(name: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show one bar; what it yields is called with the name of each thing that is done."""
    console = stderr()
    with _bars(console, disable=quiet or not console.is_terminal) as bars:
        bar = bars.add_task(name, total=total, told="")
        yield lambda last: bars.update(bar, advance=1, told=last)


def _bars(console: Console, *, disable: bool) -> Progress:
    shown = (*columns(), TimeRemainingColumn())
    return Progress(*shown, console=console, transient=True, disable=disable)


def _line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True, highlight=False)
