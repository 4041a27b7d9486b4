"""Specs such as `apgd(loss=dlr, steps=50)`: names with options, the same everywhere.

A spec is a Python call with bare words for strings and fractions for numbers. It is read with
`ast`, never evaluated. Its canonical text (options sorted) is the key in records and tables.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from typing import NamedTuple, TypeAlias

from robustkit.errors import UsageError

# Names that Python's grammar lacks: of another library, or with hyphens.
_NAMED = re.compile(r"([A-Za-z]\w*(?::[A-Za-z][\w-]*|(?:-\w+)+))\s*(|\(.*\))", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None}
Value: TypeAlias = "str | int | float | bool | tuple[Value, ...] | Spec | None"


class Spec(NamedTuple):
    """A name and its options, sorted by key."""

    name: str
    options: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `name` or `name(option=value, ...)`; `library:name` names one of another library.

        Raises:
            UsageError: when `text` is not of that form.
        """
        try:
            if named := _NAMED.fullmatch(text.strip()):
                call = _spec(ast.parse(f"f{named[2]}", mode="eval").body)
                return call._replace(name=named[1])
            return _spec(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UsageError(
                f"expected a name or a call such as 'apgd(loss=dlr, steps=50)', "
                f"got {text!r} ({error})"
            ) from None

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{k}={_text(v)}' for k, v in self.options)})"


def _spec(node: ast.expr) -> Spec:
    if isinstance(node, ast.Name):
        return Spec(node.id)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("neither a name nor a call")
    if node.args:
        raise ValueError("options are given by name")
    options = {str(k.arg): _value(k.value) for k in node.keywords if k.arg is not None}
    if len(options) != len(node.keywords):
        raise ValueError("an option is given twice or without a name")
    return Spec(node.func.id, tuple(sorted(options.items())))


def _value(node: ast.expr) -> Value:
    match node:
        case ast.Constant(value=float() as value) if not math.isfinite(value):
            raise ValueError("a number is too large")
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.Name(id=word):
            return _WORDS.get(word.lower(), word)
        case ast.Call():
            spec = _spec(node)
            return spec if spec.options else spec.name
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(
            left=ast.Constant(value=int() | float() as top),
            op=ast.Div(),
            right=ast.Constant(value=int() | float() as bottom),
        ) if bottom:
            return top / bottom
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item) for item in items)
    raise ValueError(f"cannot read the value {ast.unparse(node)!r}")


def _is_word(text: str) -> bool:
    """Whether the bare word is read back as this string."""
    plain = text.isascii() and text.isidentifier()
    return plain and not keyword.iskeyword(text) and text.lower() not in _WORDS


def _text(value: Value) -> str:
    if isinstance(value, Spec):
        return str(value)
    if isinstance(value, str):
        return value if _is_word(value) else repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(_text(v) for v in value)}{',' if len(value) == 1 else ''})"
    return str(value)
