"""The time and the table in the README are those that the benchmark writes."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from benchmarks.first_minute import Look, rewritten

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_it_finds_what_it_rewrites_in_the_readme() -> None:
    looks = [Look(wall, f"the table of {wall}   \n", {}) for wall in (11.0, 12.4, 90.0)]
    text = rewritten(README, looks)
    assert "```console\n$ robustkit evaluate\nthe table of 90.0\n```" in text
    assert "It takes about 12 seconds on two CPU cores" in text
    assert rewritten(text, looks) == text


def test_a_readme_without_the_block_is_refused() -> None:
    with pytest.raises(click.ClickException, match="expected one match"):
        rewritten(README.replace("$ robustkit evaluate\n", "", 1), [Look(1.0, "", {})])
