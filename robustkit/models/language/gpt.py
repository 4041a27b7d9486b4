"""A small decoder-only transformer, from embeddings to logits of the next token."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from robustkit.data.toy_grammar import WORDS

HEADS, LONGEST = 4, 56


class Block(nn.Module):
    """Attention and a perceptron, each behind a normalization and beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, e: Float[Tensor, "b l d"], seen: Bool[Tensor, "b 1 l l"]) -> Tensor:
        """[b, l, d] -> [b, l, d]; `seen` tells which places each place attends to."""
        parts = self.mixed(self.before(e)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=seen)
        e = e + self.out(heads.transpose(1, 2).flatten(2))
        moved: Tensor = e + self.narrow(gelu(self.wide(self.between(e))))
        return moved


class Gpt(nn.Module):
    """Radford et al. 2019, small: learned positions, input and output embeddings tied."""

    def __init__(self, width: int, layers: int, words: int = len(WORDS)) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(layers)])
        self.last = nn.LayerNorm(width)

    def forward(self, e: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Tensor:
        """Embeddings, and which places hold a token -> logits [b, l, v] of the next token."""
        place = (mask.long().cumsum(1) - 1).clamp_min(0)
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        seen = causal & mask[:, None, None, :]
        hidden = e + self.position[place]
        for block in self.blocks:
            hidden = block(hidden, seen)
        return linear(self.last(hidden), self.embedding.weight)
