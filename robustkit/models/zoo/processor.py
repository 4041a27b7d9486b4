"""A differentiable copy of a Hugging Face image processor, or a refusal that says what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask, building

# PIL's filters by their numbers. Of two names for one, the processor decides: PIL takes the pixel
# below the center of the new one, torchvision that below its corner.
_MODES = {0: ("nearest-exact", "nearest"), 2: ("bilinear",), 3: ("bicubic",)}
_NAMES = {1: "lanczos", 4: "box", 5: "hamming"}
_REPRODUCED = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    "do_flip_channel_order",
}
# What names the processor, or tells how images come and go as arrays.
_NO_EFFECT = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    *("default_to_square", "do_convert_rgb", "do_reduce_labels", "_valid_processor_keys"),
}
_CONVNEXT = 384  # from this edge on crop_pct is not used, and images are made square
_TOLERANCE = 0.02  # of the normalized range: the processor rounds to 256 levels after resizing
_CURE = (
    "Write a file of your own that holds the model and this preprocessing, and name it: "
    "path/to/file.py:attr."
)


class Processed(nn.Module):
    """A classifier behind a differentiable copy of its processor; inputs [b, c, h, w] in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, processor: Any, mode: str) -> None:
        super().__init__()
        self.model, self.mode = model, mode
        self.size, self.crop = _sizes(processor)
        self.flips = bool(getattr(processor, "do_flip_channel_order", False))
        scaled = getattr(processor, "do_rescale", True)
        scale = 255 * float(processor.rescale_factor) if scaled else 255.0
        normal = bool(getattr(processor, "do_normalize", False))
        mean = processor.image_mean if normal else [0.0]
        std = processor.image_std if normal else [1.0]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) / scale)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) / scale)

    def prepare(self, x: Tensor) -> Tensor:
        """Resize, crop, flip and normalize [b, c, h, w] in [0, 1]."""
        size = _target(self.size, x.shape[-2], x.shape[-1])
        if size is not None and tuple(x.shape[-2:]) != size:
            x = self._resized(x, size)
        if self.crop:
            height, width = self.crop["height"], self.crop["width"]
            top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
            x = x[..., top : top + height, left : left + width]
        if self.flips:
            x = x.flip(-3)
        return (x - self.mean) / self.std

    def _resized(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        smooth = self.mode in ("bilinear", "bicubic")
        # The processor resizes the width first and rounds to bytes after each of the two steps, so
        # that bicubic cannot overshoot in either. The other filters never overshoot.
        steps = [(x.shape[-2], size[1]), size] if self.mode == "bicubic" else [size]
        for step in steps:
            x = nn.functional.interpolate(x, step, mode=self.mode, antialias=smooth)
            # PyTorch 2.14 gives `clamp` no gradient at the bounds themselves, where black and white
            # pixels lie.
            x = torch.where((x < 0) | (x > 1), x.detach().clamp(0, 1), x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        logits: Tensor = self.model(pixel_values=self.prepare(x)).logits
        return logits


def reproduced(ask: Ask, model: nn.Module, processor: Any) -> Processed:
    """Put a copy of `processor` in front of `model`, compared with it on an image of noise.

    Raises:
        UsageError: for a field of the processor that is not reproduced, and where the copy differs.
    """
    kind = type(processor).__name__
    fields = processor.to_dict() if hasattr(processor, "to_dict") else vars(processor)
    for field, value in fields.items():
        if value and field not in _REPRODUCED and field not in _NO_EFFECT:
            raise UsageError(
                f"{ask.text}: its processor ({kind}) has {field} = {value!r}, which is not "
                f"reproduced inside the model. {_CURE}"
            )
    modes = _modes(ask, processor)
    height, width = ask.shape[1:]
    image = np.random.default_rng(0).integers(0, 256, (height, width, ask.shape[0]), dtype=np.uint8)
    with building(ask, "The processor was tried on one image of the data's shape."):
        theirs = torch.from_numpy(np.array(processor(images=image)["pixel_values"][0]))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        copies = [Processed(model, processor, mode).eval() for mode in modes]
        apart = [_apart(copy, copy.prepare(x)[0], theirs) for copy in copies]
    best = int(np.argmin(apart))
    if not apart[best] <= _TOLERANCE:
        raise UsageError(
            f"{ask.text}: its processor ({kind}) does more than resizing, center cropping, "
            "rescaling, flipping channels and normalizing: on an image of noise a copy of these "
            f"differs from it by {apart[best]:.2g} of the range of inputs. {_CURE}"
        )
    return copies[best]


def _modes(ask: Ask, processor: Any) -> tuple[str, ...]:
    """Return the names PyTorch may have for the filter of a processor."""
    given, size = getattr(processor, "resample", None), _sizes(processor)[0]
    number = 2 if given is None else int(given)
    modes = _MODES.get(number)
    if modes is None and _target(size, *ask.shape[1:]) in (None, ask.shape[1:]):
        return _MODES[2]  # nothing is resized
    if modes is None:
        raise UsageError(
            f"{ask.text}: its processor ({type(processor).__name__}) has resample = {number} "
            f"({_NAMES.get(number, 'unknown')}), which PyTorch cannot reproduce; nearest (0), "
            f"bilinear (2) and bicubic (3) can be. {_CURE}"
        )
    return modes


def _apart(copy: Processed, mine: Tensor, theirs: Tensor) -> float:
    """Return the largest difference by the range of the normalized inputs."""
    if mine.shape != theirs.shape:
        return float("inf")
    return float((mine - theirs).abs().max() / (1 / copy.std).max())


def _sizes(processor: Any) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """Return what a processor resizes to, and what it crops to; None: it does not."""
    crops, resizes = (getattr(processor, f"do_{step}", False) for step in ("center_crop", "resize"))
    size = _plain(getattr(processor, "size", None)) if resizes else None
    crop = _plain(getattr(processor, "crop_size", None)) if crops else None
    part, edge = getattr(processor, "crop_pct", None), (size or {}).get("shortest_edge")
    if (
        part and edge
    ):  # as ConvNeXT's processor reads it; the comparison tells whether this one does
        square = {"height": edge, "width": edge}
        return (
            (square, crop) if edge >= _CONVNEXT else ({"shortest_edge": int(edge / part)}, square)
        )
    return size, crop


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
    if not {"height", "width"} <= size.keys():
        return None  # another rule: the comparison tells
    return size["height"], size["width"]
