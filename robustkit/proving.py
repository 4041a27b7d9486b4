"""What a run does before it attacks: the clean pass, and the certificate on every point."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from robustkit.bounds.certify import Certifier
from robustkit.data import Dataset
from robustkit.errors import RobustkitError, some
from robustkit.ledger import CARRIED, Ledger
from robustkit.referee import refuse_refuted
from robustkit.threat import Threat
from robustkit.types import Images, Labels, Model
from robustkit.verify import predict
from robustkit.watcher import Watcher


def classify(
    model: Model,
    points: Sequence[int],
    x: Images,
    y: Labels,
    *,
    draws: int,
    ranked: int,
    name: str,
) -> tuple[list[tuple[int, int, int, list[int]]], dict[int, float]]:
    """Return (point, label, predicted class, the `ranked` classes of largest logit) of a batch.

    And by point the share of the passes that erred, where there are several.

    Raises:
        RobustkitError: for logits that are not finite.
    """
    predicted, logits, votes = predict(model, x, draws)
    bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise RobustkitError(
            f"{name} returns NaN or infinite logits on the clean points "
            f"{some([points[row] for row in bad])}. Mend the model, or leave them out."
        )
    # Ties and votes can put another class first: the predicted one must not become a target.
    first = logits.scatter(1, predicted[:, None], torch.inf)
    order = first.topk(ranked, dim=1).indices.tolist()
    errors = 1 - votes.cpu().gather(1, y.cpu()[:, None])[:, 0] / draws
    rows = list(zip(points, y.tolist(), predicted.tolist(), order, strict=True))
    return rows, dict(zip(points, errors.tolist(), strict=True)) if draws > 1 else {}


def prove_points(
    certifier: Certifier,
    data: Dataset,
    points: Sequence[int],
    ledger: Ledger,
    device: torch.device,
    watcher: Watcher,
    threat: Threat,
    *,
    everything: bool,
) -> None:
    """Try a certificate on those of `points` that are classified correctly, and write it down.

    Args:
        everything: also on points that fell at a larger eps, to check the proof.

    Raises:
        RobustkitError: when such a point is proved robust.
    """
    tried, clean = ledger.certified(), ledger.clean()
    fallen = {p for p, fall in ledger.falls().items() if fall.stage == CARRIED}
    spared = set() if everything else fallen
    right = [p for p in points if clean[p][0] == clean[p][1] and p not in spared]
    todo, proved = [p for p in right if p not in tried], sum(tried.get(p, False) for p in right)
    watcher.stage(f"certify {certifier.name}", len(right))
    for start in range(0, len(todo), certifier.batch):
        batch, clock = todo[start : start + certifier.batch], time.monotonic()
        x, y = (part.to(device) for part in data.fetch(batch))
        holds = certifier.prove(x, y).tolist()
        refuted = [p for p, ok in zip(batch, holds, strict=True) if ok and p in fallen]
        refuse_refuted("the attack at a larger eps", refuted, threat)
        ledger.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
        proved += sum(holds)
        watcher.advance(len(right) - len(todo) + start + len(batch), proved, len(right))
