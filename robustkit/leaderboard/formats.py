"""Five ways to write the table of a leaderboard down: CSV, JSON, Markdown, LaTeX, terminal.

Names come from users: no way of writing lets one act as markup, or as a spreadsheet formula.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import pandas as pd
from rich.console import Group

from robustkit.core.terminal_table import TerminalTable
from robustkit.core.text import clean, shown_json, spreadsheet, with_interval
from robustkit.leaderboard import grouping

SCHEMA = "robustkit/rows/1"
_SOUND = " No flags were raised: every row is reliable."
OF_PROMPTS = ("refusal", "attack_success", "over_refusal")
_DIGITS = {
    **dict.fromkeys(("clean", "robust", "robust_low", "robust_high", *OF_PROMPTS), ".4f"),
    **dict.fromkeys(("audit_bound", "certified", "undecided"), ".4f"),
    **dict.fromkeys(("worst_class", "tail_30", "severity_5", "worst_corruption"), ".4f"),
    **dict.fromkeys(("mean_corrupted", "mean_corrupted_low", "mean_corrupted_high"), ".4f"),
    **dict.fromkeys(("forwards_per_point", "backwards_per_point"), ".2f"),
    **dict.fromkeys(("eps", "mean", "q10", "q25", "median", "q75", "q90"), ".6g"),
    "seconds": ".1f",
}
_LATEX = str.maketrans(
    {
        **{special: f"\\{special}" for special in "{}$&#%_"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--"},
    }
)
_READ = {  # heading in Markdown and LaTeX, and its alignment
    **{"rank": "l", "defense": "l", "n": "r", "clean": "r", "robust": "r", "95% interval": "r"},
    **{
        "may miss": "r",
        "certified": "r",
        "worst class": "l",
        "tail 30%": "r",
        "strongest attack": "l",
    },
    **{"suite": "l", "F/pt": "r", "B/pt": "r", "verdict": "l", "flags": "l"},
}
# What a narrow terminal does without, the first of them first: the verdict says what flags mean,
# and rows stand in the order of their ranks.
_LEAST = ("strongest attack", "worst class", "F/pt", "may miss", "rank", "flags", "certified")
_WHOLE = ("rank", "clean", "robust [95%]", "mean [95%]", "severity 5", "may miss", "certified",
          "refusal", "success", "over-refusal", "F/pt", "verdict")  # fmt: skip
_CONTRACT = (
    *("defense", "data", "norm", "eps", "n", "clean", "robust", "robust_low", "robust_high"),
    *("certified", "randomized", "flags", "strongest_attack", "suite", "forwards_per_point"),
    *("backwards_per_point", "seconds", "seed", "record"),
    *("rank", "worst_class", "worst_class_name", "tail_30", "audit_bound", "strength"),
    "reliability",
    *("undecided", "audit_halving", "mean_corrupted", "mean_corrupted_low"),
    *("mean_corrupted_high", "severity_5", "worst_corruption", "worst_corruption_name"),
    *("corruptions", *OF_PROMPTS),
)
_Cells: TypeAlias = Mapping[str, Any]


class Link(NamedTuple):
    """A cell that leads to an address on the web."""

    text: str
    address: str

    @property
    def safe(self) -> str:
        """The address so that no markup ends it; "" unless it is one of http or https."""
        return quote(self.address, safe=_ADDRESS) if _WEB.fullmatch(self.address) else ""


Cell: TypeAlias = str | Link
_WEB = re.compile(r"https?://[^\s/]+\S*")
_ADDRESS = ":/?#@!$&'*+,;=%~"  # what an address is made of, without brackets and backslashes


def to_csv(frame: pd.DataFrame) -> str:
    """Write every column; accuracies with four digits, eps with six, lines ending in LF."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(frame.columns)
    for cells in _rows(frame):
        writer.writerow([_csv_cell(name, value) for name, value in cells.items()])
    return file.getvalue()


def to_json(frame: pd.DataFrame, **more: pd.DataFrame) -> str:
    """Write the object of `robustkit evaluate --json`: numbers unrounded, null for what is not.

    More tables follow `rows`, under the names given.
    """
    rows = [{name: cells[name] for name in _CONTRACT if name in cells} for cells in _rows(frame)]
    for cells in rows:
        cells["flags"] = cells["flags"].split(";") if cells["flags"] else []
    beside = {name: _rows(table) for name, table in more.items()}
    return shown_json({"schema": SCHEMA, "rows": rows, **beside})


def to_markdown(frame: pd.DataFrame) -> str:
    """Write one table per data set, norm and eps, with the columns that are read by people."""
    return "\n".join(
        _markdown_table(title, _heads(rows), map(_read, rows)) for title, rows in _tables(frame)
    )


def to_latex(frame: pd.DataFrame) -> str:
    r"""Write one `tabular` per data set, norm and eps; needs `\usepackage{booktabs}`."""
    return "\n".join(
        _latex_table(title, _heads(rows), map(_read, rows)) for title, rows in _tables(frame)
    )


def to_rich(frame: pd.DataFrame) -> Group:
    """Build one table per data set, norm and eps, for a terminal.

    A narrow one has no room for all that is read; other ways of writing have what is left out.
    """
    return Group(*(_terminal(title, rows) for title, rows in _tables(frame)))


def to_lines(title: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]], layout: str) -> str:
    """Write a table of texts and links, under headings, as `markdown` or `latex`."""
    write = {"markdown": _markdown_table, "latex": _latex_table}[layout]
    return write(title, dict.fromkeys(heads, "l"), rows)


def _markdown_table(title: str, heads: Mapping[str, str], rows: Iterable[Sequence[Cell]]) -> str:
    """Write a table under headings, each with its alignment, l or r."""
    marks = ["---" if side == "l" else "---:" for side in heads.values()]
    lines = [f"**{markdown_text(title)}**", "", piped(heads), piped(marks)]
    return "\n".join([*lines, *(piped(map(_markdown_cell, cells)) for cells in rows)]) + "\n"


def _latex_table(title: str, heads: Mapping[str, str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = [f"% {_latex(title)}", rf"\begin{{tabular}}{{{''.join(heads.values())}}}", r"\toprule"]
    lines += [_aligned(heads), r"\midrule", *map(_aligned, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame`, with None for whatever pandas has put in its place."""
    return [
        {str(name): None if value is None or value != value else value for name, value in r.items()}
        for r in frame.to_dict("records")
    ]


def _tables(frame: pd.DataFrame) -> list[tuple[str, list[_Cells]]]:
    def heading(cells: _Cells) -> str:
        return grouping.title(cells["data"], cells["norm"], cells["eps"])

    return [(text, list(rows)) for text, rows in groupby(_rows(frame), key=heading)]


def _heads(rows: Sequence[_Cells]) -> Mapping[str, str]:
    """The headings of one table, each with its alignment."""
    return {**_READ, **dict.fromkeys({**_of_prompts(rows[0]), **_corrupted(rows[0])}, "r")}


def _read(cells: _Cells) -> list[str]:
    """The cells below the headings `_heads`, as text."""
    return [
        cells["rank"],
        cells["defense"],
        str(cells["n"]),
        f"{cells['clean']:.4f}",
        f"{cells['robust']:.4f}",
        f"{cells['robust_low']:.4f}–{cells['robust_high']:.4f}",
        "" if cells["audit_bound"] is None else f"{cells['audit_bound']:.4f}",
        "" if cells["certified"] is None else f"{cells['certified']:.4f}",
        f"{cells['worst_class']:.4f} ({cells['worst_class_name']})",
        f"{cells['tail_30']:.4f}",
        cells["strongest_attack"] or "",
        cells["suite"] or "",
        f"{cells['forwards_per_point']:.1f}",
        f"{cells['backwards_per_point']:.1f}",
        cells["reliability"],
        ", ".join(_flags(cells)),
        *_of_prompts(cells).values(),
        *_corrupted(cells).values(),
    ]


def _of_prompts(cells: _Cells) -> dict[str, str]:
    """The cells of a model of prompts, by heading: never refusal without over-refusal."""
    if all(cells.get(name) is None for name in OF_PROMPTS):
        return {}
    told = zip(("refusal", "success", "over-refusal"), map(cells.get, OF_PROMPTS), strict=True)
    return {head: "–" if share is None else f"{share:.3f}" for head, share in told}


def _flags(cells: _Cells) -> list[str]:
    names = cells["flags"].split(";") if cells["flags"] else []
    return ["randomized"] * (cells["randomized"] and "randomized" not in names) + names


def _terminal(title: str, rows: Sequence[_Cells]) -> TerminalTable:
    lines = [_shown(cells) for cells in rows]
    heads = [head for head in lines[0] if _tells(head, {line[head] for line in lines})]
    table = TerminalTable(*heads, least=_LEAST, whole=_WHOLE, lined=True)
    sizes = sorted({cells["n"] for cells in rows})
    table.title = clean(f"{title}, n = {'–'.join(map(str, sizes[:1] + sizes[1:][-1:]))}")
    if not any(line["flags"] or line["verdict"] != "reliable" for line in lines):
        table.caption = _SOUND
    for line in lines:
        table.add_row(*(line[head] or "–" for head in heads))
    return table


def _tells(head: str, told: set[str]) -> bool:
    """Whether a column says anything."""
    return any(told) and told != {"reliable"} and not (head == "suite" and len(told) == 1)


def _shown(cells: _Cells) -> dict[str, str]:
    """The cells of one line in a terminal, by heading."""
    low, high = cells["robust_low"], cells["robust_high"]
    return {
        "rank": cells["rank"],
        "defense": clean(cells["defense"]),
        "clean": f"{cells['clean']:.3f}",
        "robust [95%]": with_interval(cells["robust"], low, high),
        **_of_prompts(cells),
        **_corrupted(cells),
        "may miss": "" if cells["audit_bound"] is None else f"{cells['audit_bound']:.3f}",
        "certified": "" if cells["certified"] is None else f"{cells['certified']:.3f}",
        "worst class": f"{cells['worst_class']:.3f} {clean(cells['worst_class_name'])}",
        "suite": clean(cells["suite"] or "").partition("(")[0],
        "strongest attack": clean(cells["strongest_attack"] or "").partition("(")[0],
        "F/pt": f"{cells['forwards_per_point']:,.0f}",
        "verdict": cells["reliability"],
        "flags": "\n".join(map(clean, _flags(cells))),
    }


def _corrupted(cells: _Cells) -> dict[str, str]:
    """The cells of a finite threat model; a table of others has none."""
    if cells.get("mean_corrupted") is None:
        return {}
    low, high = cells["mean_corrupted_low"], cells["mean_corrupted_high"]
    hardest = cells["severity_5"]
    return {
        "mean [95%]": with_interval(cells["mean_corrupted"], low, high),
        "severity 5": "" if hardest is None else f"{hardest:.3f}",
        "worst": f"{cells['worst_corruption']:.3f} {clean(cells['worst_corruption_name'])}",
    }


def _csv_cell(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return f"{value:{_DIGITS.get(name, '')}}"
    return spreadsheet(str(value))


def markdown_text(text: str) -> str:
    """Return `text` so that nothing in it acts as markup."""
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", clean(text))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it stands for itself
    text = re.sub(r"(?<=www)(?=\.)|(?=://)", r"\\", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return markdown_text(cell)
    text = markdown_text(cell.text)
    return f"[{text}]({cell.safe})" if cell.safe else text


def _latex(text: str) -> str:
    return clean(text).translate(_LATEX)


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _latex(cell)
    address = re.sub(r"([%#&])", r"\\\1", cell.safe)
    return rf"\href{{{address}}}{{{_latex(cell.text)}}}" if address else _latex(cell.text)


def piped(cells: Iterable[str]) -> str:
    """Write one line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def _aligned(cells: Iterable[Cell]) -> str:
    return " & ".join(map(_latex_cell, cells)) + r" \\"
