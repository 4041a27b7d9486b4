"""timm: `timm:resnet18`, with its pretrained weights, normalization, and classes."""

from __future__ import annotations

import importlib
from typing import Any

from robustkit.core.optional import library
from robustkit.core.packages import installed, pip_command
from robustkit.errors import UsageError, unknown
from robustkit.models.zoo.base import RANDOM, Ask, Found, building, fill, offline, prepare


def hub_cure() -> str:
    """Say what helps: robustbench holds timm back, and transformers 5 asks for a later hub."""
    more = ["transformers<5"] if installed("transformers") else []
    command = pip_command("install", "huggingface-hub<1", *more)
    return f"Run `{command}`, or upgrade timm if robustbench may go"


def hub_fault() -> str:
    """Say why timm cannot ask the Hugging Face hub, "" if it can: it takes a misfit for absence."""
    try:
        hub: Any = importlib.import_module("timm.models._hub")
    except ModuleNotFoundError:  # an old timm
        return ""
    dist, mine = installed("huggingface_hub"), installed("timm")
    if dist is None or mine is None or getattr(hub, "_has_hf_hub", True):
        return ""
    return f"timm {mine.version} cannot use huggingface_hub {dist.version}"


def load(ask: Ask) -> Found:
    """Load a model of timm by name.

    Options: `pretrained=false` (random weights), `resize=224`, and those of `timm.create_model`.
    Pretrained weights come with the mean and std they were trained with. With --weights, classes
    default to those of the data, and normalization is left to --mean and --std, or is timm's for
    that name: `normalize=true`.

    Raises:
        UsageError: when timm is absent, or the model cannot be had.
    """
    timm: Any = library("timm", "timm")
    pretrained, ask = ask.option("pretrained", bool, True)
    resize, ask = ask.option("resize", int)
    normalize, ask = ask.option("normalize", bool, False)
    if not timm.is_model(ask.name.partition(".")[0]):
        raise unknown("timm model", ask.name, timm.list_models())
    download = pretrained and ask.weights is None
    if download and "num_classes" in ask.options:
        raise UsageError(f"{ask.text}: num_classes would replace the trained head by a random one.")
    options = ask.options if download else {"num_classes": ask.classes, **ask.options}
    known = timm.get_pretrained_cfg(ask.name) if download else None
    fault = hub_fault() if getattr(known, "hf_hub_id", None) else ""
    if fault:
        raise UsageError(f"{ask.text}: no pretrained weights can be had: {fault}. {hub_cure()}.")
    host = getattr(known, "url", "") or "https://huggingface.co"
    with building(ask, offline(ask), host if download else ""):
        model = timm.create_model(ask.name, pretrained=download, **options)
    notes: list[str] = []
    if ask.weights is not None:
        notes.append(fill(model, ask.weights))
        recipe = model.pretrained_cfg if normalize else {}
        mean, std = (tuple(recipe[key]) if key in recipe else None for key in ("mean", "std"))
        model = prepare(model, notes, mean=mean, std=std, resize=resize)
        return Found(model, tuple(notes), prepared=normalize)
    if not pretrained:
        notes.append(RANDOM)
        return Found(prepare(model, notes, resize=resize), tuple(notes), untrained=True)
    known = model.pretrained_cfg
    notes.append(f"weights: timm {known.get('hf_hub_id') or known.get('url') or ask.name}")
    mean, std = tuple(known["mean"]), tuple(known["std"])
    model = prepare(model, notes, mean=mean, std=std, resize=resize)
    return Found(model, tuple(notes), prepared=True)
