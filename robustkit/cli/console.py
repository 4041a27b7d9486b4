"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

_PIPED = 120  # columns, where no terminal says otherwise


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress, warnings and errors."""
    return _console(stderr=True)


def say(console: Console, label: str, message: str, style: str) -> None:
    """Print `label: message`; the message is printed as it is, without markup."""
    line = Text.assemble((f"{label}:", style), " ", message)
    console.print(line, soft_wrap=True, highlight=False)


def result(text: str) -> None:
    """Print plain text, exactly, as a result."""
    click.echo(text, nl=not text.endswith("\n"))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal:  # whoever reads it, a file has no right margin
        console.width = max(_PIPED, console.width)
    return console
