"""Models of other libraries, as `prefix:name`: one file per source, imported when it is used.

The file `robustkit/models/zoo/PREFIX.py` holds a function `load(ask)`; its docstring begins with
what it loads. The library that a source needs is imported inside that function.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from robustkit.core.spec import Spec
from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask, Found

__all__ = ["Ask", "Found", "open_model", "prefixes"]

_HELPERS = ("base", "network", "processor", "zero_shot")


def prefixes() -> list[str]:
    """List the sources."""
    found = pkgutil.iter_modules(__path__)
    return sorted(info.name for info in found if info.name not in _HELPERS)


def is_named(text: str) -> bool:
    """Tell whether `text` begins with the prefix of a source."""
    prefix, colon, rest = text.partition(":")
    return bool(colon and rest) and prefix in prefixes()


def open_model(
    text: str,
    shape: tuple[int, int, int],
    classes: int,
    weights: Path | None = None,
    class_names: tuple[str, ...] = (),
) -> Found:
    """Load `prefix:name` or `prefix:name(option=value)`.

    Args:
        text: see the file of each source for what `name` and the options are.
        shape: of one input [c, h, w].
        classes: of the data.
        weights: a file that replaces what the source would download.
        class_names: of the data, for models that read them.

    Returns:
        The model on the CPU in evaluation mode, from inputs in [0, 1] to logits.

    Raises:
        UsageError: when the model cannot be loaded with these options.
    """
    prefix, _, rest = text.partition(":")
    name, options = _split(rest.strip(), text)
    source = importlib.import_module(f"robustkit.models.zoo.{prefix}")
    found: Found = source.load(Ask(text, name, options, shape, classes, weights, class_names))
    return found


def _split(rest: str, text: str) -> tuple[str, dict[str, object]]:
    call = re.fullmatch(r"(.+?)(\(.*\))", rest, re.DOTALL)
    if call is None:
        return rest, {}
    try:
        return call[1], dict(Spec.parse(f"options{call[2]}").options)
    except UsageError as error:
        raise UsageError(f"{text}: the options cannot be read: {error}") from None
