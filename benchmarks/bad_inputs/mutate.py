"""One small change of something valid: bytes, JSON values, lines of a configuration, words."""

from __future__ import annotations

import copy
import json
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

WORDS = (
    *("", " ", "x", "-", "--", "-1", "0", "1", "2", "1.5", "1e308", "1e-320", "1e309", "nan"),
    *("inf", "-inf", "0x10", "8/255", "1/0", "1/", "/", "1/2/3", "1,,2", ",", "true", "none"),
    *(str(2**31), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64), "9" * 400),
    *("linf:1e308", "linf:0", "linf:-1", "linf:nan", "l7:1", "l2", ":", "linf:8/255:3", "l0:1.5"),
    *("linf:0.1", "l2:1e30", "l1:0.5", "l0:1", "fgsm", "fgsm(", "fgsm()", "fgsm(x=1)", "pgd"),
    *("pgd(steps=-1)", "pgd(steps=0)", "pgd(steps=nan)", "pgd(steps=1e308)", "nobody", "quick"),
    *("model.py:make", "model.py:nobody", "nobody.py:make", "model.py", "model:make", "os:name"),
    *("npz:data.npz", "npz:nobody.npz", "npz:", "folder:images", "folder:", "folder:data.npz"),
    *("npz:images", "onnx:data.npz", "export:data.npz", "hub:images:x", "torchvision:"),
    *("cpu", "cuda:99", "cpu:0", "cpu,", "auto", "ray:", "tpu", "float64", "data.npz", "images"),
    *("record.json", "robustkit.toml", "weights.pt", "run", ".", "/", "/dev/null", "nobody/nobody"),
    *(
        "\udcff",
        "ü",
        "a\nb",
        "\x1b[2J",
        "x" * 5000,
        "[bold]",
        "%s",
        "{}",
        "'",
        '"',
        "((((",
        "1_000",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.0, 0.1, 1e308, 1e-320, float("nan"), float("inf")),
    *(2**31, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, "", "x", "l7", "linf", "nan", "1"),
    *("x" * 5000, "a\nb", "\x1b[2J", "ü", "=1+1", [], {}, [[]], [None], [1], [1, 2, 3], {"x": 1}),
    *(["x"], "robust", "broken", "fgsm", "robustkit/record/2", "2020-01-01", "model.py:make"),
)
TOML = (
    *('""', '"x"', "0", "1", "-1", "1.5", "1e308", "nan", "inf", "-inf", "true", "false", "[]"),
    *("{}", "[1]", '["x"]', "[[]]", "{x = 1}", str(2**63 - 1), str(2**63), "9" * 400, "1979-05-27"),
    *("07:32:00", "1979-05-27T07:32:00Z", "'x'", '"linf:1e308"', '"linf:-1"', '"l7:1"', '"quick"'),
    *(
        '"model.py:make"',
        '"nobody"',
        '"1h"',
        '"robust=x"',
        '"robust=nan"',
        '["robust=-1"]',
        "",
        "x",
    ),
    *('["flags", "flags"]', '["robust=1e308"]', '"npz:data.npz"', '"cpu"', '"9999999999d"'),
    '"""',
)


def content(rng: Random, content: bytes) -> bytes:
    """Change some bytes: flip, cut, lengthen, repeat, empty."""
    if not content:
        return rng.randbytes(rng.choice((1, 4, 64)))
    raw, at = bytearray(content), rng.randrange(len(content))
    match rng.randrange(8):
        case 0:
            return bytes(raw[:at])
        case 1:
            return rng.choice((b"", b"\0", b"\xff\xfe", b"{}", b"[]", b"PK\x03\x04", b"\n"))
        case 2:
            return bytes(raw[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + raw[at:])
        case 3:
            return bytes(raw[:at] + raw[at : at + 64] + raw[at:])
        case 4:
            raw[at : at + rng.choice((1, 4, 64))] = b""
        case 5:
            for place in range(at, min(len(raw), at + rng.choice((1, 4, 16)))):
                raw[place] = rng.choice((0, 255))
        case _:
            for _ in range(rng.choice((1, 1, 1, 2, 8))):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def tree(rng: Random, value: Any) -> Any:
    """Change one place of a JSON value: another type, an extreme, gone, twice, another key."""
    root = {"": copy.deepcopy(value)}
    places = list(_places(root))
    holder, key = places[rng.randrange(1, len(places)) if len(places) > 1 else 0]
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 1:
            holder[f"{key}x"] = holder.pop(key)
        case 2:
            other, there = places[rng.randrange(len(places))]
            holder[key] = copy.deepcopy(other[there]) if other is not root else None
        case 3 if isinstance(holder[key], int | float):
            holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 1000))
        case 3 | 4 if isinstance(holder, dict):
            holder[rng.choice(("x", "", "schema", "ü"))] = rng.choice(VALUES)
        case _:
            holder[key] = rng.choice(VALUES)
    return root.get("")


def _places(holder: Any) -> Any:
    pairs = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
    for key, value in pairs:
        yield holder, key
        if isinstance(value, dict | list):
            yield from _places(value)


def document(rng: Random, text: bytes) -> bytes:
    """Change a JSON file: one of its values, or, one time in four, its bytes."""
    if rng.randrange(4) == 0:
        return content(rng, text)
    changed = json.dumps(tree(rng, json.loads(text)))
    if rng.randrange(12) == 0 and changed.startswith("{"):  # a key that is given twice
        changed = changed.replace("{", '{"schema": "x", ', 1)
    return changed.encode()


def configuration(rng: Random, text: bytes) -> bytes:
    """Change a TOML file: the value or the key of a line, a line less or twice, or its bytes."""
    lines = text.decode().splitlines()
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    match rng.randrange(8):
        case 0:
            return content(rng, text)
        case 1:
            del lines[at]
        case 2:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 3:
            lines.insert(at, f"{rng.choice(('x', 'seed', 'n', 'models', 'check', 'path'))} = 1")
        case 4 if equals:
            lines[at] = f"{key.strip()}x = 1"
        case _ if equals:
            lines[at] = f"{key}= {rng.choice(TOML)}"
        case _:
            lines[at] = rng.choice(("[x]", "[[models]]", "[check]", "[models]", "[[check]]", "["))
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def word(rng: Random, valid: str) -> str:
    """Return a word instead of a valid one: of the list, or the valid one with a slip."""
    if rng.randrange(3) or not valid:
        return rng.choice(WORDS)
    at = rng.randrange(len(valid))
    cuts = (valid[:at], valid[at:], valid[:at] + rng.choice("-:(),=./0 x\u00fc") + valid[at + 1 :])
    return rng.choice((*cuts, valid * 2, valid.upper(), f" {valid} "))


def cells(rng: Random, path: Path) -> None:
    """Change a cell, drop rows or a table; SQLite keeps any type in any column."""
    database = sqlite3.connect(path)
    tables = [
        row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    table = rng.choice(tables)
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    column = rng.choice(columns)
    value: Any = rng.choice(
        (None, -1, 0, 1, 2**62, 1.5, 1e308, "", "x", "null", "{}", "[1]", b"x", "1e999")
    )
    try:
        match rng.randrange(6):
            case 0:
                database.execute(f"DROP TABLE {table}")
            case 1:
                database.execute(f"DELETE FROM {table}")
            case 2:
                database.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
            case _:
                database.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
        database.commit()
    except sqlite3.DatabaseError:
        pass  # NOT NULL: the file stays valid
    finally:
        database.close()
