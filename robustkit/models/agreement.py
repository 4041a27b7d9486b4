"""Whether two passes come from the same model: the measures and their tolerances, in one place.

Two passes over one input differ for harmless reasons (another kernel, another summation order,
another device) or because they come from different models, or from a randomized one. How much is
harmless depends on what was held fixed, hence several tolerances. All are far above float32
rounding (6e-8 per operation, about 1e-6 of the logits through a deep network) and far below what
another model changes.
"""

from __future__ import annotations

import torch

from robustkit.core.types import Logits

# Largest distance of two rows of logits, by the longer one (`row_distance`).
SAME_KERNEL = 1e-4  # same device, batch and kernels: only nondeterministic sums may differ
OTHER_BATCH = 1e-3  # same device, another batch size: kernels and their summation order differ
# Largest difference of two logits, by the largest logit (`logit_distance`).
OTHER_ORDER = 1e-4  # the same operations, some replaced by equal ones (the BPDA mode)
OTHER_DEVICE = 1e-3  # another device of the same kind of machine, as when a run is resumed
OTHER_MACHINE = 1e-2  # a worker: other hardware, drivers and library builds at once
# Length of the change by the length of the reference (`row_change`).
HALF_PRECISION = 0.1  # float16 rounds at 5e-4, which the layers of a deep network amplify
# The same for a precision that nobody asked for: bfloat16 moves the bundled networks by 0.002.
UNASKED_PRECISION = 0.02
# Sum of absolute differences by the sum of absolute values: near a kink single entries flip.
INPUT_GRADIENTS = 0.05
# Cosine of two input gradients from which on a surrogate adds nothing to the other.
SAME_GRADIENT = 0.9999

_TINY = 1e-12


def row_distance(a: Logits, b: Logits) -> float:
    """Largest ‖a_i − b_i‖ over the rows of two logits [b, k], divided by the longer of the two."""
    length = torch.maximum(a.norm(dim=1), b.norm(dim=1)).clamp_min(_TINY)
    return float(((a - b).norm(dim=1) / length).max())


def row_change(new: Logits, reference: Logits) -> float:
    """Largest ‖new_i − reference_i‖ / ‖reference_i‖ over the rows of two logits [b, k]."""
    length = reference.norm(dim=1).clamp_min(_TINY)
    return float(((new - reference).norm(dim=1) / length).max())


def logit_distance(new: Logits, reference: Logits) -> float:
    """Largest |new − reference| over two logits [b, k], divided by the largest |reference|."""
    size = reference.abs().max().clamp_min(_TINY)
    return float((new - reference).abs().max() / size)


def difference(new: Logits, reference: Logits, tolerance: float) -> str:
    """Say how far two logits [b, k] are apart; nothing where `logit_distance` is within it."""
    if new.shape != reference.shape:
        return f"expected outputs {list(reference.shape)}, got {list(new.shape)}"
    if logit_distance(new, reference) <= tolerance:
        return ""
    apart, size = (new - reference).abs().max(), reference.abs().max()
    return f"the outputs differ by up to {apart:.3g}, where they reach {size:.3g}"


def repeats(first: Logits, second: Logits) -> bool:
    """Whether two passes [b, k] over the same inputs agree: the model is not randomized.

    By entry, at 1e-4 of it plus 1e-5: stricter than `row_distance` for small logits beside a large
    one, and so on the side of calling a model randomized.
    """
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def same_model(a: Logits, b: Logits) -> bool:
    """Whether two models that were loaded apart are one: equal shapes, entries within 1e-3.

    Loose, since a checkpoint may have passed through another precision: two models that were
    trained apart differ by the size of the logits.
    """
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3)
