"""From text to nested lists of words, each with its line."""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from robustkit.errors import UsageError

# A comment, a string, a parenthesis, or a word; brackets belong to their word, spaces and all.
_TOKEN = re.compile(r';[^\n]*|"[^"\n]*"|[()]|\[[^\]\n]*\]|(?:[^\s()\[\]";]+(?:\[[^\]\n]*\])?)|\S')
_DEPTH = 200


class Word(NamedTuple):
    """One word and where it stands."""

    text: str
    line: int


class Tree(NamedTuple):
    """What one pair of parentheses holds."""

    items: list[Node]
    line: int


Node: TypeAlias = "Word | Tree"


def at(name: str, line: int, message: str) -> UsageError:
    """Return an error about a line of the property."""
    return UsageError(f"{name}, line {line}: {message}")


def parse(text: str, name: str) -> list[Tree]:
    """Return the top-level expressions of a property.

    Raises:
        UsageError: naming the line, for parentheses that do not match and words outside of them.
    """
    found: list[Tree] = []
    open_trees: list[Tree] = []
    line, position = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", position, match.start())
        position, token = match.start(), match.group()
        if token.startswith(";"):
            continue
        if token == "(":
            if len(open_trees) == _DEPTH:
                raise at(name, line, f"expected at most {_DEPTH} nested parentheses, got more.")
            open_trees.append(Tree([], line))
        elif token == ")":
            if not open_trees:
                raise at(name, line, "expected '(' or the end, got ')': it closes nothing.")
            done = open_trees.pop()
            (open_trees[-1].items if open_trees else found).append(done)
        elif open_trees:
            open_trees[-1].items.append(Word(token, line))
        else:
            raise at(name, line, f"expected '(', got {token!r}: is this a VNN-LIB property?")
    if open_trees:
        begun = open_trees[-1].line
        raise at(name, line, f"expected ')', got the end: '(' of line {begun} is not closed.")
    return found
