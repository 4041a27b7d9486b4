"""How alike nodes are: by their words, or by embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.data.graphs import Pairs


def jaccard(features: Tensor, pairs: Pairs) -> Tensor:
    """Return the share of the words of either that both have, by pair [p]; 0: there are none."""
    u, v = (features[pairs[:, side]].bool() for side in (0, 1))
    shared, whole = (u & v).sum(1).float(), (u | v).sum(1).float()
    return shared / whole.clamp_min(1)


def jaccard_matrix(features: Tensor) -> Tensor:
    """Return the Jaccard similarity of all pairs [n, n]."""
    words = features.float()
    shared, count = words @ words.t(), words.sum(1)
    return shared / (count[:, None] + count - shared).clamp_min(1)


def cosine_matrix(embeddings: Tensor) -> Tensor:
    """Return the cosine similarity of all pairs [n, n]."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return unit @ unit.t()
