"""One perturbation for all images of a split, and the file that holds it.

The threat model `universal:FILE` judges what is trained here, on images that it has not seen.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.core import files
from robustkit.core.losses import input_gradient, margin
from robustkit.core.rng import generator, task_key
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model
from robustkit.data.npz import array
from robustkit.errors import UsageError
from robustkit.registry import read_threat

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

_KEYS = ("delta", "threat", "seen")


class UniversalPerturbation(NamedTuple):
    """What a file holds.

    Attributes:
        delta: what is added to every image [*f].
        bound: threat model that it lies in around 0, such as `linf:0.1`.
        seen: digests of the images that it was trained on.
    """

    delta: Images
    bound: str
    seen: frozenset[bytes]


def train_universal(
    model: Model,
    x: Images,
    y: Labels,
    threat: Threat | str,
    path: Path | str,
    *,
    epochs: int = 10,
    batch: int = 100,
    seed: int = 0,
) -> float:
    """Train one perturbation for all images of a split, and write it to `path` (.npz).

    Shafahi et al. 2020, algorithm 2: the mean gradient of a clipped loss over a batch, a step along
    its steepest direction, a projection of v onto the ball. The loss is the margin, clipped at 0: a
    point that is fooled already asks for nothing. Differs from the paper: margin, not
    cross-entropy; v starts at 0 and the step falls from a quarter of eps to a fortieth. Of the
    states at the ends of epochs the one that fools most of the split is kept.

    Args:
        model: callable from [b, *f] to logits, in evaluation mode; its weights stay as they are.
        x: images of the split to train on [n, *f], in [0, 1].
        y: their labels [n].
        threat: `linf:0.1` or `l2:1`, which bounds v.
        seed: of the order of the images.

    Returns:
        The accuracy on the split under v.

    Raises:
        UsageError: for another threat model, or images and labels that do not fit together.
    """
    told = read_threat(threat)
    if told.norm not in ("linf", "l2"):
        raise UsageError(f"universal perturbations are trained in linf and l2, got {told}.")
    if x.ndim < 2 or y.shape != x.shape[:1] or not len(x) or epochs < 1 or batch < 1:
        raise UsageError(
            f"expected images [n, *f] with n labels, and epochs and batch from 1 on, got "
            f"{list(x.shape)}, {list(y.shape)}, {epochs} and {batch}."
        )
    ball, zero = Threat(told.norm, told.eps, -1.0, 1.0), torch.zeros_like(x[:1])
    delta, best, least = zero, zero, 2.0
    blocks = -(-len(x) // batch)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator(seed, task_key("universal"), epoch))
        for number, rows in enumerate(order.to(x.device).split(batch)):
            slope = _slope(model, x[rows], y[rows], delta)
            left = 1 - (epoch * blocks + number) / (epochs * blocks)
            step = told.eps * max(0.025, 0.25 * left)
            delta = ball.project(delta + step * ball.steepest(slope), zero)
        right = _accuracy(model, x, y, delta, batch)
        if right < least:
            best, least = delta, right
    _write(Path(path), best[0].cpu().numpy(), str(threat), digests(x.cpu()))
    return least


def _slope(model: Model, x: Images, y: Labels, delta: Images) -> Images:
    """Return the mean gradient by the perturbation [1, *f]; none where the box clips it."""
    moved = x + delta
    _, found = input_gradient(
        model, moved.clamp(0, 1), lambda logits: margin(logits, y, y).clamp_max(0)
    )
    if found is None:
        raise UsageError("the model has no gradient at these images: nothing can be trained.")
    free = (moved >= 0) & (moved <= 1)
    return (found.nan_to_num() * free).mean(0, keepdim=True)


def _accuracy(model: Model, x: Images, y: Labels, delta: Images, batch: int) -> float:
    with torch.no_grad():
        parts = zip((x + delta).clamp(0, 1).split(batch), y.split(batch), strict=True)
        return sum(int((model(z).argmax(1) == label).sum()) for z, label in parts) / len(x)


def digests(x: Images) -> list[bytes]:
    """Return SHA-256 of each image [b, *f], as float32 on the CPU."""
    return [hashlib.sha256(image.numpy().tobytes()).digest() for image in x.float()]


def _write(path: Path, delta: NDArray[np.float32], bound: str, seen: Sequence[bytes]) -> None:
    content = io.BytesIO()
    hashes = np.frombuffer(b"".join(seen), dtype=np.uint8).reshape(len(seen), -1)
    np.savez(content, delta=delta, threat=np.frombuffer(bound.encode(), np.uint8), seen=hashes)
    files.write(content.getvalue(), path)


def open_universal(text: str) -> UniversalPerturbation:
    """Read what `train_universal` wrote.

    Raises:
        UsageError: where there is no such file, or its perturbation is larger than its bound.
    """
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"universal:{text}: expected a file that robustkit.search.universal.train_universal "
            f"wrote, got no such file (looked from {Path.cwd()})."
        )
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: Path, _: int) -> UniversalPerturbation:
    delta, bound, seen = (array(path, key) for key in _KEYS)
    told = bytes(bound).decode("ascii", "replace")
    ball, found = read_threat(told), torch.from_numpy(np.array(delta, dtype=np.float32))
    threat = Threat(ball.norm, ball.eps, -1.0, 1.0)
    if not bool(threat.contains(found[None], torch.zeros_like(found)[None])):
        raise UsageError(f"universal:{path}: its perturbation is no part of {told}. Train it anew.")
    return UniversalPerturbation(found, told, frozenset(row.tobytes() for row in np.asarray(seen)))
