"""From assertions to alternatives: linear terms, comparisons, and, or, not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from robustkit.certify.vnnlib.lexer import Node, Tree, Word, at
from robustkit.errors import UsageError

_MOST = 2**16  # alternatives of one property


class Linear(NamedTuple):
    """A sum of variables, by their index, and a constant."""

    terms: dict[int, float]
    constant: float


class Atom(NamedTuple):
    """Sum of terms ≤ limit, or < where `strict`."""

    terms: dict[int, float]
    limit: float
    strict: bool


Alternatives: TypeAlias = list[list[Atom]]  # an `or` of `and`
Find: TypeAlias = Callable[[Word], int | None]


class Formulas:
    """Reads the assertions of one property. `find` gives the index of a variable's name."""

    def __init__(self, name: str, find: Find) -> None:
        self.name, self.find = name, find

    def alternatives(self, node: Node, negated: bool = False) -> Alternatives:
        """Return the alternatives of an assertion, or of its opposite.

        Raises:
            UsageError: naming the line, for what is not linear or not of the language.
        """
        head, rest = self._head(node)
        if head in ("and", "or"):
            parts = [self.alternatives(child, negated) for child in rest]
            if not parts:
                raise self._error(node, f"expected something to join, got an empty '{head}'")
            if (head == "and") != negated:
                return self.all_of(parts, node.line)
            return [conjunction for part in parts for conjunction in part]
        if head == "not" and len(rest) == 1:
            return self.alternatives(rest[0], not negated)
        if head in ("<=", ">=", "<", ">", "=", "==", "!=") and len(rest) == 2:
            return self._comparison(head, self.linear(rest[0]), self.linear(rest[1]), negated)
        raise self._error(
            node,
            f"expected and, or, not, or a comparison (<= >= < > == !=) of two terms, got {head!r}",
        )

    def all_of(self, parts: list[Alternatives], line: int) -> Alternatives:
        """Return the alternatives in which every part holds.

        Raises:
            UsageError: when they are too many.
        """
        joined: Alternatives = [[]]
        for part in parts:
            if len(joined) * len(part) > _MOST:
                raise at(
                    self.name,
                    line,
                    f"expected at most {_MOST:,} alternatives once every 'and' of 'or' is written "
                    "out, got more: split the property into several files.",
                )
            if len(part) == 1:  # thousands of bounds, one assertion each
                for conjunction in joined:
                    conjunction.extend(part[0])
            else:
                joined = [[*left, *right] for left in joined for right in part]
        return joined

    def _comparison(self, sign: str, left: Linear, right: Linear, negated: bool) -> Alternatives:
        if negated:
            opposite = {
                "<=": ">",
                ">=": "<",
                "<": ">=",
                ">": "<=",
                "!=": "==",
                "=": "!=",
                "==": "!=",
            }
            sign = opposite[sign]
        low, high = _at_most(left, right, False), _at_most(right, left, False)
        if sign in ("<=", ">="):
            return [[low if sign == "<=" else high]]
        if sign in ("<", ">"):
            return [[(low if sign == "<" else high)._replace(strict=True)]]
        if sign == "!=":
            return [[low._replace(strict=True)], [high._replace(strict=True)]]
        return [[low, high]]

    def linear(self, node: Node) -> Linear:
        """Return a term.

        Raises:
            UsageError: naming the line, for products of variables and unknown names.
        """
        if isinstance(node, Word):
            index = self.find(node)
            return Linear({}, self._number(node)) if index is None else Linear({index: 1.0}, 0.0)
        head, rest = self._head(node)
        parts = [self.linear(child) for child in rest]
        if head == "+" and parts:
            return _sum(parts)
        if head == "-" and len(parts) == 1:
            return _times(parts[0], -1.0)
        if head == "-" and parts:
            return _sum([parts[0], *(_times(part, -1.0) for part in parts[1:])])
        if head == "*" and parts:
            product = Linear({}, 1.0)
            for part in parts:
                if part.terms and product.terms:
                    raise self._error(
                        node, "expected at most one factor with variables, got a product of two; "
                        "only linear terms are known",
                    )  # fmt: skip
                product = (
                    _times(part, product.constant) if part.terms else _times(product, part.constant)
                )
            return product
        raise self._error(node, f"expected a number, a variable, or a sum (+ - *), got {head!r}")

    def _head(self, node: Node) -> tuple[str, list[Node]]:
        if isinstance(node, Tree) and node.items and isinstance(node.items[0], Word):
            return node.items[0].text, node.items[1:]
        got = node.text if isinstance(node, Word) else "()"
        raise self._error(node, f"expected an expression such as (<= X_0 0.5), got {got!r}")

    def _number(self, word: Word) -> float:
        try:
            value = float(word.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in word.text:
            raise self._error(word, f"expected a number or a declared variable, got {word.text!r}")
        return value

    def _error(self, node: Node, message: str) -> UsageError:
        return at(self.name, node.line, message + ".")


def _sum(parts: list[Linear]) -> Linear:
    terms: dict[int, float] = {}
    for part in parts:
        for index, factor in part.terms.items():
            terms[index] = terms.get(index, 0.0) + factor
    return Linear(terms, math.fsum(part.constant for part in parts))


def _times(part: Linear, factor: float) -> Linear:
    return Linear({i: factor * c for i, c in part.terms.items()}, factor * part.constant)


def _at_most(left: Linear, right: Linear, strict: bool) -> Atom:
    terms, constant = _sum([left, _times(right, -1.0)])
    return Atom({i: c for i, c in terms.items() if c}, 0.0 - constant, strict)
