"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Table

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


def open_table(*heads: str, whole: Collection[str] = ()) -> Table:
    """Return a table without lines.

    Args:
        heads: of its columns, which are folded where the terminal is narrow.
        whole: those that are not.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(heads))
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head in whole)
    return table


def result(text: str) -> None:
    """Print plain text, exactly, as a result."""
    click.echo(text, nl=not text.endswith("\n"))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    if not console.is_terminal:  # whoever reads it, a file has no right margin
        console.width = max(_PIPED, console.width)
    return console
