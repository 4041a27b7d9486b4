"""What mkdocs does before it builds: the catalogue, from the registry; pages that may be missing.

A hook of mkdocs.yml. `pages()` returns the generated pages for the tests as well.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

HERE = Path(__file__).resolve().parent
OPTIONAL = {"clusters.md": "Clusters"}  # of the how-to guides, where it has been written


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of OPTIONAL that exist."""
    guides: list[Any] = next(part["How to"] for part in config.nav or [] if "How to" in part)
    guides += [page for page in OPTIONAL if (HERE / page).is_file() and page not in guides]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages: place in the site -> Markdown."""
    return {
        "reference/attacks.md": _attacks(),
        "reference/suites.md": _suites(),
        "reference/defenses.md": _defenses(),
        "reference/datasets.md": _datasets(),
        "reference/flags.md": _flags(),
        "reference/columns.md": _columns(),
        "reference/commands.md": _commands(),
    }


def _entries(kind: str) -> list[Any]:
    """List what the distribution itself registers, not what packs of others do."""
    registry = importlib.import_module("robustkit.registry")
    found = getattr(registry, kind).entries()
    return [entry for entry in found if entry.target.__module__.startswith("robustkit.")]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("\n", " ").replace("|", "\\|") for cell in row] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def _options(entry: Any) -> str:
    given = (f"`{key}={_word(value)}`" for key, value in entry.options.items())
    return ", ".join(given) or "none"


def _word(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_word, value))})"
    return str(value)


def _source(entry: Any) -> str:
    cites = str(entry.facts.get("cites") or "")
    if found := re.fullmatch(r"arXiv:([\d.]+)", cites):
        return f"[{cites}](https://arxiv.org/abs/{found[1]})"
    return cites or "robustkit"


def _sections(entries: Iterable[Any]) -> Iterator[str]:
    """Describe each entry by its docstring."""
    for entry in entries:
        text = inspect.getdoc(entry.target) or ""
        yield f"## {entry.name}\n\n{_prose(text)}\n\nOptions: {_options(entry)}.\n"


def _prose(text: str) -> str:
    """Turn a docstring into Markdown: its section "Attributes:" becomes a list."""
    body, _, attributes = text.partition("\nAttributes:\n")
    items = re.sub(r"^ {4}(\w[\w, ]*):", r"- `\1`:", attributes, flags=re.MULTILINE)
    return f"{body.strip()}\n\n{items.strip()}".strip()


def _attacks() -> str:
    entries, libraries = _entries("attacks"), _entries("libraries")
    rows = [
        (f"[`{entry.name}`](#{entry.name})", entry.summary,
         "yes" if entry.facts.get("white_box") else "no", _source(entry))
        for entry in entries
    ]  # fmt: skip
    others = [(f"`{entry.name}:NAME`", entry.summary) for entry in libraries]
    return "\n".join([
        "# Attacks\n",
        "Written from the registry, as `robustkit list attacks` is. An attack is asked for by its "
        "spec, such as `--attack \"apgd(loss=dlr, steps=50)\"`.\n",
        _table(["attack", "what it is", "uses gradients", "source"], rows),
        "Attacks of other libraries run by name and are judged like ours:\n",
        _table(["library", "what it is"], others),
        *_sections(entries),
    ])  # fmt: skip


def _suites() -> str:
    threat = importlib.import_module("robustkit.core.threat").Threat.parse("linf:0.1")
    suites = importlib.import_module("robustkit.registry").suites
    entries = _entries("suites")
    rows = [
        (f"[`{entry.name}`](#{entry.name})", entry.summary, _source(entry)) for entry in entries
    ]
    parts = []
    for entry, section in zip(entries, _sections(entries), strict=True):
        listed = list(suites.build(entry.name).attacks(threat, ["STAND-IN"]))
        specs = "\n".join(f"- `{spec}`" for spec in listed)
        parts.append(f"{section}\nAt linf, for a model with one declared stand-in:\n\n{specs}\n")
    return "\n".join([
        "# Suites\n",
        "A suite is a line-up of attacks with its budgets. Each attack is given what the ones "
        "before it have left standing. Compare rows of one suite: a weaker suite flatters.\n",
        _table(["suite", "what it is", "source"], rows),
        *parts,
    ])  # fmt: skip


def _defenses() -> str:
    checkpoints = importlib.import_module("robustkit.models.checkpoints")
    entries = _entries("defenses")
    rows = []
    for entry in entries:
        weights = sorted({checkpoint.card.data for checkpoint in checkpoints.shipped(entry)})
        rows.append((f"[`{entry.name}`](#{entry.name})", entry.summary,
                     ", ".join(weights) or "none", _source(entry)))  # fmt: skip
    return "\n".join([
        "# Defenses\n",
        "Written from the registry, as `robustkit list defenses` is.\n",
        _table(["defense", "what it is", "weights in the box", "source"], rows),
        *_sections(entries),
    ])  # fmt: skip


def _datasets() -> str:
    entries = _entries("datasets")
    rows = [
        (f"`{entry.name}`", entry.summary, f"`{entry.facts.get('threat') or ''}`".strip("`") or "–")
        for entry in entries
    ]
    own = [
        ("`npz:PATH`", "`x` (uint8, or float in [0, 1]) and `y`"),
        ("`folder:PATH`", "one subfolder of images per class"),
        ("`module:function`", "returns `(x, y)`; `path/to/file.py:function` likewise"),
        ("`(x, y)`", "from Python: two tensors or arrays"),
    ]
    return "\n".join([
        "# Data sets\n",
        _table(["name", "what it is", "usual threat model"], rows),
        "Data of your own:\n",
        _table(["data", "what is expected"], own),
    ])  # fmt: skip


def _flags() -> str:
    """Take the catalog of flags if this version has one, else what the report explains."""
    intro = (
        "# Flags\n\nA flag is a reason to distrust a row. The record says what was seen, the table "
        "which flags were raised. No flag is no proof: the checks look for known faults.\n"
    )
    try:
        catalog = importlib.import_module("robustkit.verify.flags").FLAGS.values()
    except ModuleNotFoundError:
        glossary = importlib.import_module("robustkit.leaderboard.report.glossary").GLOSSARY
        named = [(f"`{name}`", text) for name, text in glossary if re.fullmatch(r"[a-z_]+", name)]
        rows = [row for row in named if row[0] not in ("`rank`", "`suite`")]
        return f"{intro}\n{_table(['flag', 'meaning'], rows)}"
    rows = [(f"`{f.name}`", f.severity, f.raised, f.remedy) for f in catalog]
    return f"{intro}\n{_table(['flag', 'severity', 'raised if', 'what to do'], rows)}"


def _columns() -> str:
    """Take the table of columns from the leaderboards' own document, in the order of the rows."""
    document = (HERE.parent / "leaderboards" / "README.md").read_text(encoding="utf-8")
    fields = importlib.import_module("robustkit.leaderboard").Row._fields
    lines = [line for line in document.splitlines() if re.match(r"\| `\w+`", line)]
    described = {
        name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    missing = [field for field in fields if field not in described]
    if missing:
        raise ValueError(f"leaderboards/README.md does not explain the columns {missing}")
    listed = list(dict.fromkeys(described[field] for field in fields))
    return "\n".join([
        "# Columns of a leaderboard\n",
        "Accuracies are fractions of all n points; eps is in units of inputs in [0, 1]. How ties "
        "are found: [how to read robust accuracy](../explanation/robust-accuracy.md#ties).\n",
        "| column | meaning |\n| --- | --- |",
        "\n".join(listed).replace(" (see below)", ""),
    ])  # fmt: skip


def _commands() -> str:
    main = importlib.import_module("robustkit.cli").main
    parts = ["# Commands\n", "`robustkit COMMAND --help` prints the same.\n"]
    for name, command in sorted(main.commands.items()):
        parts += _command(f"robustkit {name}", command, level=2)
    return "\n".join(parts)


def _command(path: str, command: Any, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{path}`\n\n{_prose(inspect.cleandoc(command.help or ''))}\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    context = click.Context(command, info_name=path)
    rows = []
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            rows.append((f"`{record[0]}`", record[1]))
    if rows:
        yield _table(["option", "meaning"], rows)
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", inner, level=level + 1)
