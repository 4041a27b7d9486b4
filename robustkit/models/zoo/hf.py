"""Hugging Face image classifiers and CLIP: `hf:PATH_OR_NAME`, their processor inside the model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.zoo.base import RANDOM, Ask, Found, building
from robustkit.models.zoo.processor import reproduced
from robustkit.models.zoo.zero_shot import texts, zero_shot


def load(ask: Ask) -> Found:
    """Load an image classifier, or an image-text model, and its processor: a folder, or by name.

    Weights are read from safetensors only, and no code of the repository runs. The copy of the
    processor is compared with the processor itself on an image of noise; a field of it that is not
    reproduced is refused. An image-text model (CLIP, SigLIP) classifies by the texts of `prompt`
    with the names of the classes, which `labels` replaces. Options: `pretrained=false`, `prompt`,
    `labels`.

    Raises:
        UsageError: when transformers is absent, a file is missing, weights are missing from the
            checkpoint, the processor does what cannot be copied, or an image-text model has not one
            name a class.
    """
    transformers: Any = library("transformers", "hf")
    pretrained, ask = ask.option("pretrained", bool, True)
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
            config = transformers.AutoConfig.from_pretrained(place, **options)
            reads_texts = _reads_texts(transformers, config)
            templates, names, ask = texts(ask) if reads_texts else ((), (), ask)
            ask.refuse_options("pretrained", *("prompt", "labels") * reads_texts)
            kind, tokenizer = transformers.AutoModelForImageClassification, None
            if reads_texts:
                kind = transformers.AutoModelForZeroShotImageClassification
                tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
            model, missing = _model(kind, config, place if pretrained else "", options)
    finally:
        transformers.logging.set_verbosity(level)
    if missing:
        raise UsageError(
            f"{ask.text}: {len(missing)} weights are not in the checkpoint and would be random, "
            f"first {missing[0]}. Name a model that was trained as an image classifier, or on "
            "images and texts."
        )
    notes = [f"weights: {place}, inputs preprocessed as its processor does"]
    notes = notes if pretrained else [RANDOM]
    if reads_texts:
        with building(ask, "Its texts were embedded, and its answer to noise compared."):
            model, note = zero_shot(ask, model, tokenizer, templates, names)
        notes.append(note)
    return Found(reproduced(ask, model, processor), tuple(notes), True, not pretrained)


def _reads_texts(transformers: Any, config: Any) -> bool:
    """Whether a checkpoint is an image-text model; one with a head for classes is none."""
    known = transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
    heads = [str(name) for name in getattr(config, "architectures", None) or ()]
    return type(config) in known and not any(h.endswith("ForImageClassification") for h in heads)


def _model(
    kind: Any, config: Any, place: str, options: dict[str, Any]
) -> tuple[nn.Module, list[str]]:
    """Load the weights at `place`, or draw them where that is empty; name what is missing."""
    if not place:
        return kind.from_config(config).eval(), []
    model, report = kind.from_pretrained(
        place, use_safetensors=True, output_loading_info=True, **options
    )
    lacking = [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]
    return model.eval(), sorted(map(str, lacking))
