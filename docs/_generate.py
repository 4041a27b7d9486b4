"""Writes the reference pages that follow from the code; a test fails when they are out of date.

python docs/_generate.py    # after a change of a registered class, a flag, a column or an option

`pages()` returns the pages for the test.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _across
import _claims
import click
from _columns import COLUMNS

from robustkit import registry
from robustkit.certify.supported import SUPPORTED
from robustkit.cli.program import program
from robustkit.core.losses import LOSSES
from robustkit.core.threat import Threat
from robustkit.errors import UsageError
from robustkit.leaderboard.rows import Row
from robustkit.models import checkpoints
from robustkit.search.protocol import needs_no_norm, suits
from robustkit.verify.flags import FLAGS

HERE = Path(__file__).resolve().parent
_SPECIAL = (
    "corruption:all",
    "style:mean,scale",
    "patch:5x5",
    "l0px:10",
    "linf:0.03+l2:0.5",
    "tabular:0.05",
    "edges:5%",
    "embed:0.05",
    "suffix:20",
)
NORMS = ("linf:0.1", "l2:1", "l1:8", "l0:10")
MARK = "<!-- Written by docs/_generate.py: change the code, then run it. -->\n"


def pages() -> dict[str, str]:
    """Return the generated pages: place in the site -> Markdown."""
    texts = {
        "reference/attacks.md": _attacks(),
        "reference/suites.md": _suites(),
        "reference/defenses.md": _defenses(),
        "reference/losses.md": _losses(),
        "reference/datasets.md": _datasets(),
        "reference/threats.md": _threats(),
        "reference/criteria.md": _criteria(),
        "reference/flags.md": _flags(),
        "reference/columns.md": _columns(),
        "reference/commands.md": _commands(),
        "reference/operations.md": _operations(),
        "explanation/claims.md": _claims.page(),
        "explanation/across-threats.md": _across.page(),
    }
    return {name: f"{MARK}\n{text.rstrip()}\n" for name, text in texts.items()}


def _entries(kind: str) -> list[Any]:
    """List what the distribution itself registers, not what packs of others do."""
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
    """Write an option as a spec has it."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_word, value))})"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


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
    items = re.sub(r"\n {5,}", "\n  ", items)
    return f"{body.strip()}\n\n{items.strip()}".strip()


def _norms(name: str) -> str:
    """Name the norms that an attack takes: it refuses the others when asked for its jobs."""
    taken = []
    for text in NORMS:
        try:
            registry.attacks.build(name).jobs(Threat.parse(text), 10)
        except UsageError:
            continue
        taken.append(text.partition(":")[0])
    return ", ".join(taken)


def _attacks() -> str:
    entries, libraries = _entries("attacks"), _entries("libraries")
    rows = [
        (f"[`{entry.name}`](#{entry.name})", _norms(entry.name), entry.summary,
         "yes" if entry.facts.get("white_box") else "no", _source(entry))
        for entry in entries
    ]  # fmt: skip
    others = [(f"`{entry.name}:NAME`", entry.summary, f"`{entry.name}`") for entry in libraries]
    return "\n".join([
        "# Attacks\n",
        "What `robustkit list attacks` prints, and the norms. An attack is asked for by its spec, "
        "such as `--attack \"apgd(loss=dlr, steps=50)\"`. Losses: "
        f"{', '.join(f'`{loss}`' for loss in LOSSES)}.\n",
        _table(["attack", "norms", "what it is", "uses gradients", "source"], rows),
        "## Attacks of other libraries\n",
        "They run by name, such as `--attack \"torchattacks:PGD(steps=50)\"`, on the same points, "
        "judged like ours, with passes counted inside the model. `foolbox:LinfDeepFoolAttack` and "
        "`autoattack:standard` are others:\n",
        _table(["library", "what it is", "extra"], others),
        "They keep their own defaults, which may be weak: the AutoAttack of torchattacks runs 10 "
        "steps where AutoAttack runs 100. The column `strength` says what each attack was set to. "
        "Batches of 100 points (`batch_size=100` in the spec) are the unit of resuming.\n",
        "What each of them takes. Without a radius an attack seeks the nearest success by itself, "
        "and what lies too far does not count. If most of what was told the radius lies outside, "
        "the flag `outside` is raised.\n",
        _table(["attack", "norms", "radius", "classes at least", "cannot run here"], _foreign()),
        *_sections(entries),
    ])  # fmt: skip


def _foreign() -> Iterator[tuple[str, ...]]:
    """List the classes of other libraries, from the table that they are checked by."""
    for library in _entries("libraries"):
        for name, entry in sorted(library.target.table.items()):
            lacks = f"it {entry.lacks}" if entry.lacks else ""
            radius = f"`{entry.radius}`" if entry.radius and not lacks else "–"
            norms = "" if lacks else ", ".join(entry.norms)
            yield f"`{library.name}:{name}`", norms or "–", radius, str(entry.classes), lacks


def _suites() -> str:
    entries = _entries("suites")
    rows = [
        (f"[`{entry.name}`](#{entry.name})", entry.summary, _source(entry)) for entry in entries
    ]
    parts = []
    for entry, section in zip(entries, _sections(entries), strict=True):
        built = registry.suites.build(entry.name)
        special = next(
            (text for text in _SPECIAL
             if needs_no_norm(built) and suits(built, registry.read_threat(text))), ""
        )  # fmt: skip
        threat = registry.read_threat(special or NORMS[0])
        specs = "\n".join(f"- `{spec}`" for spec in built.attacks(threat, ["NAME"]))
        where = "linf, for a model that declares one surrogate NAME"
        parts.append(f"{section}\nAt {special or where}:\n\n{specs}\n")
    return "\n".join([
        "# Suites\n",
        "A suite is a list of attacks with their budgets. Each attack gets the points that the "
        "ones before it left robust. Compare rows of one suite: a weaker suite flatters. Which one "
        "to take: [suites explained](../explanation/suites.md).\n",
        _table(["suite", "what it is", "source"], rows),
        *parts,
    ])  # fmt: skip


def _defenses() -> str:
    entries = _entries("defenses")
    rows = []
    for entry in entries:
        cards = [checkpoint.card for checkpoint in checkpoints.shipped(entry)]
        weights = sorted(
            f"{card.data} at {card.measured['threat']}{_special(entry, card)}"
            if "threat" in card.measured
            else card.data
            for card in cards
        )
        rows.append((f"[`{entry.name}`](#{entry.name})", entry.summary,
                     ", ".join(weights) or "none", _source(entry)))  # fmt: skip
    return "\n".join([
        "# Defenses\n",
        "What `robustkit list defenses` prints. Bundled weights are named with the threat model "
        "that they were measured under, and with the spec that asks for them where it is not the "
        "name alone. Each checkpoint has a card (`defenses/checkpoints/*.json`) with the command "
        "that trained it, its seed and measured accuracies.\n",
        _table(["defense", "what it is", "bundled weights", "source"], rows),
        *_sections(entries),
    ])  # fmt: skip


def _losses() -> str:
    entries = _entries("losses")
    rows = [
        (f"[`{entry.name}`](#{entry.name})", entry.summary, _source(entry)) for entry in entries
    ]
    return "\n".join([
        "# Losses\n",
        "What `robustkit list losses` prints: losses to train with, `loss=` of `undefended`, "
        "`pgd_at` and `trades`, such as `robustkit train \"pgd_at(loss=comp_sum(tau=0.5))\"`. In "
        "tables the spec of a loss with options stands in quotes. Which of them help: "
        "[losses explained](../explanation/losses.md). The losses that attacks climb are "
        "[others](attacks.md).\n",
        _table(["loss", "what it is", "source"], rows),
        *_sections(entries),
    ])  # fmt: skip


def _special(entry: Any, card: Any) -> str:
    """Name the options by which weights are asked for, where they are not the defaults."""
    given = {
        key: value
        for key, value in card.options.items()
        if _word(entry.options.get(key)) != _word(value)
    }
    text = ", ".join(f"{key}={_word(value)}" for key, value in given.items())
    return f" (`{entry.name}({text})`)" if given else ""


def _datasets() -> str:
    entries = _entries("datasets")
    rows = [
        (f"`{entry.name}`", entry.summary, f"`{entry.facts.get('threat') or ''}`".strip("`") or "–")
        for entry in entries
    ]
    own = [
        ("`npz:PATH`", "`x` (bytes as integers, or floats in [0, 1]; `[n, h, w]`, `[n, h, w, c]` "
         "or `[n, c, h, w]`) and `y`"),
        ("`folder:PATH`", "one subfolder of images per class, sorted by name; by number where all "
         "names are whole numbers (ImageFolder of torchvision sorts them as text)"),
        ("`hf-data:FOLDER`", "a data set of the Hugging Face Hub as it is downloaded, or what "
         "`save_to_disk` wrote; options `split`, `image`, `label`, `config`: "
         "`hf-data:FOLDER(split=validation, label=fine_label)`; extra `hf-data`"),
        ("`module:function`", "returns `(x, y)`; `path/to/file.py:function` likewise"),
        ("`(x, y)`", "from Python: two tensors or arrays; tensors are channels first where both "
         "axes could be"),
    ]  # fmt: skip
    return "\n".join([
        "# Data sets\n",
        _table(["name", "what it is", "usual threat model"], rows),
        "Named sets are looked for under `--data-root` or `ROBUSTKIT_DATA`, then in the cache, and "
        "downloaded if torchvision is installed. The bundled images (MIT license, Zalando SE; the "
        "color ones are CIFAR-10, JPEG) are in the package. CIFAR-10 is also read from JPEG files, "
        "and is then called `cifar10_jpeg`. "
        "Images stream: memory does not grow with n.\n",
        "## Data of your own\n",
        _table(["data", "what is expected"], own),
        "Models and attacks get contiguous float32 copies, whatever the storage: any integer type "
        "or float precision (bfloat16 tensors too), sliced, reversed, broadcast, column by column "
        "or of the other byte order. Floats that leave [0, 1] by a rounding of float32 are clipped "
        "to it, and a note in the record says so. From Python a threat model may have another box, "
        "`Threat(\"linf\", 0.1, lower=-1, upper=1)`, for floats in it; a point outside the box "
        "is an error at once.\n",
        "## Data that changes\n",
        "Every point is read again wherever it is used, and compared with its first reading. If it "
        "has changed, or cannot be read any more, the run ends with exit code 3 and both digests: "
        "no record is written, and the ledger keeps the verdicts on what the run began with. All "
        "points are read once more before the record. A file that another one replaces by a rename "
        "stays the one that was opened. `robustkit train` refuses to resume on other "
        "data than it began with.\n",
        "## Limits\n",
        "Nothing is unpacked before it is known to fit: an image of more than 67,108,864 pixels, a "
        "compressed array of more than 1 GiB whose size is over 200 times that of the file, or "
        "more than the free space of `TMPDIR`, labels of more than 1 GiB, and an npy header that "
        "promises more than the file holds are refused. Files are read, not mapped into memory.\n",
    ])  # fmt: skip


def _threats() -> str:
    entries = _entries("threats")
    rows = [(f"`{name}:EPS`", meaning, "[the norms](attacks.md)") for name, meaning in _BALLS]
    for entry in entries:
        anchor = entry.name.replace("@", "")
        rows.append((f"[`{entry.name}:...`](#{anchor})", entry.summary, _source(entry)))
    groups = {
        f"`{entry.name}:{group}`": ", ".join(f"`{name}`" for name in names)
        for entry in entries
        for group, names in getattr(entry.target, "groups", dict)().items()
    }
    sections = (text.rpartition("\n\nOptions:")[0] + "\n" for text in _sections(entries))
    return "\n".join([
        "# Threat models\n",
        "What `--threat` takes. A norm bounds how far an input may move, and attacks search the "
        "ball. Corruptions list the inputs of a point: all of them are tried, and the verdict is "
        "exact ([how to](../howto/corruptions.md)). Style moves an image along a few parameters, "
        "which are searched and certified ([explained](../explanation/style.md)). Rotations, "
        "patches, pixels, universal perturbations, and several models joined by `+`: "
        "[how to](../howto/threat-models.md). Tables with rules: [how to](../howto/tabular.md). "
        "Edges of a graph: [how to](../howto/graphs.md).\n",
        _table(["threat model", "what it is", "source"], rows),
        *sections,
        _table(["names", "what they stand for"], groups.items()),
    ])  # fmt: skip


def _criteria() -> str:
    entries = _entries("criteria")
    rows = [
        (
            f"[`{entry.name}`](#{entry.name})",
            " ".join(f"`{e}`" for e in entry.facts["examples"]),
            entry.summary,
            _source(entry),
        )
        for entry in entries
    ]
    sections = (text.rpartition("\n\nOptions:")[0] + "\n" for text in _sections(entries))
    return "\n".join([
        "# Criteria\n",
        "What `--criterion` takes: which decisions break a point ([how to](../howto/criteria.md)). "
        "It is part of the threat model, and may stand behind it: `linf:8/255 targeted:3`.\n",
        _table(["criterion", "such as", "when a point is broken", "source"], rows),
        *sections,
    ])  # fmt: skip


_BALLS = (
    ("linf", "every number of the input moves by at most EPS"),
    ("l2", "the Euclidean length of the change is at most EPS"),
    ("l1", "all changes together come to at most EPS"),
    ("l0", "at most EPS numbers change"),
)


def _flags() -> str:
    rows = [(f"`{flag.name}`", flag.severity, flag.raised, flag.remedy) for flag in FLAGS.values()]
    return "\n".join([
        "# Flags\n",
        "A flag is a reason to distrust a row. The record says what was seen, the table which "
        "flags were raised. No flag is no proof: the checks look for known faults. When they look, "
        "and what follows: [diagnostics](../explanation/flags.md).\n",
        _table(["flag", "severity", "raised if", "what to do"], rows),
    ])  # fmt: skip


def _columns() -> str:
    """Describe the columns in the order of the rows; a column without a description is an error."""
    if set(Row._fields) != set(COLUMNS):
        odd = sorted(set(Row._fields) ^ set(COLUMNS))
        raise ValueError(f"docs/_columns.py: expected COLUMNS to describe all of Row, got {odd}")
    return "\n".join([
        "# Columns of a leaderboard\n",
        "Accuracies are fractions of all n points, misclassified ones included. Rows are ordered "
        "by robust accuracy, then clean accuracy (both falling), then defense. A text that a "
        "spreadsheet would run as a formula is written with a leading `'`.\n",
        _table(["column", "meaning"], [(f"`{field}`", COLUMNS[field]) for field in Row._fields]),
    ])  # fmt: skip


def _operations() -> str:
    rows = [(kind, *entry) for kind, entry in SUPPORTED.items()]
    return "\n".join([
        "# Operations with bounds\n",
        "`ibp`, `crown`, `alpha-crown`, `auto` and certified training read a network by torch.fx "
        "and bound these operations, written as modules, functions or methods. Another one is "
        "refused with its name, the module it stands in, and the nearest that is known. Branch "
        "and bound (`complete`) needs linear operations and ReLUs alone.\n",
        _table(["kind", "operations", "bounds"], rows),
        "\nOf torchvision, `mobilenet_v2`, `shufflenet_v2_x0_5`, `efficientnet_b0`, "
        "`convnext_tiny` and `vit_b_16` are read; the intervals of the first four hold samples "
        "with the widening for float32, those of `vit_b_16` without it "
        "([benchmarks](benchmarks.md#bounds)).\n",
    ])  # fmt: skip


def _commands() -> str:
    parts = ["# Commands\n", "What `--help` prints after a command.\n"]
    for name, command in sorted(program.commands.items()):
        parts += _command(f"robustkit {name}", command, level=2)
    return "\n".join(parts)


def _command(path: str, command: Any, *, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{path}`\n\n{_prose(inspect.cleandoc(command.help or ''))}\n"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield _table(["option", "meaning"], map(_option, options))
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{path} {name}", inner, level=level + 1)


def _option(option: click.Option) -> tuple[str, str]:
    """Describe an option; not by click's own words, which change from version to version."""
    names = " / ".join(", ".join(part) for part in (option.opts, option.secondary_opts) if part)
    if not option.is_flag:
        kind = option.type
        choices = kind.choices if isinstance(kind, click.Choice) else ()
        names += f" {option.metavar or '|'.join(map(str, choices)) or kind.name.upper()}"
    ends = ["required"] if option.required else []
    ends += [f"from {option.envvar}"] if option.envvar else []
    ends += [f"at least {low}" for low in [getattr(option.type, "min", None)] if low is not None]
    if isinstance(option.show_default, bool) and option.show_default:
        ends.append(
            f"default: {option.opts[0].lstrip('-') if option.default is True else option.default}"
        )
    return f"`{names}`", f"{option.help or ''} ({', '.join(ends)})".removesuffix(" ()").strip()


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
