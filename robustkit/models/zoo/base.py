"""What the sources of models share: request, result, downloads with clear errors, resizing."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.core.imports import failure
from robustkit.core.optional import library, quiet
from robustkit.core.types import Shape
from robustkit.errors import RobustkitError, UsageError
from robustkit.models import checkpoints
from robustkit.models.architectures import Normalize
from robustkit.models.zoo.network import online

__all__ = ["RANDOM", "Ask", "Found", "Resized", "building", "fill", "library", "offline", "prepare"]


class Ask(NamedTuple):
    """The request for a model: `text` is all of it, `shape` that of one input.

    `weights` is a file to load in place of what the source would download; `class_names` are the
    data's, nothing where it has none.
    """

    text: str
    name: str
    options: dict[str, Any]
    shape: Shape
    classes: int
    weights: Path | None = None
    class_names: tuple[str, ...] = ()

    def option(self, key: str, kind: type, default: Any = None) -> tuple[Any, Ask]:
        """Take an option of the harness out of those that go to the library.

        Raises:
            UsageError: when its value is of another type.
        """
        value = self.options.get(key, default)
        if value is not default and not isinstance(value, kind):
            raise UsageError(f"{self.text}: expected {key} as {kind.__name__}, got {value!r}.")
        rest = {name: given for name, given in self.options.items() if name != key}
        return value, self._replace(options=rest)

    def refuse_options(self, *known: str) -> None:
        """Refuse options that the source would not use (a UsageError)."""
        for key in self.options:
            if key not in known:
                listing = ", ".join(known) or "none"
                raise UsageError(f"{self.text} has no option {key!r}. Its options: {listing}.")

    def refuse_weights(self) -> None:
        """Refuse --weights where the file named holds them already (a UsageError)."""
        if self.weights is not None:
            raise UsageError(f"{self.text} holds its own weights; leave out --weights.")

    def file(self) -> Path:
        """Return the file that the model is named by.

        Raises:
            UsageError: where there is none.
        """
        path = Path(self.name).expanduser()
        if not path.is_file():
            raise UsageError(f"{self.text}: there is no file {path} (looked from {Path.cwd()}).")
        return path


class Found(NamedTuple):
    """A model [b, c, h, w] in [0, 1] -> logits [b, k], and notes about it for the record.

    Attributes:
        prepared: it preprocesses its inputs itself, so that no mean and std may be added.
        untrained: its weights are random.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()
    prepared: bool = False
    untrained: bool = False


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """Make every `torch.load` inside refuse pickled objects, whatever the library asks for."""
    plain = torch.load

    def guarded(*args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], (str, Path)):
            checkpoints.refuse_compressed(Path(args[0]))
        return plain(*args, **{**options, "weights_only": True})

    torch.load = guarded
    try:
        yield
    finally:
        torch.load = plain


@contextlib.contextmanager
def building(ask: Ask, cure: str, host: str = "") -> Iterator[None]:
    """Build or download inside: quietly, without pickles, with one clear error.

    Args:
        host: URL that a download comes from; where it cannot be reached nothing waits for it.

    Raises:
        UsageError: for whatever goes wrong inside, followed by `cure`.
    """
    gone = ""
    try:
        asked = online(host) if host else contextlib.nullcontext(True)
        with quiet(), no_pickles(), asked as reached, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            gone = "" if reached else f"{host} could not be reached. "
            yield
    except RobustkitError:
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{ask.text} cannot be loaded: a file of its weights is damaged, is no weights file "
            f"(an error page?), or holds pickled objects, which could run code. {cure}"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{ask.text} cannot be loaded: {failure(error)}. {gone}{cure}") from error


def offline(ask: Ask) -> str:
    """Say what helps where the weights cannot be downloaded."""
    bare = ask.text.partition("(")[0]
    return (
        "If the weights could not be downloaded: give them with --weights FILE, or connect to the "
        f'network. For random weights, to try things out, ask for "{bare}(pretrained=false)".'
    )


def fill(model: nn.Module, weights: Path) -> str:
    """Put a state dict file into `model` and return the note about it.

    Raises:
        UsageError: when the file cannot be read, or does not fit.
    """
    return checkpoints.put(checkpoints.read_weights(weights), model, str(weights))


class Resized(nn.Module):
    """Bilinear resizing to a square inside the model, so that eps stays in units of the input."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        size = (self.size, self.size)
        if x.shape[-2:] != size:
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        answer: Tensor = self.model(x)
        return answer


def prepare(
    model: nn.Module,
    notes: list[str],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize: int | None = None,
) -> nn.Module:
    """Put normalization and resizing in front of `model`, and say so in `notes`."""
    if mean is not None and std is not None:
        model = nn.Sequential(Normalize(mean, std), model)
        numbers = ", ".join(f"{value:.4g}" for value in (*mean, *std))
        notes.append(f"inputs are normalized as the source says: mean and std {numbers}")
    if resize is not None:
        model = Resized(model, resize)
        notes.append(f"inputs are resized to {resize} x {resize} inside the model")
    return model.eval()


RANDOM = "random weights, as asked for: the numbers say nothing about the trained model"
