"""Models of other libraries, as `prefix:name`: one file per source, imported when it is used.

The file `robustkit/models/zoo/PREFIX.py` holds a function `load(ask)`; its docstring begins with
what it loads. The library that a source needs is imported inside that function.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from torch import nn

from robustkit.core.spec import Spec
from robustkit.core.types import Shape
from robustkit.errors import UsageError
from robustkit.models.outputs import Output
from robustkit.models.zoo.base import Ask, Found

__all__ = ["Ask", "Found", "open_model", "prefixes"]

_HELPERS = ("base", "network", "processor", "zero_shot")
_OF_IMAGES = ("hf", "robustbench", "timm", "torchvision")


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
    shape: Shape,
    classes: int,
    weights: Path | None = None,
    class_names: tuple[str, ...] = (),
) -> Found:
    """Load `prefix:name` or `prefix:name(option=value)`.

    Args:
        text: see the file of each source for what `name` and the options are.
        shape: of one input.
        classes: of the data.
        weights: a file that replaces what the source would download.
        class_names: of the data, for models that read them.

    Returns:
        The model on the CPU in evaluation mode, from inputs in [0, 1] to logits.

    Raises:
        UsageError: when the model cannot be loaded with these options.
    """
    prefix, _, rest = text.partition(":")
    name, options = split_options(rest.strip(), text)
    entry = options.pop("output", None)
    if prefix in _OF_IMAGES and len(shape) != 3:
        raise UsageError(
            f"{text} is a model of images [c, h, w], got inputs {list(shape)}. Name one of your "
            "own, as path/to/file.py:attr, or sklearn:FILE."
        )
    source = importlib.import_module(f"robustkit.models.zoo.{prefix}")
    found: Found = source.load(Ask(text, name, options, shape, classes, weights, class_names))
    if entry is None:
        return found
    model, note = output_of(found.model, entry, text)
    return found._replace(model=model, notes=(*found.notes, note))


def output_of(model: nn.Module, entry: object, text: str) -> tuple[nn.Module, str]:
    """Return the model of whose answer `entry` is taken, and the note about it.

    Raises:
        UsageError: when that is neither a name nor a whole number.
    """
    if not isinstance(entry, str | int) or isinstance(entry, bool):
        raise UsageError(
            f"{text}: expected output as a key, such as output=logits, or a place, such as "
            f"output=0, got {entry!r}."
        )
    return Output(model, entry), f"logits: the entry {entry!r} of the answer, as asked for"


def split_options(rest: str, text: str) -> tuple[str, dict[str, object]]:
    """Split `name(option=value)` into name and options.

    Raises:
        UsageError: when the options cannot be read.
    """
    call = re.fullmatch(r"(.+?)(\(.*\))", rest, re.DOTALL)
    if call is None:
        return rest, {}
    try:
        return call[1], dict(Spec.parse(f"options{call[2]}").options)
    except UsageError as error:
        raise UsageError(f"{text}: the options cannot be read: {error}") from None
