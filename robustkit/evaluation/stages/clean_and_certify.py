"""What a run does before it attacks: the clean pass, and the certificate on every point."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from robustkit.certify.certifier import Certifier
from robustkit.core.criterion import UNTARGETED, Criterion
from robustkit.core.device import out_of_memory
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.errors import RobustkitError, some
from robustkit.evaluation.stages.judge import refuse_refuted_certificates
from robustkit.evaluation.stages.stage import DeviceWorker, PointSource, Report, VerdictWriter
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CARRIED
from robustkit.verify.candidates import DRAWS, predict


def classify(
    worker: DeviceWorker,
    points: Sequence[int],
    data: PointSource,
    writer: VerdictWriter,
    ranked: int,
    report: Report,
    criterion: Criterion = UNTARGETED,
) -> None:
    """Classify clean points, batch by batch; halve the batch when memory runs out.

    Args:
        ranked: how many classes of largest logit to write down.
        criterion: by which a point is classified correctly.
        report: called after every batch with (points, those of them classified correctly).

    Raises:
        RobustkitError: for logits that are not finite.
    """
    todo, draws = list(points), DRAWS if worker.diagnosis.randomized else 1
    while todo:
        batch, clock = todo[: worker.slots], time.monotonic()
        try:
            x, y = data.fetch(batch)
            rows, errors = _classify_batch(
                worker, batch, x.to(worker.device), y.to(worker.device), (draws, ranked), criterion
            )
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            worker.slots = len(batch) // 2
            continue
        writer.write_clean(rows, len(batch) * draws, time.monotonic() - clock, errors)
        todo = todo[len(batch) :]
        report(len(batch), sum(label == predicted for _, label, predicted, _ in rows))


def _classify_batch(
    worker: DeviceWorker,
    points: Sequence[int],
    x: Images,
    y: Labels,
    counts: tuple[int, int],
    criterion: Criterion,
) -> tuple[list[tuple[int, int, int, list[int]]], dict[int, float]]:
    """Return (point, label, predicted class, the classes of largest logit) of a batch.

    And by point the share of the passes that erred, where there are several. `counts`: of passes,
    and of the classes to return.
    """
    draws, ranked = counts
    predicted, logits, votes = predict(worker.model, x, draws, partial(criterion.clean, y=y))
    bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise RobustkitError(
            f"{worker.name} returns NaN or infinite logits on the clean points "
            f"{some([points[row] for row in bad])}. Mend the model, or leave them out."
        )
    # Ties and votes can put another class first: the predicted one must not become a target.
    first = criterion(logits, y).scatter(1, predicted[:, None], torch.inf)
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
        work: tries it on some points, of which the second were broken at a larger eps, and writes
            it down; see `prove`.
        everything: also on points that were broken at a larger eps, to check the proof.

    Raises:
        RobustkitError: when such a point is proved robust.
    """
    tried, clean = ledger.certified(points), ledger.predicted(points)
    broken = {p for p, found in ledger.broken(points).items() if found.stage == CARRIED}
    spared = set() if everything else broken
    right = [p for p in points if clean[p][0] == clean[p][1] and p not in spared]
    todo, proved = [p for p in right if p not in tried], sum(tried.get(p, False) for p in right)
    watcher.stage(f"certify {name}", len(right))
    done = len(right) - len(todo)

    def report(tried: int, holds: int) -> None:
        nonlocal done, proved
        done, proved = done + tried, proved + holds
        watcher.advance(done, proved, len(right))

    work(todo, broken & set(todo), report)


def prove(
    certifier: Certifier,
    points: Sequence[int],
    broken: set[int],
    data: PointSource,
    writer: VerdictWriter,
    device: torch.device,
    threat: Threat,
    report: Report,
) -> None:
    """Try a certificate on `points`, batch by batch.

    Args:
        broken: points that an attack has broken at a larger eps, within this one or not.
        report: called after every batch with (points, those of them proved robust).

    Raises:
        RobustkitError: when one of `broken` is proved robust.
    """
    for start in range(0, len(points), certifier.batch):
        batch, clock = points[start : start + certifier.batch], time.monotonic()
        x, y = (part.to(device) for part in data.fetch(batch))
        holds = certifier.prove(x, y).tolist()
        refuted = [p for p, ok in zip(batch, holds, strict=True) if ok and p in broken]
        refuse_refuted_certificates("the attack at a larger eps", refuted, threat)
        writer.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
        report(len(batch), sum(holds))
