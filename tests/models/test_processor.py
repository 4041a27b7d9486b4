"""Processors of Hugging Face: reproduced to the last step, or refused by the name of a field."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.core.optional import library
from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask
from robustkit.models.zoo.processor import Processed, reproduced

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "torchvision")),
    reason="not installed: transformers, torchvision",
)


def ask(height: int = 20, width: int = 20) -> Ask:
    return Ask("hf:it", "it", {}, (3, height, width), 10)


def processor(kind: str, folder: Path, **fields: Any) -> Any:
    """Write a processor's file, with whatever fields, and read it as `hf:` does."""
    transformers: Any = library("transformers", "hf")
    made = getattr(transformers, kind)(**fields)
    made.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return transformers.AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)


def differ(copy: Processed, theirs: Any, height: int = 20, width: int = 20) -> float:
    """Largest difference of the copy from the processor, in levels of 255, on other noise."""
    image = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    answer = theirs(images=image)["pixel_values"][0]
    wanted = answer if isinstance(answer, torch.Tensor) else torch.from_numpy(np.array(answer))
    mine = copy.prepare(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    return float(((mine - wanted).abs() * copy.std[0]).max() * 255)


PLAIN = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("side", [13, 32])
def test_filters_that_pytorch_has_are_reproduced(
    resample: int, side: int, fast: bool, tmp_path: Path
) -> None:
    size = {"height": side, "width": side}
    kind = "ViTImageProcessorFast" if fast else "ViTImageProcessor"
    theirs = processor(kind, tmp_path, size=size, resample=resample, **PLAIN)
    assert differ(reproduced(ask(), nn.Identity(), theirs), theirs) < 2.5


@pytest.mark.parametrize(("number", "name"), [(1, "lanczos"), (4, "box"), (5, "hamming")])
def test_other_filters_are_refused_by_name(number: int, name: str, tmp_path: Path) -> None:
    size = {"height": 13, "width": 13}
    theirs = processor("ViTImageProcessor", tmp_path, size=size, resample=number, **PLAIN)
    with pytest.raises(UsageError, match=rf"resample = {number} \({name}\).*file.py:attr") as told:
        reproduced(ask(), nn.Identity(), theirs)
    assert told.value.exit_code == 2


def test_other_filters_do_no_harm_where_nothing_is_resized(tmp_path: Path) -> None:
    size = {"height": 20, "width": 20}
    theirs = processor("ViTImageProcessor", tmp_path, size=size, resample=1, **PLAIN)
    assert differ(reproduced(ask(), nn.Identity(), theirs), theirs) < 1e-3


@pytest.mark.parametrize("flips", [False, True])
def test_the_order_of_channels_is_the_processors(flips: bool, tmp_path: Path) -> None:
    theirs = processor(
        "MobileViTImageProcessor", tmp_path, size={"shortest_edge": 24},
        crop_size={"height": 16, "width": 16}, do_flip_channel_order=flips,
    )  # fmt: skip
    copy = reproduced(ask(), nn.Identity(), theirs)
    assert copy.flips == flips
    assert differ(copy, theirs) < 2.5


@pytest.mark.parametrize(("edge", "height", "width"), [(16, 20, 20), (400, 24, 24), (16, 24, 20)])
def test_convnexts_crop_is_reproduced(edge: int, height: int, width: int, tmp_path: Path) -> None:
    theirs = processor(
        "ConvNextImageProcessor", tmp_path, size={"shortest_edge": edge}, crop_pct=0.8, resample=3
    )
    copy = reproduced(ask(height, width), nn.Identity(), theirs)
    assert differ(copy, theirs, height, width) < 2.5


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("EfficientNetImageProcessor", {"rescale_offset": True, "include_top": False}),
        ("EfficientNetImageProcessor", {"include_top": True}),
        ("ViTImageProcessor", {"do_sharpen": True}),
        ("ViTImageProcessor", {"pad_size": {"height": 40, "width": 40}}),
    ],
)
def test_any_other_field_is_refused_by_name_and_value(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    theirs = processor(kind, tmp_path, size={"height": 16, "width": 16}, resample=2, **fields)
    field = next(name for name, value in fields.items() if value)
    with pytest.raises(UsageError, match=rf"has {field} = .*not reproduced.*file.py:attr"):
        reproduced(ask(), nn.Identity(), theirs)


def test_what_no_field_says_is_seen_on_noise(tmp_path: Path) -> None:
    theirs = processor("ViTImageProcessor", tmp_path, size={"height": 16, "width": 16}, **PLAIN)

    class Turned:
        """Reverses the channels, without a field that says so."""

        def __getattr__(self, name: str) -> Any:
            return getattr(theirs, name)

        def __call__(self, images: Any) -> Any:
            return theirs(images=images[..., ::-1].copy())

    with pytest.raises(UsageError, match=r"on an image of noise .* differs from it by"):
        reproduced(ask(), nn.Identity(), Turned())
