"""A table for a terminal: it leaves out columns where it must, and breaks no word.

rich shrinks every column of a table that is too wide, until names are broken anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from robustkit.core.text import clean_lines

# A text is broken after blanks, a part of it that is too long after the marks that follow.
_BREAKS = [re.compile(rf"[^{ends}]*[{ends}]+|[^{ends}]+") for ends in (r"\s", "/:(,@;", "_.=-")]
_FAIR = 14  # columns of a text that are kept together before a column is added that may go
_LONG, _LONGEST = 16, 32  # columns of a part that may be broken so, and of one anywhere


class TerminalTable:
    """Rows of text under headings; how it looks is decided where it is printed.

    Args:
        heads: of the columns.
        least: headings of columns that are left out where there is no room, least needed first.
        whole: headings of columns that are never broken, such as those of numbers.
        right: headings of columns of numbers that end below each other.
        lined: draw a line below the headings.
        shown: whether the headings are.
    """

    def __init__(
        self,
        *heads: str,
        least: Sequence[str] = (),
        whole: Collection[str] = (),
        right: Collection[str] = (),
        lined: bool = False,
        shown: bool = True,
    ) -> None:
        self.title = self.caption = ""
        self._heads = [clean_lines(head) for head in heads]
        self._least, self._whole, self._right = least, whole, right
        self._lined, self._shown = lined, shown
        self._rows: list[list[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row, a cell for each heading, of one style; nothing in a text is markup."""
        texts = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        # Before it is broken: a break may hide what acts on a log from whoever cleans it later.
        self._rows.append([Text(clean_lines(text.plain), style=text.style) for text in texts])

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Build the table for the width that there is."""
        columns = range(len(self._heads))
        least = [self._least_width(column) for column in columns]
        # A column that could stay away is no reason to break short names.
        fair = [max(least[c], min(_FAIR, self._width(c))) for c in columns]
        shown, gone = [c for c in columns if self._heads[c] not in self._least], list[str]()
        for head in reversed([head for head in self._least if head in self._heads]):
            more = sorted([*shown, self._heads.index(head)])
            if sum(fair[c] for c in more) + self._between(len(more)) <= options.max_width:
                shown = more
            else:
                gone.append(head)
        yield self._built(shown, self._widths(shown, least, options.max_width), gone)

    def _built(self, shown: Sequence[int], widths: Sequence[int], gone: Sequence[str]) -> Table:
        table = Table(
            title=Text(self.title) if self.title else None,
            title_justify="left",
            box=SIMPLE_HEAD if self._lined else None,
            padding=(0, 1, 0, 0) if self._lined else (0, 2, 0, 0),
            pad_edge=False,
            show_header=self._shown,
        )
        told = [f" Left out for want of room: {', '.join(gone)}."] if gone else []
        if caption := "\n".join(filter(None, [self.caption, *told])):
            table.caption, table.caption_justify = Text(caption), "left"
        for column, width in zip(shown, widths, strict=True):
            table.add_column(
                Text(broken(self._heads[column], width)),
                justify="right" if self._heads[column] in self._right else "left",
                overflow="fold",
                no_wrap=False,
            )
        for cells in self._rows:
            fitted = zip((cells[column] for column in shown), widths, strict=True)
            table.add_row(*(_fitted(cell, width) for cell, width in fitted))
        return table

    def _between(self, columns: int) -> int:
        return 2 * columns if self._lined else 2 * (columns - 1)

    def _texts(self, column: int) -> Iterator[str]:
        yield from [self._heads[column]] * self._shown
        yield from (line for cells in self._rows for line in cells[column].plain.splitlines())

    def _width(self, column: int) -> int:
        return max(map(cell_len, self._texts(column)), default=0)

    def _least_width(self, column: int) -> int:
        if self._heads[column] in self._whole:
            return self._width(column)
        pieces = (piece.rstrip() for text in self._texts(column) for piece in _pieces(text))
        return max(map(cell_len, pieces), default=0)

    def _widths(self, shown: Sequence[int], least: Sequence[int], room: int) -> list[int]:
        """Give what room is left to whatever would be broken most often."""
        wanted = [self._width(column) for column in shown]
        widths = [least[column] for column in shown]
        for _ in range(room - self._between(len(shown)) - sum(widths)):
            most = max(range(len(shown)), key=lambda i: wanted[i] / max(1, widths[i]))
            if widths[most] >= wanted[most]:
                break
            widths[most] += 1
        return widths


def broken(text: str, width: int) -> str:
    """Break a text into lines of a width, after blanks and punctuation wherever there are any.

    >>> broken("robustbench:cifar10/Linf/Carmon2019", 20).splitlines()
    ['robustbench:cifar10/', 'Linf/Carmon2019']
    """
    lines = [""]
    for piece in (piece for line in text.splitlines() for piece in [*_pieces(line), "\n"]):
        if piece == "\n":
            lines.append("")
        elif cell_len(lines[-1] + piece.rstrip()) <= width or not lines[-1]:
            lines[-1] += piece
        else:
            lines.append(piece)
    return "\n".join(line.rstrip() for line in lines[:-1])


def _pieces(text: str, depth: int = 0) -> Iterator[str]:
    for part in _BREAKS[depth].findall(text):
        if len(part) <= _LONG:
            yield part
        elif depth + 1 < len(_BREAKS):
            yield from _pieces(part, depth + 1)
        else:
            yield from (part[i : i + _LONGEST] for i in range(0, len(part), _LONGEST))


def _fitted(cell: Text, width: int) -> Text:
    if cell_len(cell.plain) <= width and "\n" not in cell.plain:
        return cell
    return Text(broken(cell.plain, width), style=cell.style)
