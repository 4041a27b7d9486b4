"""What a run does before it attacks: the clean pass, and the certificate on every point."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from robustkit.certify.certifier import Certifier
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model
from robustkit.errors import RobustkitError, some
from robustkit.evaluation.stages.judge import (
    PointSource,
    VerdictWriter,
    refuse_refuted_certificates,
)
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CARRIED
from robustkit.verify.candidates import predict

Report: TypeAlias = Callable[[int, int], None]  # hears of each batch: points, and those that pass


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


def certify_points(
    name: str,
    points: Sequence[int],
    ledger: Ledger,
    watcher: Watcher,
    work: Callable[[list[int], set[int], Report], None],
    *,
    everything: bool,
) -> None:
    """Try a certificate on those of `points` that are classified correctly and not tried yet.

    Args:
        name: of the certificate.
        work: tries it on some points, of which the second have fallen at a larger eps, and writes
            it down; see `prove`.
        everything: also on points that fell at a larger eps, to check the proof.

    Raises:
        RobustkitError: when such a point is proved robust.
    """
    tried, clean = ledger.certified(), ledger.clean()
    fallen = {p for p, fall in ledger.falls().items() if fall.stage == CARRIED}
    spared = set() if everything else fallen
    right = [p for p in points if clean[p][0] == clean[p][1] and p not in spared]
    todo, proved = [p for p in right if p not in tried], sum(tried.get(p, False) for p in right)
    watcher.stage(f"certify {name}", len(right))
    done = len(right) - len(todo)

    def told(tried: int, holds: int) -> None:
        nonlocal done, proved
        done, proved = done + tried, proved + holds
        watcher.advance(done, proved, len(right))

    work(todo, fallen & set(todo), told)


def prove(
    certifier: Certifier,
    todo: Sequence[int],
    fallen: set[int],
    data: PointSource,
    pen: VerdictWriter,
    device: torch.device,
    threat: Threat,
    told: Report,
) -> None:
    """Try a certificate on the points `todo`, batch by batch.

    Args:
        fallen: points that an attack has broken at a larger eps, within this one or not.
        told: called after every batch with (points, those of them proved robust).

    Raises:
        RobustkitError: when one of `fallen` is proved robust.
    """
    for start in range(0, len(todo), certifier.batch):
        batch, clock = todo[start : start + certifier.batch], time.monotonic()
        x, y = (part.to(device) for part in data.fetch(batch))
        holds = certifier.prove(x, y).tolist()
        refuted = [p for p, ok in zip(batch, holds, strict=True) if ok and p in fallen]
        refuse_refuted_certificates("the attack at a larger eps", refuted, threat)
        pen.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
        told(len(batch), sum(holds))
