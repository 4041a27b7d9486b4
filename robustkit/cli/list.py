"""`robustkit list`: what is registered, with options and origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options
from robustkit.cli.console import result, stdout
from robustkit.cli.program import debug
from robustkit.core.text import shown_json

if TYPE_CHECKING:
    from robustkit.registry import Entry

SCHEMA = "robustkit/list/1"
_KINDS = ("attacks", "defenses", "losses", "datasets", "suites", "libraries", "threats", "criteria")


@click.command("list", short_help="List what can be asked for by name.")
@click.argument("kind", type=click.Choice(_KINDS), metavar="|".join(_KINDS))
@options.as_json
@debug
def command(kind: str, as_json: bool) -> None:
    """List attacks, libraries, defenses, losses, datasets, suites, threat models or criteria."""
    from robustkit import registry

    entries = getattr(registry, kind).entries()
    rows = [_row(entry, weights=kind == "defenses") for entry in entries]
    if as_json:
        result(shown_json({"schema": SCHEMA, "kind": kind, "entries": rows}))
    else:
        _print(rows)


def _row(entry: Entry, *, weights: bool) -> dict[str, Any]:
    facts = {key: value for key, value in entry.facts.items() if value not in ("", None)}
    row = {
        "name": entry.name,
        "summary": entry.summary,
        "options": options_of(entry),
        "source": facts.pop("cites", None) or entry.origin,
        "origin": entry.origin,
        "facts": {key: _plain(value) for key, value in facts.items()},
    }
    if weights:
        from robustkit.models.checkpoints import shipped

        row["weights"] = sorted({checkpoint.card.data for checkpoint in shipped(entry)})
    return row


def options_of(entry: Entry) -> dict[str, Any]:
    """Return option and default; named threats and criteria are chosen by their text alone."""
    from robustkit.core.criterion import Criterion
    from robustkit.core.named import NamedThreat

    by_text = (NamedThreat, Criterion)
    known = {} if issubclass(entry.target, by_text) else entry.options
    return {key: _plain(value) for key, value in known.items()}


def _print(rows: list[dict[str, Any]]) -> None:
    from robustkit.core.terminal_table import TerminalTable

    columns = ["name", "summary", "options", "source"]
    columns += ["weights"] if rows and "weights" in rows[0] else []
    table = TerminalTable(*columns, least=("weights", "source", "options"), whole=("name",))
    for row in rows:
        given = ", ".join(f"{key}={_word(value)}" for key, value in row["options"].items())
        cells = {**row, "options": given, "weights": ", ".join(row.get("weights", ()))}
        table.add_row(*(cells[column] for column in columns))
    stdout().print(table)


def _plain(value: Any) -> Any:
    """Return `value` as a JSON value."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _word(value: Any) -> str:
    return "(" + ", ".join(map(_word, value)) + ")" if isinstance(value, list) else str(value)
