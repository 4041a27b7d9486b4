"""Is this the model whose verdicts the ledger holds? The digest of its weights does not tell."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.core.named import NamedThreat
from robustkit.core.rng import Keys, generator, task_key, uniform
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.evaluation.prepare import SAMPLE, Prepared, first_sample
from robustkit.evaluation.settings import Settings
from robustkit.models.agreement import INPUT_GRADIENTS, OTHER_DEVICE, logit_distance
from robustkit.record.ledger import Ledger
from robustkit.verify.diagnostics.counted_model import CountedModel
from robustkit.verify.diagnostics.probe import Diagnosis

_NEAR = Threat("linf", 0.1)  # where the threat model has no ball


def same_answers(ledger: Ledger, settings: Settings, prepared: Prepared) -> Diagnosis:
    """Refuse to go on with a model that answers otherwise than when the run began.

    Compared are the logits of the first look, and logits and input gradients at random inputs
    around it: images hold 8 bits, what attacks ask about does not. A model that is randomized or
    has a memory never answers alike and is not compared.

    Returns:
        The diagnosis with the passes that this took.

    Raises:
        UsageError: when the answers differ.
    """
    diagnosis, name = prepared.diagnosis, settings.name
    unstable = diagnosis.randomized or any(flag.name == "stateful" for flag in diagnosis.flags)
    counted = CountedModel(prepared.model, name)
    sample, now = diagnosis.sample, {"answers": diagnosis.answers.cpu()}
    if ledger.remembered("answers") is None:
        ledger.remember("sample", "spaced")
    elif ledger.remembered("sample") is None and SAMPLE < len(prepared.points) < 2 * SAMPLE:
        sample = first_sample(prepared.data, prepared.points).to(sample.device)
        now = {"answers": counted.logits(sample).cpu()}
    if not unstable:
        now |= _around(counted, sample, settings.threat, settings.seed)
    for key, value in now.items():
        before = ledger.remembered(key)
        if before is None or unstable:
            ledger.remember(key, value.tolist())
        elif not _alike(torch.tensor(before), value, key):
            raise UsageError(
                f"{ledger.path.parent} holds a run of {name} when it answered otherwise to the "
                "same inputs: its code has changed. Choose another --out, or start over with "
                "--fresh."
            )
    return diagnosis.after(counted.forwards, counted.backwards)


def _around(counted: CountedModel, sample: Images, threat: Threat, seed: int) -> dict[str, Tensor]:
    """Ask about one random input on the edge of the ball around each point, one inside, a corner.

    All lie in the box. The gradient is that of the logits, weighted at random.
    """
    count, features = len(sample), sample[0].numel()
    point = torch.arange(count, device=sample.device)
    keys = Keys(*(torch.full_like(point, seed), point,
                  torch.full_like(point, task_key("same answers"))))  # fmt: skip
    threat = _NEAR if isinstance(threat, NamedThreat) else threat
    edge = threat.sample(sample, keys, 0)
    inside = sample + (edge - sample) * uniform(keys, features, 1).view_as(sample)
    corner = sample + threat.eps * (uniform(keys, features, 2).view_as(sample) - 0.5).sign()
    views = torch.randn(features, 4, generator=generator(seed, task_key("views"), 0))
    logits, slopes = [], []
    for near in (edge, inside, threat.project(corner, sample)):
        try:
            answer, slope = counted.gradient(near, _weighted)
        except UsageError:  # it cannot be differentiated
            answer, slope = counted.logits(near), None
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
    if key == "gradients_near":
        size = max(float(now.abs().sum()), 1e-12)
        return float((then - now).abs().sum()) <= INPUT_GRADIENTS * size
    return logit_distance(then, now) <= OTHER_DEVICE
