"""Texts as inputs: token ids, and offsets of their embeddings, as float32 numbers in [0, 1].

A text is an input [1, t, 1 + d] of t places. The first number of a place is its token id times
2^-20, which float32 holds exactly; the d others are 0.5 + offset, where an offset is added to the
embedding of the token, in units of the mean length of an embedding. d = 0 where offsets make no
sense, as for a classifier of characters. So texts have the box and the axes of images, and data,
ledgers, records and verification take them as they are.

Id 0 is padding: a place without a token. Ids 1 to 7 are control tokens (of a chat template, say),
which no user can type.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNIT, CENTER = 2.0**-20, 0.5
PADDING, RESERVED = 0, 8

Tokens = Int[Tensor, "b t"]
Texts = Float[Tensor, "b 1 t w"]
Offsets = Float[Tensor, "b t d"]


def to_input(ids: Tokens, width: int = 0) -> Texts:
    """Return texts as inputs [b, 1, t, 1 + width], without offsets."""
    first = (ids.double() * UNIT).float()[:, None, :, None]
    return torch.cat([first, first.new_full((*first.shape[:3], width), CENTER)], 3)


def token_ids(x: Texts) -> Tokens:
    """Return the ids of inputs [b, 1, t, w]: whole numbers, whatever is between them."""
    ids: Tensor = (x[:, 0, :, 0].double() / UNIT).round().long()
    return ids.clamp_min(0)


def offsets(x: Texts) -> Offsets:
    """Return the offsets of inputs [b, 1, t, 1 + d], differentiable."""
    moved: Tensor = x[:, 0, :, 1:] - CENTER
    return moved


def with_ids(x: Texts, ids: Tokens) -> Texts:
    """Return the inputs with other ids; the offsets stay."""
    first = (ids.double() * UNIT).to(x.dtype)[:, None, :, None]
    return torch.cat([first, x[..., 1:]], 3)


def with_offsets(x: Texts, moved: Offsets) -> Texts:
    """Return the inputs with other offsets; the ids stay."""
    return torch.cat([x[..., :1], (CENTER + moved)[:, None].to(x.dtype)], 3)


def exact(x: Texts) -> Tensor:
    """Whether the first number of every place is a token id exactly [b]."""
    whole: Tensor = x[:, 0, :, 0].double() == token_ids(x).double() * UNIT
    return whole.all(1)
