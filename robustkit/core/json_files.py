"""JSON files, written atomically, without NaN and infinities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from robustkit.core import files
from robustkit.errors import UsageError


def text(value: Any) -> str:
    """Lay out `value`: one line per key and per object in a list, but any other list on one line.

    Equal values give equal text. Raises ValueError for NaN and infinities.
    """
    return _layout(value, "") + "\n"


def write(value: Any, path: Path) -> None:
    """Write `value` as JSON: afterwards `path` holds all of it, or what it held before.

    Raises:
        RobustkitError: when the file cannot be written.
    """
    files.write(text(value).encode(), path)


def read(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: when there is no such file, or it is not JSON.
    """
    try:
        return from_json(path.read_bytes(), allow_inf_nan=False)
    except OSError as error:
        raise UsageError(f"{path}: expected a readable file, got: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(
            f"{path}: expected JSON, got: {error}. The file is damaged or of another kind."
        ) from None


def _layout(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_layout(item, deeper)}" for key, item in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        lines = [json.dumps(item, allow_nan=False) for item in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, allow_nan=False)
    body = ",\n".join(deeper + line for line in lines)
    return f"{opening}\n{body}\n{indent}{closing}"
