"""The configuration of a project: `[tool.robustkit]` of pyproject.toml, or robustkit.toml.

Errors name the file, the line, the key, and what to write instead.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from robustkit.core.arguments import SEEDS
from robustkit.core.text import seconds
from robustkit.data.sampling import PROPORTIONAL, Sample
from robustkit.errors import RobustkitError, UsageError, unknown
from robustkit.gate.criteria import METRICS
from robustkit.registry import read_criterion, read_threat, suites

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = ("robustkit.toml", "pyproject.toml")
BASELINE = Path("robustkit-baseline")
FIRST = """\
# What `robustkit check` runs. Everything is optional; the command line overrides it.
data = {data}  # or npz:PATH, folder:PATH, hf-data:FOLDER, module:function
threat = {threat}  # norm, and eps in units of inputs between 0 and 1
# criterion = "targeted:3"  # what breaks a point; by default any decision but its label
suite = {suite}
seed = 0
# n = 1000  # a fixed sample of the data; all points without it
# sample = "balanced"  # as many points of every class; by default each has its share
baseline = "robustkit-baseline"  # commit this folder; `robustkit baseline update` writes it

[[{table}models]]
model = {model}  # a registered defense, package.module:attr, or path/to/file.py:attr
# weights = "weights.safetensors"

[{table}check]
tolerance = 0.01  # accepted drop: one point in 100
metrics = ["robust", "flags"]  # "clean=0.02", certified, worst-class, tail-30, reliability
confidence = 0.95
undecided = "error"  # or pass, fail: what a gate does whose budget ends first
# max-time = "5m"
# max-forwards = 2_000_000
"""
_CURES = {
    "threat": "such as \"linf:8/255\" or \"l2:0.5\"",
    "criterion": "such as \"targeted:3\" or \"top5\"",
    "max-time": "such as \"90s\", \"5m\" or \"1h\"",
    "max-forwards": "such as 2_000_000",
    "tolerance": "such as 0.01, one point in 100",
    "confidence": "such as 0.95",
    "metrics": "such as [\"robust\", \"clean=0.02\"]",
    "undecided": "\"error\", \"pass\" or \"fail\"",
    "claim": "\"points\" or \"population\"",
    "models": "one table for each model: [[models]] with model = \"...\"",
    "n": "a number of points, such as 1000",
    "seed": "a whole number, such as 0",
    "mean": "one number for each channel, such as [0.49, 0.48, 0.45]",
    "std": "one number for each channel, such as [0.25, 0.24, 0.26]",
}  # fmt: skip


def _checked(read: Callable[[str], object]) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            read(text)
        except RobustkitError as error:
            raise ValueError(str(error)) from None
        return text

    return check


def _metric(text: str) -> str:
    name, _, number = text.partition("=")
    if name.strip() not in METRICS:
        raise ValueError(str(unknown("metric", name.strip(), METRICS)))
    float(number or 0)
    return text


ThreatText = Annotated[str, AfterValidator(_checked(read_threat))]
CriterionText = Annotated[str, AfterValidator(_checked(read_criterion))]
SuiteText = Annotated[str, AfterValidator(_checked(suites.build))]
Time = Annotated[str, AfterValidator(_checked(seconds))]
Metric = Annotated[str, AfterValidator(_metric)]
Number = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )


class ModelEntry(_Table):
    """One model to check; what it does not say is taken from the top."""

    model: str
    weights: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    data: str | None = None
    threat: ThreatText | None = None
    criterion: CriterionText | None = None
    suite: SuiteText | None = None
    n: Number | None = None
    baseline: str | None = None


class CheckTable(_Table):
    """What the gate demands, and what it may use."""

    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    metrics: list[Metric] = []
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    claim: Literal["points", "population"] = "points"
    undecided: Literal["error", "pass", "fail"] = "error"
    max_time: Time | None = None
    max_forwards: Number | None = None


class Config(_Table):
    """The whole table; `path` is where it was read, None where there is none."""

    data: str | None = None
    data_root: str | None = None
    threat: ThreatText | None = None
    criterion: CriterionText | None = None
    suite: SuiteText | None = None
    certify: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] | None = None
    n: Number | None = None
    sample: Sample = PROPORTIONAL
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    device: str = "auto"
    baseline: str = str(BASELINE)
    models: list[ModelEntry] = []
    check: CheckTable = CheckTable()
    path: Annotated[Path | None, Field(exclude=True)] = None

    @property
    def root(self) -> Path | None:
        """Where the data sets lie, if that is configured."""
        return self.place(self.data_root) if self.data_root else None

    def entry(self, model: str) -> ModelEntry:
        """Return what is configured for a model."""
        known = {entry.model: entry for entry in self.models}
        return known.get(model, ModelEntry(model=model))

    def weights(self, entry: ModelEntry) -> Path | None:
        """Return where the weights of a model lie, if that is configured."""
        return self.place(entry.weights) if entry.weights else None

    def place(self, text: str) -> Path:
        """Return a path of the configuration, which is relative to its file."""
        path = Path(text).expanduser()
        path = path if self.path is None else self.path.parent / path
        here = Path.cwd()  # shorter in reports, and the same on every machine
        return path.relative_to(here) if path.is_relative_to(here) else path


def find(folder: Path) -> Path | None:
    """Return the configuration that holds in `folder`: its own, or that of a folder above."""
    for place in (folder, *folder.parents):
        for name in NAMES:
            path = place / name
            if path.is_file() and (name != "pyproject.toml" or has_table(_text(path))):
                return path
    return None


def load(path: Path | None) -> Config:
    """Read a configuration; the defaults where there is none.

    Raises:
        UsageError: with file, line, key and cure.
    """
    if path is None:
        return Config()
    text = _text(path)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise UsageError(
            f"{path}: expected a configuration, got arrays or tables nested hundreds deep. Write "
            "lists of plain values."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: expected TOML, got an error: {error}.") from None
    inside: tuple[str, ...] = ("tool", "robustkit") if path.name == "pyproject.toml" else ()
    for name in inside:
        table = table.get(name, {})
    try:
        return Config.model_validate(table).model_copy(update={"path": path})
    except pydantic.ValidationError as error:
        raise UsageError(_told(path, text, inside, error)) from None


def first(*, model: str, data: str, threat: str, suite: str, pyproject: bool) -> str:
    """Return a first configuration, as a file of its own or as a table of pyproject.toml."""
    quoted = {
        key: json.dumps(value)  # a string of JSON is one of TOML
        for key, value in (("model", model), ("data", data), ("threat", threat), ("suite", suite))
    }
    body = FIRST.format(table="tool.robustkit." if pyproject else "", **quoted)
    if pyproject:
        comment, _, rest = body.partition("\n")
        return f"\n{comment}\n[tool.robustkit]\n{rest}"
    return body


def has_table(text: str) -> bool:
    """Tell whether a pyproject.toml sets anything of tool.robustkit; a comment sets nothing."""
    return re.search(r"^\s*\[*\s*tool\.robustkit\b", text, re.MULTILINE) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected a readable text file, got: {error}.") from None


def _told(path: Path, text: str, inside: tuple[str, ...], error: pydantic.ValidationError) -> str:
    """Say what is wrong first of all: file, line, key, cure."""
    wrong = error.errors()[0]
    keys = list(wrong["loc"])
    where = f"{path}:{line_of(text, [*inside, *keys])}"
    named = ".".join(map(str, [*inside, *keys])) or "the table"
    last = next((key for key in reversed(keys) if isinstance(key, str)), "")
    if wrong["type"] == "extra_forbidden":
        return f"{where}: {unknown('key', named, _known([*inside], keys))}"
    if wrong["type"] == "missing":
        return f"{where}: {named} is missing: write {last} = ..."
    message = wrong["msg"].removeprefix("Value error, ")
    cure = f" Write {_CURES[last]}." if last in _CURES else ""
    given = wrong["input"]
    known = isinstance(given, str) and repr(given) in message
    seen = "" if known else f", got {given!r}"
    return f"{where}: {named}: {message.rstrip('.')}{seen}.{cure}"


def _known(inside: list[str], keys: Sequence[str | int]) -> list[str]:
    """List the keys that may stand where an unknown one does."""
    tables: dict[str, type[_Table]] = {"models": ModelEntry, "check": CheckTable}
    table = tables.get(str(keys[0]), Config) if len(keys) > 1 else Config
    before = ".".join(map(str, [*inside, *keys[:-1]]))
    names = [f.alias or name for name, f in table.model_fields.items() if name != "path"]
    return [f"{before}.{name}" if before else name for name in names]


def line_of(text: str, keys: Sequence[str | int]) -> int:
    """Return the line of a key; of the nearest thing around it where it has none of its own.

    Tables may be written as [a.b] or [[a.b]], keys as a.b = ...
    """
    wanted, best, found = list(keys), 0, 1
    table: list[str | int] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        entry = re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if head:
            name = head[2]
            table = [part.strip(" \"'") for part in name.split(".")]
            if head[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                table.append(counts[name])
            here = table
        elif entry:
            here = [*table, *(part.strip("\"'") for part in entry[1].split("."))]
        else:
            continue
        same = sum(1 for _ in _common(here, wanted))
        if same == len(here) and same > best:
            best, found = same, number
    return found


def _common(a: Sequence[str | int], b: Sequence[str | int]) -> list[str | int]:
    shared: list[str | int] = []
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        shared.append(left)
    return shared
