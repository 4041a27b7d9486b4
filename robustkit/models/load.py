"""What is evaluated: a registered defense with its weights, or a user's own `nn.Module`."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from robustkit.core import arguments
from robustkit.core.imports import failure, load_attribute
from robustkit.core.process_state import kept
from robustkit.core.spec import Spec
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.models import checkpoints, zoo
from robustkit.models.checkpoints import Card, Checkpoint
from robustkit.models.guard import duplicate
from robustkit.models.normalization import Numbers, in_units, normalized
from robustkit.models.protocols import Composed, Network, assemble, learned
from robustkit.models.readiness import evaluation_mode, refuse_training_mode, refuse_unready
from robustkit.models.trust import trusting
from robustkit.registry import Entry, defenses

_WEIGHTS = re.compile(r"(?P<model>.+)@(?P<file>[^@]+\.(?:safetensors|pth?))", re.DOTALL)
_SPEC = re.compile(r"\s*[A-Za-z_]\w*\s*(\(.*\))?\s*", re.DOTALL)


class Subject(NamedTuple):
    """A model to evaluate, its name in tables, and notes about its weights and preprocessing.

    Attributes:
        text: what it was loaded by, where that is not its name.
    """

    name: str
    model: nn.Module
    notes: tuple[str, ...] = ()
    text: str = ""

    @property
    def source(self) -> str:
        """What `load_model` loads it by again."""
        return self.text or self.name


def load_model(
    text: str,
    *,
    data: Dataset | str = "bundled",
    weights: Path | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    trust_code: Collection[Path | str] = (),
) -> Subject:
    """Load what `text` names.

    Args:
        text: a registered defense with options (`pgd_at(eps=0.1)`), or `package.module:attr` or
            `path/to/file.py:attr`: an `nn.Module`, or a function without arguments returning one;
            or `prefix:name` of a source in `robustkit.models.zoo`, such as `timm:resnet18`; both
            take `(output=KEY)`, the entry of its answer that holds the logits. Any of them may end
            in `@FILE`, its weights.
        data: what it will be evaluated on, or the name of that: decides shape, classes, checkpoint.
        weights: a `.safetensors`, `.pt` or `.pth` file with a state dict.
        mean: of each channel, or one for all; subtracted inside the model.
        std: likewise; divided by.
        trust_code: files that may run code when they are loaded, as that of `export:FILE` can.

    Returns:
        The model on the CPU; what was built here is in evaluation mode, a user's own is as it was.

    Raises:
        UsageError: when there is no such model, or it cannot be loaded with these arguments.
    """
    data = open_dataset(data) if isinstance(data, str) else data
    arguments.instance("data", data, Dataset, "a robustkit.data.Dataset or the name of one")
    weights = None if weights is None else arguments.path("weights", weights)
    text = arguments.text("model", text)
    if split := _WEIGHTS.fullmatch(text):
        if weights is not None:
            raise UsageError(f"{text} names its weights: leave out --weights.")
        found = load_model(
            split["model"], data=data, weights=Path(split["file"]), mean=mean, std=std,
            trust_code=trust_code,
        )  # fmt: skip
        return found._replace(name=f"{found.name}@{split['file']}", text=text)
    with trusting(trust_code):
        if zoo.is_named(text):
            return _from_library(text, data, weights, mean, std)
        if not _SPEC.fullmatch(text):
            return _imported(text, data, weights, mean, std)
        spec = Spec.parse(text)
        if mean is not None or std is not None:
            raise UsageError(
                f"{spec} already normalizes its inputs; --mean and --std are for models that do "
                "not."
            )
        return _registered(spec, data, weights)


def bundled(data: Dataset, kind: str = "") -> list[str]:
    """Name every defense that ships a checkpoint for the family of `data`.

    One registered as made `against` another kind of threat than norms is named for that kind alone.

    Args:
        kind: of the threat model, such as linf or corruption.
    """
    found = {
        name_of(entry, defenses.build(_spec(checkpoint.card))): None
        for entry in defenses.entries()
        for checkpoint in checkpoints.shipped(entry)
        if checkpoint.card.data == data.family and entry.facts.get("against", kind) == kind
    }
    return list(found)


def name_of(entry: Entry, defense: Any) -> str:
    """Return the shortest spec of a built defense: the options that are not at their default."""
    options = {key: getattr(defense, key) for key in entry.options}
    changed = {key: value for key, value in options.items() if value != entry.options[key]}
    return str(Spec(entry.name, tuple(sorted(changed.items()))))


def _registered(spec: Spec, data: Dataset, weights: Path | None) -> Subject:
    entry, requested = defenses.entry(spec.name), defenses.build(spec)
    if weights is None and _needs_no_weights(requested):
        return Subject(name_of(entry, requested), _build(requested, data, spec).eval())
    if weights is not None:
        built = _as_trained(spec, requested, checkpoints.beside(weights))
        state, source = checkpoints.read_weights(weights), str(weights)
    else:
        checkpoint = _shipped(entry, spec, requested, data)
        built, source = defenses.build(_spec(checkpoint.card)), checkpoint.source
        state = checkpoint.load()
    model = _build(built, data, spec)
    part = learned(built, model)
    if part is None:
        raise UsageError(f"{spec} takes no weights: it is made of other models.")
    note = checkpoints.put(state, part, source)
    return Subject(name_of(entry, built), model.eval(), (note,))


def _needs_no_weights(defense: Any) -> bool:
    """Whether a defense has no weights of its own: it is composed of other models."""
    trained = getattr(defense, "trained", True)
    return isinstance(defense, Composed) and (not hasattr(defense, "learned") or not trained)


def _as_trained(spec: Spec, requested: Any, card: Card | None) -> Any:
    """Return the defense with the options that the card of its weights gives."""
    if card is None:
        return requested
    if card.defense != spec.name or not _agree(spec, requested, card):
        raise UsageError(
            f"these weights are not of {spec}: their card says {_spec(card)}. "
            f"Name {card.defense!r}, without options or with those."
        )
    given = dict(spec.options)
    if any(":" in str(value) and key not in given for key, value in card.options.items()):
        named = shlex.quote(str(_spec(card)))
        raise UsageError(
            f"the card of these weights names a model that may be code: {_spec(card)}. A card is "
            f"data and runs no code: name that model yourself, `robustkit evaluate {named}`."
        )
    return defenses.build(_spec(card))


def _shipped(entry: Entry, spec: Spec, requested: Any, data: Dataset) -> Checkpoint:
    """Find the checkpoint with every given option, and the fewest others off their defaults."""
    known = checkpoints.shipped(entry)
    fitting = [c for c in known if c.card.data == data.family and _agree(spec, requested, c.card)]
    if not fitting:
        have = [f"{name_of(entry, defenses.build(_spec(c.card)))} on {c.card.data}" for c in known]
        raise UsageError(
            f"no weights are shipped for {spec} on {data.family} "
            f"(shipped: {', '.join(have) or 'none'}). Train them: "
            f"`robustkit train {shlex.quote(str(spec))} --data {data.family} --out DIR`, "
            "then evaluate with `--weights DIR/model.safetensors`."
        )
    return min(fitting, key=lambda c: name_of(entry, defenses.build(_spec(c.card))).count("="))


def _agree(spec: Spec, requested: Any, card: Card) -> bool:
    trained = defenses.build(_spec(card))
    return all(getattr(requested, key) == getattr(trained, key) for key, _ in spec.options)


def _spec(card: Card) -> Spec:
    return Spec(card.defense, tuple(sorted(card.options.items())))


def _build(defense: Network | Composed, data: Dataset, spec: Spec) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return assemble(defense, data)
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{spec} cannot be built for inputs {list(data.shape)} and {data.classes} classes: "
            f"{failure(error)}."
        ) from error


def _from_library(
    text: str,
    data: Dataset,
    weights: Path | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Subject:
    """Load a model of another library."""
    normalizes = mean is not None or std is not None
    found = zoo.open_model(text, data.shape, data.classes, weights, data.class_names)
    model, notes = found.model, list(found.notes)
    if normalizes and found.prepared:
        raise UsageError(f"{text} brings its own preprocessing; leave out --mean and --std.")
    if normalizes:
        model, note = normalized(model, data.shape, mean, std)
        notes.append(note)
    if found.untrained:
        model.untrained = True  # type: ignore[assignment]  # read when flags are raised
    return Subject(text, in_units(model, data), tuple(notes))


def _imported(
    text: str,
    data: Dataset,
    weights: Path | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Subject:
    if ":" not in text:
        raise UsageError(
            f"expected a model, got {text!r}. A model is a registered defense "
            f"({', '.join(defenses)}), 'package.module:attr', 'path/to/file.py:attr', or a name of "
            f"another source ({', '.join(f'{prefix}:...' for prefix in zoo.prefixes())})."
        )
    name, options = zoo.split_options(text, text)
    if others := ", ".join(sorted(options.keys() - {"output"})):
        raise UsageError(f"{text}: expected the option output alone, got {others}.")
    with kept():
        value = load_attribute(name)
        model = _module(value, name)
    notes = []
    if weights is not None:
        model = duplicate(model) if model is value else model
        notes.append(checkpoints.put(checkpoints.read_weights(weights), model, str(weights)))
    if mean is not None or std is not None:
        model, note = normalized(model, data.shape, mean, std)
        notes.append(note)
    if "output" in options:
        model, note = zoo.output_of(model, options["output"], text)
        notes.append(note)
    return Subject(text, in_units(model, data), tuple(notes))


def _module(value: Any, text: str) -> nn.Module:
    """Return the module that `value` is or makes."""
    if isinstance(value, nn.Module):
        return refuse_training_mode(value, text)
    if not callable(value):
        raise UsageError(
            f"{text} is a {type(value).__name__}; expected an nn.Module, or a function without "
            "arguments that returns one."
        )
    if needed := _needed(value):
        raise UsageError(
            f"{text} needs arguments ({', '.join(needed)}); expected an nn.Module, or a function "
            "without arguments that returns one. Write a small function that fills them in."
        )
    try:
        made = value()
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{text}() fails: {failure(error)}.") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"{text}() returned a {type(made).__name__}; expected an nn.Module.")
    refuse_unready(made, text)
    return refuse_training_mode(evaluation_mode(made), text)


def _needed(function: Any) -> list[str]:
    """Name the parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in loose]
