"""The documentation site: its examples run, its reference is up to date, and it builds offline."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

import pytest

from robustkit import registry
from robustkit.cli.program import program as main
from robustkit.leaderboard.rows import Row

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs"
PAGES = sorted(path for path in SITE.rglob("*.md"))


def module(name: str) -> ModuleType:
    """Import a script of the site, which is no package."""
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # so that another process finds its functions
    spec.loader.exec_module(loaded)
    return loaded


sys.path.insert(0, str(SITE))  # _generate imports its neighbor
examples, generate = module("_examples"), module("_generate")
RUN = [
    path
    for path in PAGES
    if any(
        block.rule != "skip" and not block.title and block.language != "text"
        for block in examples.blocks(path.read_text(encoding="utf-8"))
    )
]


def run_page(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SITE / "_examples.py"), str(path), *flags],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(SITE).as_posix())
def test_a_page_does_what_it_says(path: Path, processes: BaseContext) -> None:
    with ProcessPoolExecutor(1, mp_context=processes) as process:
        faults = process.submit(examples.faults_of, path).result()
    assert not faults, "\n".join(faults)


class TestExamples:
    @pytest.mark.slow
    def test_a_wrong_output_an_error_and_a_wrong_exit_code_are_seen_and_outputs_renewed(
        self, tmp_path: Path
    ) -> None:
        page = tmp_path / "page.md"
        page.write_text(
            '```text title="a.txt"\n7\n```\n\n```python\nprint(open("a.txt").read())\n```\n\n'
            "```text\n8\n```\n\n```python\n1 / 0\n```\n\n```bash\nrobustkit list nothing\n```\n"
        )
        done = run_page(page, "--update")
        assert done.returncode == 1
        for fault in ("the page shows\n8\nbut it prints\n7", "ZeroDivisionError", "exit code 2 of"):
            assert fault in done.stderr
        assert "```text\n7\n\n```" in page.read_text()

    def test_synthetic_data_are_run_on_but_not_compared(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(
            "<!-- synthetic: CIFAR-10 -->\n```python\nimport robustkit\n"
            'print(len(robustkit.open_dataset("cifar10")))\n```\n\n```text\n10000\n```\n\n'
            "<!-- synthetic: CIFAR-10 -->\n```console\n$ robustkit list nothing\n```\n"
        )
        (fault,) = run_page(page).stderr.split("page.md: ")[1:]
        assert "exit code 2 of" in fault

    @pytest.mark.parametrize(
        ("shown", "told", "figures", "alike"),
        [
            ("a\nb", "a  \nb\n", True, True),
            ("took 1.2 s", "took 31 s", True, True),
            ("runs-12ab34cd/x", "runs-00000000/x", True, True),
            ("a ... c", "a b c", True, True),
            ("0.76", "0.77", True, False),
            ("robust 0.76", "robust 0.7", False, True),
            ("robust 0.76", "clean 0.76", False, False),
        ],
    )
    def test_outputs_are_compared_but_for_what_varies(
        self, shown: str, told: str, figures: bool, alike: bool
    ) -> None:
        assert examples.same(shown, told, figures=figures) == alike


class TestReference:
    @pytest.mark.parametrize("name", generate.pages())
    def test_a_page_is_what_the_code_says(self, name: str) -> None:
        written = (SITE / name).read_text(encoding="utf-8")
        assert written == generate.pages()[name], "run `python docs/_generate.py`"

    @pytest.mark.parametrize(
        "kind",
        ["attacks", "suites", "defenses", "losses", "datasets", "libraries", "threats", "criteria"],
    )
    def test_it_names_all_that_is_registered(self, kind: str) -> None:
        page = generate.pages()[f"reference/{'attacks' if kind == 'libraries' else kind}.md"]
        names = {
            entry.name
            for entry in getattr(registry, kind).entries()
            if entry.target.__module__.startswith("robustkit.")
        }
        listed = re.findall(r"^\| \[?`([\w@-]+)[`:]", page, re.MULTILINE)
        assert names <= set(listed)

    def test_every_column_command_and_option_is_there(self) -> None:
        pages = generate.pages()
        listed = re.findall(r"^\| `(\w+)` \|", pages["reference/columns.md"], re.MULTILINE)
        assert listed == list(Row._fields)
        for name, command in main.commands.items():
            assert f"## `robustkit {name}`" in pages["reference/commands.md"]
            for parameter in command.params:
                if parameter.opts[0].startswith("--"):
                    assert parameter.opts[0] in pages["reference/commands.md"]

    def test_the_template_is_the_pack_that_is_tested(self) -> None:
        guide = examples.blocks((SITE / "howto" / "plugins.md").read_text(encoding="utf-8"))
        files = {block.title: block.text for block in guide if block.title}
        assert len(files) == 4
        for name, text in files.items():
            assert text == (ROOT / "tests" / "example_pack" / name).read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    listed = re.findall(
        r"^ +- .*?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(listed) == sorted(path.relative_to(SITE).as_posix() for path in PAGES)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_server_for_anything(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    sources = [path.relative_to(SITE).as_posix() for path in PAGES]
    assert {source.replace(".md", ".html") for source in sources} <= built
    for path in tmp_path.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        asked = re.findall(
            r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(https?:[^\" >]+)", text
        )
        assert not asked, path
    # Search from disk: the index is a script, and a worker is a frame.
    assert (tmp_path / "search" / "search_index.js").is_file()
    assert 'src="iframe-worker.js"' in (tmp_path / "index.html").read_text(encoding="utf-8")
