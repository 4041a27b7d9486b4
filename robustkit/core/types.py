"""Type aliases for tensors, with their shapes.

`b` is a batch of points, `s` a set of slots, `k` the classes, `*f` the feature axes of one input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, " b *f"]
Labels: TypeAlias = Int[Tensor, " b"]
Logits: TypeAlias = Float[Tensor, "b k"]
Scalars: TypeAlias = Float[Tensor, " b"]
Integers: TypeAlias = Int[Tensor, " b"]
Mask: TypeAlias = Bool[Tensor, " b"]
Model: TypeAlias = Callable[[Tensor], Tensor]
# Of one input: a vector [d], a signal [c, t], an image [c, h, w] or a volume [c, d, h, w].
Shape: TypeAlias = tuple[int, ...]


def per_point(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [b] to [b, 1, ...], so that it broadcasts over the features of `like` [b, *f]."""
    return values.view(-1, *[1] * (like.ndim - 1))
