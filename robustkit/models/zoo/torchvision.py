"""torchvision: `torchvision:resnet18`, with its default weights and their normalization."""

from __future__ import annotations

from typing import Any

from robustkit.core.optional import library
from robustkit.errors import UsageError, unknown
from robustkit.models.zoo.base import RANDOM, Ask, Found, building, fill, offline, prepare

_TRANSFORMED = (
    "googlenet",
    "inception_v3",
)  # the weights were trained behind another normalization


def load(ask: Ask) -> Found:
    """Load a model of torchvision by name.

    Options: `pretrained=false` (random weights), `resize=224`, `weights_name=IMAGENET1K_V1`, and
    those of the model. Pretrained weights are checked by torchvision against their digest and come
    with their mean and std. With --weights, classes default to those of the data, and
    normalization is left to --mean and --std.

    Raises:
        UsageError: when torchvision is absent, or the model cannot be had.
    """
    models: Any = library("torchvision.models", "torchvision")
    pretrained, ask = ask.option("pretrained", bool, True)
    resize, ask = ask.option("resize", int)
    which, ask = ask.option("weights_name", str, "DEFAULT")
    names = models.list_models(module=models)
    if ask.name not in names:
        raise unknown("torchvision model", ask.name, names)
    download = pretrained and ask.weights is None
    if download and "num_classes" in ask.options:
        raise UsageError(f"{ask.text}: num_classes would replace the trained head by a random one.")
    options = ask.options if download else {"num_classes": ask.classes, **ask.options}
    if ask.weights is not None and ask.name in _TRANSFORMED and "transform_input" not in options:
        raise UsageError(
            f"{ask.text}: weights of torchvision for {ask.name} need "
            f'"torchvision:{ask.name}(transform_input=true)", with --mean and --std of ImageNet; '
            "weights trained without that step need (transform_input=false). Say which."
        )
    chosen: Any = None
    if download:
        with building(ask, offline(ask)):
            chosen = getattr(models.get_model_weights(ask.name), which)
    with building(ask, offline(ask), getattr(chosen, "url", "")):
        model = models.get_model(ask.name, weights=chosen, **options)
    notes: list[str] = []
    if ask.weights is not None:
        notes.append(fill(model, ask.weights))
        return Found(prepare(model, notes, resize=resize), tuple(notes))
    if not pretrained:
        notes.append(RANDOM)
        return Found(prepare(model, notes, resize=resize), tuple(notes), untrained=True)
    notes.append(f"weights: torchvision {chosen}")
    recipe = chosen.transforms()
    mean, std = tuple(recipe.mean), tuple(recipe.std)
    model = prepare(model, notes, mean=mean, std=std, resize=resize)
    return Found(model, tuple(notes), prepared=True)
