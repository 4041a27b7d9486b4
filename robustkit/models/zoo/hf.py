"""Hugging Face image classifiers: `hf:PATH_OR_NAME`, with their processor inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.zoo.base import RANDOM, Ask, Found, building

_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of PIL
_TOLERANCE = 0.02  # of the normalized range: the processor rounds to 256 levels after resizing


class Processed(nn.Module):
    """A classifier behind a differentiable copy of its processor; inputs [b, c, h, w] in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, processor: Any) -> None:
        super().__init__()
        self.model = model
        crops = bool(getattr(processor, "do_center_crop", False))
        size = getattr(processor, "size", None) if getattr(processor, "do_resize", False) else None
        crop = getattr(processor, "crop_size", None) if crops else None
        self.size, self.crop = _plain(size), _plain(crop)
        self.mode = _MODES.get(int(getattr(processor, "resample", None) or 2), "bilinear")
        scaled = getattr(processor, "do_rescale", True)
        scale = 255 * float(processor.rescale_factor) if scaled else 255.0
        normal = bool(getattr(processor, "do_normalize", False))
        mean = processor.image_mean if normal else [0.0]
        std = processor.image_std if normal else [1.0]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) / scale)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) / scale)

    def prepare(self, x: Tensor) -> Tensor:
        """Resize, crop and normalize [b, c, h, w] in [0, 1]."""
        size = _target(self.size, x.shape[-2], x.shape[-1])
        if size is not None and tuple(x.shape[-2:]) != size:
            smooth = self.mode != "nearest"
            x = nn.functional.interpolate(x, size, mode=self.mode, antialias=smooth)
            # The processor rounds to bytes, so that bicubic cannot overshoot. PyTorch 2.14 gives
            # `clamp` no gradient at the bounds themselves, where black and white pixels lie.
            x = torch.where((x < 0) | (x > 1), x.detach().clamp(0, 1), x)
        if self.crop:
            height, width = self.crop["height"], self.crop["width"]
            top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
            x = x[..., top : top + height, left : left + width]
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        logits: Tensor = self.model(pixel_values=self.prepare(x)).logits
        return logits


def load(ask: Ask) -> Found:
    """Load an image classifier and its processor from a folder, or from the hub by name.

    Weights are read from safetensors only, and no code of the repository runs. The copy of the
    processor is compared with the processor itself on one image. Option: `pretrained=false`.

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
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with building(ask, "Download the repository, and name its folder: hf:FOLDER."):
            processor = transformers.AutoImageProcessor.from_pretrained(place, **options)
            model, missing = _model(transformers, place, pretrained, options)
    finally:
        transformers.logging.set_verbosity(level)
    if missing:
        raise UsageError(
            f"{ask.text}: {len(missing)} weights are not in the checkpoint and would be random, "
            f"first {missing[0]}. Name a model that was trained as an image classifier."
        )
    wrapped = Processed(model, processor).eval()
    _compare(ask, wrapped, processor)
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


def _compare(ask: Ask, wrapped: Processed, processor: Any) -> None:
    channels, height, width = ask.shape
    ramp = np.linspace(0, 255, height * width * channels).astype(np.uint8)
    image = ramp.reshape(height, width, channels)
    with building(ask, "The processor was tried on one image of the data's shape."):
        theirs = torch.as_tensor(np.asarray(processor(images=image)["pixel_values"][0]))
        mine = wrapped.prepare(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    scale = float((1 / wrapped.std).max())
    if mine.shape != theirs.shape or float((mine - theirs).abs().max()) > _TOLERANCE * scale:
        raise UsageError(
            f"{ask.text}: its processor ({type(processor).__name__}) does more than resizing, "
            "center cropping, rescaling and normalizing; wrap the model in a file of your own."
        )


def _plain(size: Any) -> dict[str, int] | None:
    """Return a processor's size as {height, width}, {shortest_edge} or None."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if not isinstance(size, Mapping):
        size = {key: getattr(size, key, None) for key in ("height", "width", "shortest_edge")}
    return {key: int(value) for key, value in size.items() if value is not None} or None


def _target(size: dict[str, int] | None, height: int, width: int) -> tuple[int, int] | None:
    if not size:
        return None
    if "shortest_edge" in size:
        edge, short = size["shortest_edge"], min(height, width)
        return int(edge * height / short), int(edge * width / short)
    return size["height"], size["width"]
