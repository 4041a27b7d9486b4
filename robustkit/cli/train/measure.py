"""How good a trained network is: clean accuracy, under a short attack, and by interval bounds."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustkit.certify.certifier import build_certifier
from robustkit.core.named import NamedThreat
from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.data.dataset import Dataset
from robustkit.models.adversarial_training import perturb
from robustkit.registry import attacks
from robustkit.search.functional import attack

_BATCH, _PGD, _STEPS = 250, "pgd(steps=20)", 5


def measure(
    model: nn.Module, data: Dataset, threat: Threat, *, seed: int, device: torch.device
) -> dict[str, Any]:
    """Return clean and PGD-20 accuracy on all points, as fractions, and the share that is proved.

    The last bears the name of the certificate "quick", such as IBP. It is left out where none is
    known for the network, or where it proves nothing.

    Under a threat model that is no ball, as of prompts, it is the clean accuracy alone, and what
    the model says of itself by a method `measured(data)`.
    """
    if isinstance(threat, NamedThreat):
        return _by_itself(model, data)
    search, bounds = attacks.build(_PGD), build_certifier(model, data.shape, threat, "quick")
    clean = robust = proved = 0
    for start in range(0, len(data), _BATCH):
        points = range(start, min(start + _BATCH, len(data)))
        x, y = (part.to(device) for part in data.fetch(points))
        z = attack(model, x, y, search, threat, seed=seed, slots=_BATCH)
        with torch.no_grad():
            clean += int((model(x).argmax(1) == y).sum())
            robust += int((model(z).argmax(1) == y).sum())
        proved += int(bounds.prove(x, y).sum()) if bounds else 0
    n = len(data)
    found = {"clean": clean / n, "pgd20": robust / n, "n": n, "threat": str(threat)}
    return {**found, bounds.method: proved / n} if bounds and proved else found


def _by_itself(model: nn.Module, data: Dataset) -> dict[str, Any]:
    own = model.measured(data) if isinstance(model, _Measured) else {}
    return {"clean": watched(model, data, None, 0), "n": len(data), **own}


@runtime_checkable
class _Measured(Protocol):
    """Tells a model that measures more than its decisions."""

    def measured(self, data: Dataset) -> dict[str, float]: ...


def watched(model: nn.Module, data: Dataset, threat: Threat | None, seed: int) -> float:
    """Return the accuracy on all points, as a fraction; with a threat, its mean with that at PGD-5.

    Cheap, to compare the epochs of one training; the draws are the same every time. Robust accuracy
    alone would choose by chance among late epochs, between which clean accuracy still rises.
    """
    shares = []
    for start in range(0, len(data), _BATCH):
        points = range(start, min(start + _BATCH, len(data)))
        x, y = (part.to(next(model.parameters()).device) for part in data.fetch(points))
        shown = [x]
        if threat is not None:
            draw = generator(seed, 5, start)
            loss = partial(cross_entropy, target=y, reduction="sum")
            shown.append(perturb(model, x, loss, threat, steps=_STEPS, generator=draw))
        with torch.no_grad():
            shares += [(model(z).argmax(1) == y).double().cpu() for z in shown]
    return float(torch.cat(shares).mean())
