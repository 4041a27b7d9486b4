"""Trained weights and their cards: finding them, reading them, loading them into a network.

A card is a JSON file beside a safetensors file: what was trained, on what, by which command, and
what was measured afterwards. It names the SHA-256 of its weights.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from robustkit.errors import RobustkitError, UsageError
from robustkit.registry import Entry

SCHEMA: Literal["robustkit/card/1"] = "robustkit/card/1"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")


@dataclass(frozen=True)
class Card:
    """The description of a weights file.

    Attributes:
        options: of the defense, all of them.
        data: family of the training data.
        shape: of one input.
        command: repeats the training.
        measured: accuracies as fractions of n test points.
        sha256: of the weights file.
        robustkit: version that trained it.
    """

    defense: str
    options: dict[str, Any]
    data: str
    shape: tuple[int, ...]
    classes: int
    command: str
    seed: int
    epochs: int
    measured: dict[str, Any]
    sha256: str
    robustkit: str
    schema: Literal["robustkit/card/1"] = SCHEMA

    @classmethod
    def parse(cls, content: bytes, where: str) -> Card:
        """Read a card.

        Raises:
            UsageError: when `content` is not one.
        """
        try:
            card: Card = TypeAdapter(cls).validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UsageError(
                f"{where}: expected a card of schema {SCHEMA!r}, got an error in {key}: "
                f"{first['msg']}."
            ) from None
        return card

    def plain(self) -> dict[str, Any]:
        """Return the card as JSON values, `schema` first."""
        fields = asdict(self) | {"shape": list(self.shape)}
        return {"schema": fields.pop("schema"), **fields}


class Checkpoint(NamedTuple):
    """A card and its weights."""

    card: Card
    source: str
    content: Callable[[], bytes]

    def load(self) -> dict[str, Tensor]:
        """Read the weights.

        Raises:
            RobustkitError: when they are missing, or their digest is not the card's.
        """
        from safetensors.torch import load

        try:
            content = self.content()
        except OSError as error:
            raise RobustkitError(f"{self.source} cannot be read: {error}.") from None
        found = hashlib.sha256(content).hexdigest()
        if found != self.card.sha256:
            raise RobustkitError(
                f"{self.source} is damaged: its card expects SHA-256 {self.card.sha256[:12]}..., "
                f"got {found[:12]}.... Install the package again."
            )
        state: dict[str, Tensor] = load(content)
        return state


def shipped(entry: Entry) -> list[Checkpoint]:
    """List the checkpoints of a defense in the `checkpoints` folder of the pack that defines it."""
    package = sys.modules[entry.target.__module__].__package__
    folder = files(package) / "checkpoints" if package else None
    if folder is None or not folder.is_dir():
        return []
    found = []
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".json"):
            card = Card.parse(item.read_bytes(), item.name)
            weights = folder / f"{item.name.removesuffix('.json')}.safetensors"
            if card.defense == entry.name:
                found.append(Checkpoint(card, weights.name, weights.read_bytes))
    return found


def beside(weights: Path) -> Card | None:
    """Return the card of a weights file, if one that names its digest lies in the same folder."""
    for path in (weights.with_suffix(".json"), weights.with_name("card.json")):
        if path.is_file() and SCHEMA.encode() in (content := path.read_bytes()):
            card = Card.parse(content, str(path))
            if card.sha256 == digest(weights):
                return card
    return None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        UsageError: when there is no such file.
    """
    return hashlib.sha256(_existing(path).read_bytes()).hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, without running code from it.

    The file is named `*.safetensors`, `*.pt`, `*.pth` or `*.ckpt`. A state dict that lies under
    `state_dict`, `model_state_dict`, `model`, `net` or `network` is found there, also in two steps.

    Raises:
        UsageError: when the file is missing, damaged, of another kind, or holds pickled objects.
    """
    readers = {".safetensors": _safetensors, ".pt": _torch, ".pth": _torch, ".ckpt": _torch}
    reader = readers.get(_existing(path).suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: expected a file named *.safetensors, *.pt, *.pth or *.ckpt.")
    value = reader(path)
    for _ in range(2):
        inside = [
            k for k in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(k), dict)
        ]
        value = value[inside[0]] if inside else value
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"{path}: expected a state dict, got {_described(value)}.")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UsageError(
                f"{path}: expected a state dict of tensors, got {_described(tensor)} at {key!r}."
            )
    return dict(value)


def put(state: Mapping[str, Tensor], model: nn.Module, source: str) -> str:
    """Load `state` into `model`, every key and shape agreeing.

    Where all keys lie under names that wrappers put in front (`module.`, `_orig_mod.`, Lightning's
    `model.`, in any order), and `model` has none of these, the names are left out; so is the
    counter of `torch.optim.swa_utils.AveragedModel`.

    Returns:
        The note about the weights, with what was left out.

    Raises:
        UsageError: for keys that are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    state, omitted = _unwrapped(state, own)
    misfits = [
        f"{key}: expected {list(own[key].shape)}, got {list(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    found = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": misfits,
    }
    if any(found.values()):
        listed = "; ".join(f"{len(k)} {kind} ({_first(k)})" for kind, k in found.items() if k)
        raise UsageError(
            f"{source} does not fit the model: {listed}. "
            "Name the architecture and options that the weights were trained with."
        )
    model.load_state_dict(state, strict=True)
    return f"weights: {source}" + (f" ({omitted} left out of its keys)" if omitted else "")


def _unwrapped(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], str]:
    """Return the state under the keys of `own`, and what was left out; as it is if they differ."""
    counter = ["n_averaged"] if "n_averaged" in state and "n_averaged" not in own else []
    kept = {key: tensor for key, tensor in state.items() if key not in counter}
    prefix = ""
    while kept and kept.keys() != own.keys():
        first = next(iter(kept)).partition(".")[0] + "."
        if not all(key.startswith(first) for key in kept):
            return state, ""
        kept = {key.removeprefix(first): tensor for key, tensor in kept.items()}
        prefix += first
    return kept, " and ".join([*([prefix] if prefix else []), *counter])


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is no file (looked from {Path.cwd()}).")
    return path


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is no readable safetensors file: {error}.") from None


def refuse_compressed(path: Path) -> None:
    """Refuse a PyTorch archive that would unpack to more than lies on the disk (a UsageError).

    PyTorch stores its entries as they are; compressed ones may be of any size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return  # an older format, or damaged: the reader says so
    if declared > (held := path.stat().st_size):
        raise UsageError(
            f"{path} would unpack to {declared:,} bytes, but holds {held:,}: it was not written by "
            "PyTorch, which does not compress. Save it again with torch.save."
        )


def _torch(path: Path) -> Any:
    refuse_compressed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise UsageError(f"{path} is no readable PyTorch file.") from error
        raise UsageError(
            f"{path} holds pickled Python objects ({refused[1]}), which can run code when they are "
            "loaded; only tensors are read. Where the model is at hand, save its weights alone: "
            "`torch.save(model.state_dict(), 'weights.pt')`."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is no readable PyTorch file: {error}.") from error


def _described(value: Any) -> str:
    return "an empty dict" if value == {} else f"a {type(value).__name__}"


def _first(keys: Sequence[str], limit: int = 3) -> str:
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")
