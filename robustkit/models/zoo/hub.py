"""torch.hub: `hub:FOLDER:entry`, an entry point of a folder with a hubconf.py."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from robustkit.core.imports import load_attribute
from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask, Found, building, fill, prepare


def load(ask: Ask) -> Found:
    """Call an entry of a local hubconf.py; the code in it runs, as any Python file that is run.

    Options: `resize=224`, and those of the entry. Normalization is left to --mean and --std.

    Raises:
        UsageError: when the folder or the entry does not exist, or the entry fails.
    """
    folder, colon, entry = ask.name.rpartition(":")
    path = Path(folder).expanduser()
    if not colon or not (path / "hubconf.py").is_file():
        raise UsageError(
            f"{ask.text}: expected hub:FOLDER:entry with a hubconf.py in FOLDER, "
            f"got {folder or ask.name!r}. Code of a repository is not downloaded: clone it first."
        )
    resize, ask = ask.option("resize", int)
    make = load_attribute(f"{path / 'hubconf.py'}:{entry}")
    with building(ask, f"It is made by {path / 'hubconf.py'}."):
        model = make(**ask.options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{ask.text} made a {type(model).__name__}; expected an nn.Module.")
    notes = [] if ask.weights is None else [fill(model, ask.weights)]
    return Found(prepare(model, notes, resize=resize), tuple(notes))
