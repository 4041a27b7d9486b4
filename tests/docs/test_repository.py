"""What the repository says to those who carry on: citation, workflows, templates, the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import robustkit

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_names_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert str(citation["version"]) == robustkit.__version__
    assert citation["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.$-])((?:tests|\./\.github)/[\w./-]+|CITATION\.cff)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert read(path)["permissions"] == {"contents": "read"}


def test_the_tests_that_the_table_of_threats_names_are_there() -> None:
    text = (ROOT / "docs" / "reference" / "evidence.md").read_text(encoding="utf-8")
    found, file = list[tuple[str, str]](), ""
    for named, test in re.findall(r"`([\w/]+\.py)?::(\w+)`", text):
        file = named or file
        found.append((file, test))
    assert len(found) > 15
    tests = {name: (ROOT / "tests" / name).read_text(encoding="utf-8") for name, _ in found}
    assert [pair for pair in found if f"def {pair[1]}(" not in tests[pair[0]]] == []


def test_a_release_is_published_without_a_stored_secret() -> None:
    path = ROOT / ".github" / "workflows" / "release.yml"
    publish = read(path)["jobs"]["publish"]
    assert publish["permissions"]["id-token"] == "write"
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_issue_forms_ask_for_what_a_maintainer_needs() -> None:
    forms = [read(path) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
    assert len(forms) == 2
    assert all(form["name"] and form["description"] and form["body"] for form in forms)
    (bug,) = [form for form in forms if "bug" in form["labels"]]
    assert {"command", "outcome", "doctor"} == {field["id"] for field in bug["body"]}


def test_the_image_gets_all_that_the_wheel_is_built_from() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    needed = {"pyproject.toml", "README.md", "LICENSE", "robustkit", "attacks", "defenses"}
    needed |= {"leaderboards/published"}
    assert kept == needed
    assert all((ROOT / name).exists() for name in kept)
