"""Reading a property: declarations of VNN-LIB 1.0 and 2.0, and its normal form."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from robustkit.certify.vnnlib.formula import Alternatives, Atom, Formulas
from robustkit.certify.vnnlib.lexer import Node, Tree, Word, at, parse
from robustkit.certify.vnnlib.query import Declared, Disjunct, Query
from robustkit.errors import UsageError

_MOST_BYTES = 2**28  # unpacked; the largest of the competition have about 2**25
_TYPES = ("real", "float16", "float32", "float64", "bfloat16")
_FIRST = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_INDEXED = re.compile(r"([^\[\]]+)\[([^\]]*)\]")


def unpacked(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzipped; also found as `path`.gz.

    Raises:
        UsageError: when it is missing, damaged, or unpacks to more than a property needs.
    """
    if not path.exists() and path.with_name(path.name + ".gz").exists():
        path = path.with_name(path.name + ".gz")
    if not path.is_file():
        raise UsageError(f"{path}: expected a file, got none (looked from {Path.cwd()}).")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Fetch or pack it again.") from error
    if len(content) > _MOST_BYTES:
        raise UsageError(f"{path}: expected at most {_MOST_BYTES:,} bytes unpacked, got more.")
    return content


def read_query(path: Path) -> Query:
    """Read a property of version 1.0 or 2.0 from a file, gzipped or not.

    Raises:
        UsageError: naming the line, what was expected there, and what stands there.
    """
    try:
        text = unpacked(path).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected text in UTF-8, got other bytes ({error}).") from error
    return query_of(text, str(path))


def query_of(text: str, name: str = "property") -> Query:
    """Read a property from its text; `name` stands in front of errors.

    Raises:
        UsageError: as `read_query`.
    """
    trees = parse(text, name)
    if not trees:
        raise at(name, 1, "expected declarations and assertions, got nothing.")
    return _Reader(name).read(trees)


class _Reader:
    """What has been declared so far, and the alternatives of what has been asserted."""

    def __init__(self, name: str) -> None:
        self.name, self.version, self.network = name, "1.0", "N"
        self.inputs: list[Declared] = []
        self.outputs: list[Declared] = []
        self.flat: dict[str, int] = {}  # of version 1.0: how many X and Y there are
        self.formulas = Formulas(name, self._find)

    def read(self, trees: list[Tree]) -> Query:
        asserted: list[Alternatives] = []
        for tree in trees:
            head, rest = self._head(tree)
            if head == "assert" and len(rest) == 1:
                asserted.append(self.formulas.alternatives(rest[0]))
            elif head == "declare-const":
                self._constant(tree, rest)
            elif head == "declare-network":
                self._network(tree, rest)
            elif head == "vnnlib-version":
                self._version(tree, rest)
            else:
                raise at(
                    self.name,
                    tree.line,
                    "expected declare-const, declare-network or an assertion of one formula, got "
                    f"{head!r}.",
                )
        if self.version == "1.0":
            self.inputs = [Declared("X", (self.flat.get("X", 0),))]
            self.outputs = [Declared("Y", (self.flat.get("Y", 0),))]
        if not (self.inputs and self.outputs and self.inputs[0].size and self.outputs[0].size):
            raise at(self.name, trees[-1].line, "expected an input and an output, got none.")
        return self._query(self.formulas.all_of(asserted, trees[-1].line))

    def _query(self, alternatives: Alternatives) -> Query:
        given, made = self.inputs[0], self.outputs[0]
        found = [_disjunct(atoms, given.size, made.size) for atoms in alternatives]
        labels = [label for part in (given, made) for label in _labels(part, self.version)]
        return Query(self.version, self.network, given, made, found, labels)

    def _version(self, tree: Tree, rest: list[Node]) -> None:
        text = rest[0].text.strip("<>") if rest and isinstance(rest[0], Word) else ""
        if text not in ("1.0", "2.0"):
            raise at(self.name, tree.line, f"expected version 1.0 or 2.0, got {text or 'none'!r}.")
        self.version = text

    def _constant(self, tree: Tree, rest: list[Node]) -> None:
        words = [item.text for item in rest if isinstance(item, Word)]
        match = _FIRST.fullmatch(words[0]) if words else None
        if self.version != "1.0" or match is None or words[1:] != ["Real"]:
            raise at(
                self.name,
                tree.line,
                "expected (declare-const X_<i> Real) or Y_<j>, of version 1.0, got "
                f"{' '.join(words)!r}.",
            )
        letter, index = match[1], int(match[2])
        if index != self.flat.get(letter, 0):
            expected = f"{letter}_{self.flat.get(letter, 0)}"
            raise at(self.name, tree.line, f"expected {expected}, the next one, got {words[0]}.")
        if letter == "X" and self.flat.get("Y"):
            raise at(self.name, tree.line, f"expected inputs before outputs, got {words[0]}.")
        self.flat[letter] = index + 1

    def _network(self, tree: Tree, rest: list[Node]) -> None:
        if self.inputs or self.flat:
            raise at(self.name, tree.line, "expected one network, got another; one is supported.")
        if not rest or not isinstance(rest[0], Word):
            raise at(self.name, tree.line, "expected the name of the network, got none.")
        self.version, self.network = "2.0", rest[0].text
        for item in rest[1:]:
            head, words = self._head(item)
            if head == "declare-input" and not self.inputs:
                self.inputs.append(self._declared(item, words))
            elif head == "declare-output" and not self.outputs:
                self.outputs.append(self._declared(item, words))
            else:
                raise at(
                    self.name,
                    item.line,
                    f"expected one declare-input and one declare-output, got {head!r}; hidden "
                    "nodes, several inputs or outputs and several networks are not supported.",
                )

    def _declared(self, item: Node, words: list[Node]) -> Declared:
        texts = [word.text for word in words if isinstance(word, Word)]
        texts = [text for text in texts if not text.startswith('"')]  # its name in the ONNX file
        sizes = re.fullmatch(r"\[([0-9,\s]*)\]", texts[2]) if len(texts) == 3 else None
        if sizes is None or texts[1].lower() not in _TYPES:
            raise at(
                self.name,
                item.line,
                f"expected a name, a type ({', '.join(_TYPES)}) and a shape such as [1,28,28], got "
                f"{' '.join(texts)!r}.",
            )
        shape = tuple(int(size) for size in sizes[1].split(",") if size.strip())
        if any(other.name == texts[0] for other in (*self.inputs, *self.outputs)):
            raise at(self.name, item.line, f"expected a new name, got {texts[0]!r} again.")
        return Declared(texts[0], shape)

    def _find(self, word: Word) -> int | None:
        """Return the index of a variable, or None for what is no name of one."""
        if self.version == "1.0":
            match = _FIRST.fullmatch(word.text)
            if match is None:
                return None
            count, index = self.flat.get(match[1], 0), int(match[2])
            if index >= count:
                raise at(self.name, word.line, f"expected a declared variable, got {word.text!r}.")
            return index + (self.flat.get("X", 0) if match[1] == "Y" else 0)
        match = _INDEXED.fullmatch(word.text)
        name, places = (match[1], match[2]) if match else (word.text, "")
        before = 0
        for part in (*self.inputs, *self.outputs):
            if part.name == name:
                return before + self._place(word, part, places)
            before += part.size
        if match:
            raise at(self.name, word.line, f"expected a declared variable, got {word.text!r}.")
        return None

    def _place(self, word: Word, part: Declared, places: str) -> int:
        try:
            index = tuple(int(place) for place in places.split(",") if place.strip())
            return int(np.ravel_multi_index(index, part.shape)) if part.shape or index else 0
        except ValueError:
            raise at(
                self.name,
                word.line,
                f"expected {len(part.shape)} indices inside {list(part.shape)}, got {word.text!r}.",
            ) from None

    def _head(self, node: Node) -> tuple[str, list[Node]]:
        if isinstance(node, Tree) and node.items and isinstance(node.items[0], Word):
            return node.items[0].text, node.items[1:]
        raise at(self.name, node.line, "expected a declaration or an assertion.")


def _labels(part: Declared, version: str) -> list[str]:
    if version == "1.0":
        return [f"{part.name}_{index}" for index in range(part.size)]
    places = (",".join(map(str, place)) for place in np.ndindex(*part.shape))
    return [f"{part.name}[{place}]" if part.shape else part.name for place in places]


def _disjunct(atoms: list[Atom], n: int, k: int) -> Disjunct:
    """Return a box and rows: bounds of one input become sides of the box."""
    low, high = np.full(n, -np.inf), np.full(n, np.inf)
    rows: list[Atom] = []
    for atom in atoms:
        ((index, factor),) = atom.terms.items() if len(atom.terms) == 1 else ((n, 0.0),)
        if index < n:
            side = atom.limit / factor
            exact = abs(factor) == 1
            if factor > 0:
                side = side if exact else float(np.nextafter(side, np.inf))
                high[index] = min(high[index], side)
            else:
                side = side if exact else float(np.nextafter(side, -np.inf))
                low[index] = max(low[index], side)
            if exact and not atom.strict:
                continue
        # The box is closed, and a quotient is rounded: these stay rows too.
        rows.append(atom)
    table = np.zeros((len(rows), n + k))
    for place, atom in enumerate(rows):
        table[place, list(atom.terms)] = list(atom.terms.values())
    limits = np.array([atom.limit for atom in rows])
    return Disjunct(low, high, table, limits, np.array([atom.strict for atom in rows], dtype=bool))
