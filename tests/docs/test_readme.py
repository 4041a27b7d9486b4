"""The README is read in one sitting, and what it shares with the site is the same there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SITE = ROOT / "docs"
GENERATED = ("attacks", "columns", "commands", "datasets", "defenses", "flags", "losses", "suites")
MOST_BYTES = 12_288


def names(text: str) -> set[str]:
    """The first cells of all rows of a document's tables, without heads."""
    tables = re.findall(r"^\|.*\|\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    cells = {row.split("|")[1] for found in tables for row in found.splitlines()}
    return {re.sub(r"[\[`\] ]|\(#.*\)", "", cell) for cell in cells}


def python(text: str) -> list[str]:
    return re.findall(r"^```python.*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_it_is_short() -> None:
    assert len(README.encode()) <= MOST_BYTES, "move what is new to docs/ and link it"


def test_it_repeats_no_generated_table() -> None:
    for name in GENERATED:
        generated = names((SITE / "reference" / f"{name}.md").read_text(encoding="utf-8"))
        assert generated, f"docs/reference/{name}.md has no table"
        assert not generated & names(README), f"link docs/reference/{name}.md instead"


def test_the_tutorial_writes_the_same_attack() -> None:
    (attack,) = [text for text in python(README) if text.startswith("# attacks/drift.py\n")]
    tutorial = python((SITE / "tutorials" / "attack.md").read_text(encoding="utf-8"))[0]
    assert attack == f"# attacks/drift.py\n{tutorial}"
