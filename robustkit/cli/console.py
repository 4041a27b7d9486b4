"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterable
from typing import Any, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from robustkit.core.text import clean_lines

_PIPED = 120  # columns, where no terminal says otherwise


class CleanConsole(Console):
    """A console on which no text acts: what is printed is cleaned, its styles are not."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, and clean what comes of it; at every depth, so that tables measure the same."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else clean_lines(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _console(stderr=True)


def outlive_readers() -> None:
    """Let standard output and error be pipes whose reader leaves early (`| head`): no failure.

    What is printed after that is lost; the exit code is the one that was earned.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and _is_pipe(number):
            setattr(sys, name, _forgiving(stream, number))


def _is_pipe(number: int) -> bool:
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class _Pipe(io.FileIO):
    """A pipe that swallows what nobody reads any more."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or 0
        except BrokenPipeError:
            return memoryview(content).nbytes


def _forgiving(stream: io.TextIOWrapper, number: int) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def say(console: Console, label: str, message: str, style: str) -> None:
    """Print `label: message`; the message is printed as it is, without markup."""
    line = Text.assemble((f"{label}:", style), " ", message)
    console.print(line, soft_wrap=True, highlight=False)


def result(text: str) -> None:
    """Print plain text as a result, exactly but for what would act on a terminal or a log."""
    click.echo(clean_lines(text), nl=not text.endswith("\n"))


def _console(*, stderr: bool) -> Console:
    console = CleanConsole(stderr=stderr)
    if not console.is_terminal:  # whoever reads it, a file has no right margin
        console.width = max(_PIPED, console.width)
    return console
