"""What the documents promise holds: commands, examples, catalogue, links, doctests, version."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

import robustkit
from robustkit import registry
from robustkit.cli.program import program as main
from robustkit.models import zoo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SITE = ROOT / "docs"
DOCUMENTS = [
    *(README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"),
    ROOT / "leaderboards" / "README.md",
    *(ROOT / "benchmarks" / name / "README.md" for name in ("gauntlet", "masks", "planted")),
    *sorted(SITE.rglob("*.md")),
]
EXTRAS = set(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
)
SET_UP = ["pip install -e . && robustkit evaluate", 'pip install -e ".[test]" && pytest']
SUBCOMMANDS = [
    command
    for group in main.commands.values()
    for command in getattr(group, "commands", {}).values()
]
CATALOGUE = {  # page of the site, heading of the table's first column
    ("reference/attacks.md", "attack"): registry.attacks,
    ("reference/attacks.md", "library"): registry.libraries,
    ("reference/suites.md", "suite"): registry.suites,
    ("reference/defenses.md", "defense"): registry.defenses,
    ("reference/losses.md", "loss"): registry.losses,
    ("reference/datasets.md", "name"): registry.datasets,
}
TOOLS = {"mkdocs", "mypy", "pytest", "ruff"}
PLACE = re.compile(r"\.?(robustkit|attacks|defenses|tests|leaderboards|benchmarks|ci)/[\w./*-]+")


class Block(NamedTuple):
    """A fenced block of a document, with the number of its first line."""

    language: str
    line: int
    text: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    fence = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in fence.finditer(text)
    ]


def prose(document: Path) -> str:
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def spans(document: Path) -> list[str]:
    """The inline code of a document."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def command_lines(document: Path) -> Iterator[str]:
    """Every line to type: all of a bash block, and what follows `$ ` in a console block."""
    for block in blocks(document):
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "console" and line.startswith("$ "):
                yield line[2:]
            elif block.language == "bash" and not line.startswith("#") and line.strip():
                yield line


def commands(line: str) -> list[list[str]]:
    """Split a line at && and cut its comment off: one list of words per command."""
    words = shlex.split(line, comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


FENCED = {
    f"{document.relative_to(ROOT)}: {shlex.join(words)}": words
    for document in DOCUMENTS
    for line in command_lines(document)
    for words in commands(line)
}
INLINE = {
    f"{document.relative_to(ROOT)}: {span}": span.split()
    for document in DOCUMENTS
    for span in spans(document)
    if span.startswith("robustkit ")
}


def cheap(words: list[str]) -> bool:
    """Tell whether a command answers at once from what the checkout holds."""
    if words[0] != "robustkit" or len(words) < 3:
        return False
    listing, ranking = words[1] == "list", words[1] == "leaderboard"
    return listing or (ranking and (ROOT / words[2]).exists()) or words[2] == "--help"


CHEAP = {name: words for name, words in {**FENCED, **INLINE}.items() if cheap(words)}


def test_the_first_lines_are_the_two_commands_that_set_everything_up() -> None:
    first = blocks(README)[0]
    lines = [" && ".join(map(shlex.join, commands(line))) for line in first.text.splitlines()]
    assert lines == [" && ".join(map(shlex.join, commands(line))) for line in SET_UP]
    assert first.language == "bash"
    assert first.line <= 5


@pytest.mark.parametrize("name", FENCED)
def test_a_command_can_be_typed_as_it_stands(name: str) -> None:
    program, *words = FENCED[name]
    if program == "robustkit":
        main.commands[words[0]].make_context(words[0], words[1:])
    elif program == "pip":
        assert words[0] == "install"
        asked = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert {extra for listed in asked for extra in listed.split(",")} <= EXTRAS
    elif program == "python":
        assert words[0] == "-m"
        place = ROOT / words[1].replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
    else:
        assert program in TOOLS, f"nothing here knows how to check {program!r}"


def test_there_are_commands_to_run() -> None:
    assert {words[1] for words in CHEAP.values()} >= {"list", "leaderboard"}


@pytest.mark.parametrize("name", CHEAP)
def test_a_cheap_command_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(main, CHEAP[name][1:])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestProse:
    def test_inline_commands_and_options_exist(self, document: Path) -> None:
        known = {
            option
            for command in [main, *main.commands.values(), *SUBCOMMANDS]
            for parameter in command.params
            for option in [*parameter.opts, *parameter.secondary_opts]
        }
        for span in spans(document):
            words = span.split()
            if words[0] == "robustkit" and len(words) > 1:
                assert words[1] in {*main.commands, "--version", "--help"}, span
            if words[0] in ("robustkit", "python") or span.startswith("--"):
                asked = {
                    word.split("=")[0].rstrip(",") for word in words if re.match(r"--\w", word)
                }
                own = known if words[0] != "python" else asked
                assert asked <= own | {"--help"}, span

    def test_files_and_links_exist(self, document: Path) -> None:
        text = prose(document)
        places = [span for span in spans(document) if PLACE.fullmatch(span)]
        missing = [place for place in places if not list(ROOT.glob(place))]
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        missing += [link for link in links if not (document.parent / link).exists()]
        assert not missing

    def test_anchors_exist(self, document: Path) -> None:
        for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", prose(document)):
            assert anchor in anchors(document.parent / link if link else document), (link, anchor)

    @pytest.mark.slow
    def test_names_in_the_package_exist(self, document: Path) -> None:
        for name in re.findall(r"\brobustkit(?:\.\w+)+", document.read_text(encoding="utf-8")):
            if not name.endswith((".toml", ".sarif", ".packs", ".git")):
                assert resolves(name), f"{name} is neither a module nor in one"

    def test_an_install_from_an_index_names_this_project(self, document: Path) -> None:
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"pip install (?:-\S+ )*[\"']?(robustkit[\w-]*)(?:\[([\w,]+)\])?", text)
        assert {name for name, _ in named} <= {"robustkit-eval"}
        assert {extra for _, listed in named for extra in listed.split(",") if extra} <= EXTRAS

    def test_every_fence_says_what_it_holds(self, document: Path) -> None:
        languages = {block.language for block in blocks(document)}
        assert languages <= {"bash", "console", "json", "python", "text", "toml", "yaml"}

    def test_nothing_is_left_to_fill_in(self, document: Path) -> None:
        assert "@@" not in document.read_text(encoding="utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def resolves(name: str) -> bool:
    """Tell whether a dotted name is a module, or an attribute that is reached from one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def table(page: str, heading: str) -> set[str]:
    """The names in the first column of a page's table with this heading."""
    found = re.search(
        rf"^\| {heading} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", prose(SITE / page), re.MULTILINE
    )
    assert found, f"docs/{page} has no table whose first column is {heading!r}"
    cells = [row.split("|")[1] for row in found[1].splitlines()]
    names = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    return {name.removesuffix(":NAME") for name in names}


@pytest.mark.parametrize(("page", "heading"), CATALOGUE)
def test_the_catalogue_names_all_that_is_registered_and_nothing_else(
    page: str, heading: str
) -> None:
    registered = {
        entry.name
        for entry in CATALOGUE[page, heading].entries()
        if entry.target.__module__.startswith("robustkit.")
    }
    assert table(page, heading) == registered


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks(README) if b.language == "python"])
def test_an_example_runs_as_it_stands(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"README.md:{block.line}\n{done.stderr}"


def modules() -> list[str]:
    """Every module by the name it is installed under; the packs are no sub-folders of robustkit."""
    found = []
    for folder, package in (
        ("robustkit", ""),
        ("attacks", "robustkit."),
        ("defenses", "robustkit."),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            name = package + ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append(name.removesuffix(".__init__"))
    return sorted(set(found) - {"robustkit.__main__"})


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)", text, re.MULTILINE)
    assert first is not None
    assert first[1] == robustkit.__version__


def test_the_sources_of_models_are_all_named() -> None:
    named = table("howto/models.md", "model")
    assert {cell.partition(":")[0] for cell in named} == set(zoo.prefixes())
