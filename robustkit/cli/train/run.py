"""What `robustkit train` does: fit, measure, write weights and card, say what to run next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from torch import Generator, Tensor

from robustkit.cli.console import say, stderr, stdout
from robustkit.cli.evaluate.threats import usual_threat
from robustkit.cli.options import use_threads
from robustkit.cli.progress import training_progress
from robustkit.cli.train.measure import measure
from robustkit.cli.train.plan import TrainPlan, TrainRequest, attacked_as
from robustkit.cli.train.points import TakesUnlabeled, joined, split
from robustkit.core import json_files
from robustkit.core.device import pick_device
from robustkit.core.named import NamedThreat
from robustkit.core.packages import own_version
from robustkit.core.rng import generator
from robustkit.core.spec import Spec
from robustkit.core.text import slug
from robustkit.core.threat import Threat
from robustkit.data.dataset import select, subset
from robustkit.data.held import held
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.checkpoints import Card, beside, digest, put, read_weights
from robustkit.models.load import name_of
from robustkit.models.protocols import assemble, learned
from robustkit.models.training import Recipe, Step, Trainable, fit, save_weights, tells_its_data
from robustkit.registry import datasets, defenses, read_threat

_TESTED = 1000
_OTHERS = {"clean", "pgd20", "n", "threat", "split"}  # than the share that is proved


@runtime_checkable
class _Fits(Protocol):
    """Tells a defense whose numbers are fitted on some points, without gradients."""

    def calibrate(self, model: Any, x: Tensor, y: Tensor, generator: Generator) -> None: ...


@runtime_checkable
class _Learns(Protocol):
    """Tells a defense that is trained from one that is made of others."""

    def objective(self, model: Any, x: Tensor, y: Tensor, step: Step) -> Tensor: ...


def run(asked: TrainRequest) -> None:
    """Train, or finish a training that was interrupted.

    Raises:
        UsageError: when the request is refused, such as a folder that holds another training.
    """
    use_threads(asked.threads)
    plan = _prepare(asked)
    if asked.fresh:
        for file in ("state.pt", "model.safetensors", "card.json", "log.json"):
            (plan.folder / file).unlink(missing_ok=True)
    if isinstance(plan.defense, _Learns):
        training_progress(_fit(plan), plan.name, quiet=asked.quiet)
    if isinstance(plan.defense, _Fits):
        _calibrate(plan, plan.defense)
    card = _card(plan, _measured(plan))
    json_files.write(card.plain(), plan.folder / "card.json")
    if not asked.quiet:
        _report(plan, card)


def _prepare(asked: TrainRequest) -> TrainPlan:
    device, spec = pick_device(asked.device), Spec.parse(asked.name)
    entry, defense = defenses.entry(spec.name), defenses.build(spec)
    if not isinstance(defense, (_Learns, _Fits)) or not getattr(defense, "trained", True):
        raise UsageError(f"{spec.name} is not trained: it is made of other models.")
    trainable, name = cast(Trainable, defense), name_of(entry, defense)
    whole = open_dataset(asked.data, root=asked.data_root, split="train")
    usual = trainable.recipe if isinstance(defense, _Learns) else Recipe(epochs=1)
    data, held_out = split(held(whole), asked.validation or usual.validation or None)
    if isinstance(defense, TakesUnlabeled):
        data = joined(defense, data, asked.data, asked.data_root)
    given: dict[str, Any] = {"epochs": asked.epochs, "batch_size": asked.batch_size}
    recipe = replace(usual, **{k: v for k, v in given.items() if v is not None})
    if recipe.batch_size > len(data):
        raise UsageError(
            f"--batch-size: expected at most the {len(data)} points of {data.name}, "
            f"got {recipe.batch_size}."
        )
    options = {key: getattr(defense, key) for key in entry.options}
    folder = asked.out or Path("robustkit-models") / slug(f"{name}-{data.family}")
    return TrainPlan(asked, trainable, name, options, usual, recipe, data, held_out, folder, device)


def _calibrate(plan: TrainPlan, defense: _Fits) -> None:
    """Fit a defense on a seeded subset of its training data; it takes a minute or less.

    One that learns as well is fitted with its new weights.

    Raises:
        UsageError: when the folder holds another training.
    """
    model = assemble(cast(Any, defense), plan.data)
    if isinstance(plan.defense, _Learns):
        put(read_weights(plan.weights), learned(plan.defense, model) or model, str(plan.weights))
    else:
        _refuse_another(plan)
    model = model.to(plan.device).eval()
    points = select(plan.data, min(_TESTED, len(plan.data)), plan.asked.seed, "balanced")
    x, y = (part.to(plan.device) for part in plan.data.fetch(points))
    defense.calibrate(model, x, y, generator(plan.asked.seed, 4, 0))
    part = learned(defense, model)
    if part is not None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        save_weights(part, plan.weights)


def _refuse_another(plan: TrainPlan) -> None:
    """Refuse to write over weights that are not those of this training (a UsageError)."""
    if not plan.weights.exists():
        return
    card, asked = beside(plan.weights), plan.identity
    if card is None:
        told = "its weights have no card, or one of other weights"
    else:
        held = {**card.options, "defense": card.defense, "data": card.data, "seed": card.seed,
                "epochs": card.epochs}  # fmt: skip
        keys = (held.keys() | asked.keys()) - {"points", "batch size"}
        keys = keys if card.defense == asked["defense"] else {"defense"}
        changes = [f"{key} was {held.get(key)!r}, now {asked.get(key)!r}" for key in sorted(keys)
                   if held.get(key) != asked.get(key)]  # fmt: skip
        if not changes:
            return
        told = "; ".join(changes)
    raise UsageError(
        f"{plan.folder} holds another training: {told}. Choose another --out, or start over with "
        "--fresh."
    )


def _fit(plan: TrainPlan) -> Iterator[Any]:
    if not tells_its_data(plan.folder):
        told = "holds a training of an earlier robustkit, which does not say which data it began on"
        say(stderr(), "warning", f"{plan.folder} {told}: it is taken to be this one.", "yellow")
    return fit(
        plan.defense,
        plan.data,
        plan.folder,
        recipe=plan.recipe,
        seed=plan.asked.seed,
        device=plan.device,
        identity=plan.identity,
        watch=plan.watch,
    )


def _measured(plan: TrainPlan) -> dict[str, Any]:
    """Return what is measured on the points left out, else on test points, if there are any.

    Points that chose the epoch would flatter it.
    """
    asked, data = plan.asked, None if plan.watch else plan.held_out
    if data is None:
        if asked.data.partition("(")[0].strip() not in datasets:
            told = f"{asked.data} has no test split; nothing was measured."
            say(stderr(), "warning", told, "yellow")
            return {}
        data = open_dataset(asked.data, root=asked.data_root, split="test")
        data = subset(data, select(data, min(_TESTED, len(data)), 0))
    model = assemble(cast(Any, plan.defense), data)
    put(read_weights(plan.weights), learned(plan.defense, model) or model, str(plan.weights))
    model = model.to(plan.device).eval().requires_grad_(False)
    found = measure(model, data, _threat(plan), seed=asked.seed, device=plan.device)
    return {**found, "split": "validation"} if plan.held_out and not plan.watch else found


def _threat(plan: TrainPlan) -> Threat:
    """Return the threat model that was trained for, else the usual one of the data."""
    usual = read_threat(usual_threat(plan.asked.data) or "linf:0.1")
    if isinstance(usual, NamedThreat):  # an eps of theirs is no radius of a norm
        return usual
    return attacked_as(plan.options) or usual


def _card(plan: TrainPlan, measured: dict[str, Any]) -> Card:
    return Card(
        defense=Spec.parse(plan.name).name,
        options=plan.options,
        data=plan.data.family,
        shape=plan.data.shape,
        classes=plan.data.classes,
        command=plan.command,
        seed=plan.asked.seed,
        epochs=plan.recipe.epochs,
        measured=measured,
        sha256=digest(plan.weights),
        robustkit=own_version(),
    )


def _report(plan: TrainPlan, card: Card) -> None:
    console, found = stdout(), card.measured
    if found:
        text = f"{plan.name} on {found['n']} {found.get('split', 'test')} points: "
        text += f"clean {found['clean']:.4f}"
        others, told = sorted(found.keys() - _OTHERS), "{}"
        if "pgd20" in found:
            text += f", PGD-20 ({found['threat']}) {found['pgd20']:.4f}"
            told = "certified ({})"
        text += "".join(f", {told.format(name)} {found[name]:.4f}" for name in others)
        console.out(text, highlight=False)
    console.out(f"weights: {plan.weights}", highlight=False)
    console.out(f"card: {plan.folder / 'card.json'}", highlight=False)
    console.out(f"next: {plan.next_command}", highlight=False)
