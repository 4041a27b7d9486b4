"""Image-text models as classifiers: one text a class, the nearest text is the answer.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021,
arXiv:2103.00020), section 3.1: the classes are texts such as "a photo of a dog.", whose embeddings
are computed once; several templates for a class are averaged in the space of embeddings (3.1.4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.text import short
from robustkit.errors import UsageError
from robustkit.models.zoo.base import Ask

PROMPT = "a photo of a {}."
_TOLERANCE = 1e-3  # of the largest logit: the same products, summed in another order


class Answer(NamedTuple):
    """What an image classifier of transformers answers with."""

    logits: Tensor


class ZeroShot(nn.Module):
    """An image-text model with its texts fixed: pixel values [b, c, h, w] to logits [b, k].

    The embeddings of the texts are in the state dict, so that other texts are other weights.
    """

    texts: Tensor

    def __init__(self, model: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("texts", texts)

    def forward(self, pixel_values: Tensor) -> Answer:
        """Return the similarity with each text, at the model's own scale."""
        model: Any = self.model
        images = F.normalize(_features(model.get_image_features(pixel_values=pixel_values)), dim=-1)
        logits = model.logit_scale.exp() * images @ self.texts.T
        bias = getattr(model, "logit_bias", None)
        return Answer(logits if bias is None else logits + bias)


def zero_shot(
    ask: Ask, model: Any, tokenizer: Any, templates: tuple[str, ...], names: tuple[str, ...]
) -> tuple[nn.Module, str]:
    """Return the classifier and the note about its texts.

    Args:
        model: in evaluation mode, with an image and a text tower.
        templates: each with one {} for the name of the class.
        names: of the classes, in order.

    Raises:
        UsageError: where it does not answer as the model itself does to images and texts.
    """
    found = torch.zeros(1)
    for place, template in enumerate(templates):
        tokens = _tokens(model, tokenizer, [template.replace("{}", name) for name in names])
        with torch.no_grad():
            part = F.normalize(_features(model.get_text_features(**tokens)), dim=-1)
        if not place:
            _compare(ask, model, part, tokens)
        found = found + part
    first = templates[0].replace("{}", names[0])
    more = f" and {len(templates) - 1} more templates" if len(templates) > 1 else ""
    note = f"zero-shot: {len(names)} texts such as {short(first, 60)!r}{more}"
    return ZeroShot(model, F.normalize(found, dim=-1)).eval(), note


def texts(ask: Ask) -> tuple[tuple[str, ...], tuple[str, ...], Ask]:
    """Take the options `prompt` and `labels` out of a request.

    Returns:
        Templates, names of the classes, and the request without these options.

    Raises:
        UsageError: for a template without one {}, and where there is not one name a class.
    """
    given, labels = ask.options.get("prompt", PROMPT), ask.options.get("labels")
    rest = {key: value for key, value in ask.options.items() if key not in ("prompt", "labels")}
    templates = given if isinstance(given, tuple) else (given,)
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UsageError(
                f"{ask.text}: expected prompt with one {{}} for the class, such as {PROMPT!r}, got "
                f"{template!r}."
            )
    named: Any = ask.class_names if labels is None else labels
    if isinstance(named, str):
        named = _lines(ask, Path(named).expanduser())
    if not named:
        raise UsageError(
            f"{ask.text}: the classes have no names in this data, and the model reads them. Give "
            "them: labels=('cat', 'dog') in order of the labels, or labels='FILE' with one a line."
        )
    if len(named) != ask.classes:
        raise UsageError(
            f"{ask.text}: expected {ask.classes} labels, one a class, got {len(named)}."
        )
    return templates, tuple(map(str, named)), ask._replace(options=rest)


def _lines(ask: Ask, path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{ask.text}: labels={str(path)!r} cannot be read: {error}.") from None
    return tuple(line.strip() for line in lines if line.strip())


def _tokens(model: Any, tokenizer: Any, lines: list[str]) -> dict[str, Tensor]:
    # SigLIP was trained on texts of full length, and the mask of CLIP hides what fills them up.
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(lines, padding="max_length", max_length=length, return_tensors="pt")
    known = ("input_ids", "attention_mask")
    return {key: value for key, value in tokens.items() if key in known}


def _features(found: Any) -> Tensor:
    """Return the embeddings [b, d]; from transformers 5 on they come inside an output."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def _compare(ask: Ask, model: Any, embedded: Tensor, tokens: dict[str, Tensor]) -> None:
    """Refuse a model whose answer is another function of its embeddings."""
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, size, size, generator=generator)
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **tokens).logits_per_image
        mine = ZeroShot(model, embedded)(pixels).logits
    apart = float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    if not apart <= _TOLERANCE:
        raise UsageError(
            f"{ask.text}: expected logits that are scaled cosines of image and text, as those of "
            f"CLIP and SigLIP are, got others ({type(model).__name__}, {apart:.2g} apart). Write a "
            "file of your own that holds the model, and name it: path/to/file.py:attr."
        )
