"""Hugging Face image classifiers: `hf:PATH_OR_NAME`, with their processor inside the model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.zoo.base import RANDOM, Ask, Found, building
from robustkit.models.zoo.processor import reproduced


def load(ask: Ask) -> Found:
    """Load an image classifier and its processor from a folder, or from the hub by name.

    Weights are read from safetensors only, and no code of the repository runs. The copy of the
    processor is compared with the processor itself on an image of noise; a field of it that is not
    reproduced is refused. Option: `pretrained=false`.

    Raises:
        UsageError: when transformers is absent, a file is missing, weights are missing from the
            checkpoint, or the processor does what cannot be copied.
    """
    transformers: Any = library("transformers", "hf")
    pretrained, ask = ask.option("pretrained", bool, True)
    ask.refuse_options("pretrained")
    ask.refuse_weights()
    local = Path(ask.name).expanduser()
    place = str(local) if local.is_dir() else ask.name
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local.is_dir()}
    hub: Any = importlib.import_module("huggingface_hub.constants")
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        cure = "Download the repository, and name its folder: hf:FOLDER."
        with building(ask, cure, "" if local.is_dir() else hub.ENDPOINT):
            processor = transformers.AutoImageProcessor.from_pretrained(place, **options)
            model, missing = _model(transformers, place, pretrained, options)
    finally:
        transformers.logging.set_verbosity(level)
    if missing:
        raise UsageError(
            f"{ask.text}: {len(missing)} weights are not in the checkpoint and would be random, "
            f"first {missing[0]}. Name a model that was trained as an image classifier."
        )
    wrapped = reproduced(ask, model, processor)
    notes = (f"weights: {place}, inputs preprocessed as its processor does",)
    return Found(wrapped, notes if pretrained else (RANDOM,), True, not pretrained)


def _model(
    transformers: Any, place: str, pretrained: bool, options: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    kind = transformers.AutoModelForImageClassification
    if not pretrained:
        config = transformers.AutoConfig.from_pretrained(place, **options)
        return kind.from_config(config).eval(), []
    model, report = kind.from_pretrained(
        place, use_safetensors=True, output_loading_info=True, **options
    )
    lacking = [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]
    return model.eval(), sorted(map(str, lacking))
