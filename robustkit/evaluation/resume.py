"""Is this the model whose verdicts the ledger holds? The digest of its weights does not tell."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from robustkit.core.rng import Keys, generator, task_key, uniform
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.errors import UsageError
from robustkit.record.ledger import Ledger
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.diagnostics.probe import Diagnosis

_SAME, _SAME_GRADIENT = 1e-3, 0.05  # kernels of another device differ in the last bits


def same_answers(
    ledger: Ledger, model: Model, health: Diagnosis, threat: Threat, seed: int, name: str
) -> Diagnosis:
    """Refuse to go on with a model that answers otherwise than when the run began.

    Compared are the logits of the first look, and logits and input gradients at random inputs
    around it: images hold 8 bits, what attacks ask about does not. A randomized model, or one with
    a memory, never answers alike and is not compared.

    Returns:
        `health` with the passes that this took.

    Raises:
        UsageError: when the answers differ.
    """
    unstable = health.randomized or any(flag.name == "stateful" for flag in health.flags)
    asked = CountedModel(model, name)
    now = {"answers": health.answers.cpu()}
    if not unstable and health.sample is not None:
        now |= _around(asked, health.sample, threat, seed)
    for key, value in now.items():
        before = ledger.remembered(key)
        if before is None or health.randomized:
            ledger.remember(key, value.tolist())
        elif not _alike(torch.tensor(before), value, key):
            raise UsageError(
                f"{ledger.path.parent} holds a run of {name} when it answered otherwise to the "
                "same inputs: its code has changed. Choose another --out, or start over with "
                "--fresh."
            )
    return health.after(asked.forwards, asked.backwards)


def _around(asked: CountedModel, sample: Images, threat: Threat, seed: int) -> dict[str, Tensor]:
    """Ask about one random input on the edge of the ball around each point, one inside, a corner.

    All lie in the box. The gradient is that of the logits, weighted at random.
    """
    count, features = len(sample), sample[0].numel()
    point = torch.arange(count, device=sample.device)
    keys = Keys(*(torch.full_like(point, seed), point,
                  torch.full_like(point, task_key("same answers"))))  # fmt: skip
    edge = threat.sample(sample, keys, 0)
    inside = sample + (edge - sample) * uniform(keys, features, 1).view_as(sample)
    corner = sample + threat.eps * (uniform(keys, features, 2).view_as(sample) - 0.5).sign()
    views = torch.randn(features, 4, generator=generator(seed, task_key("views"), 0))
    logits, slopes = [], []
    for near in (edge, inside, threat.project(corner, sample)):
        try:
            answer, slope = asked.gradient(near, _weighted)
        except UsageError:  # it cannot be differentiated
            answer, slope = asked.logits(near), None
        slope = torch.zeros_like(near) if slope is None else slope
        logits.append(_finite(answer))
        slopes.append(_finite(slope.flatten(1)) @ views)  # four numbers tell gradients apart
    return {"answers_near": torch.cat(logits), "gradients_near": torch.cat(slopes)}


def _weighted(logits: Tensor) -> Tensor:
    return (logits * torch.linspace(-1, 1, logits.shape[1], device=logits.device)).sum(1)


def _finite(values: Tensor) -> Tensor:
    return values.detach().float().nan_to_num().cpu()


def _alike(then: Tensor, now: Tensor, key: str) -> bool:
    if then.shape != now.shape:
        return False
    apart = (then - now).abs()
    if key == "gradients_near":  # near a kink, single ones may differ
        return float(apart.sum()) <= _SAME_GRADIENT * max(float(now.abs().sum()), 1e-12)
    return float(apart.max()) <= _SAME * max(float(now.abs().max()), 1e-12)


def source_digest(name: str) -> str | None:
    """SHA-256 of the file in a model's name such as `path/to/file.py:attr`; None: no file there."""
    file = name.rpartition(":")[0]
    path = Path(file).expanduser()
    if not file.endswith(".py") or not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()
