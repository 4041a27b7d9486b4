"""A record put to the proof: its model is asked again about what the record says of it.

Digests show an edit by accident; whoever edits on purpose computes them anew. What the model
answers to the clean points and to the stored adversarial inputs cannot be edited. Stored proofs
are checked, and a sample of the points that are called robust is attacked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import isclose, prod
from typing import NamedTuple

import torch
from torch import nn

from robustkit.core.attribution import blaming
from robustkit.core.device import pick_device
from robustkit.core.finite import FiniteThreat
from robustkit.core.parametric import ParametricThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Model
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError, some
from robustkit.gate.baseline import Baseline
from robustkit.gate.reattack import Reattack, reattack
from robustkit.gate.verify_proofs import FOLDER, Checked, against_model, verify_proofs
from robustkit.gate.verify_variants import differing_variants
from robustkit.models.readiness import private_copy
from robustkit.record.evidence import LEDGER, refuse_altered
from robustkit.record.ledger_reader import open_readonly
from robustkit.record.provenance import weights_digest
from robustkit.record.record import Record
from robustkit.verify.candidates import predict, verify
from robustkit.verify.proofs.folder import MANIFEST

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

_BATCH, _SAME = 250, 1e-6  # points; how far a distance may be from the one told, relatively


class Finding(NamedTuple):
    """One thing that a record says, held against the model.

    Attributes:
        differing: in how many of the cases that were checked it does not hold.
        points: which they are, where they are points.
        note: what could not be asked, and why.
    """

    what: str
    checked: int
    differing: int = 0
    points: tuple[int, ...] = ()
    note: str = ""


def _of(what: str, checked: int, points: Sequence[int], note: str = "") -> Finding:
    return Finding(what, checked, len(points), tuple(points), note)


class Verification(NamedTuple):
    """What became of the checks.

    Attributes:
        unchecked: sentences: what was not asked, or cannot be.
        passes: forward and backward ones that the checks took, and those of the run.
        seed: by which the sample was drawn.
    """

    findings: list[Finding]
    unchecked: list[str]
    passes: tuple[int, int]
    seed: int

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not any(found.differing for found in self.findings)


def verify_record(
    baseline: Baseline,
    model: Model | nn.Module,
    data: Dataset,
    device: str = "auto",
    *,
    sample: int | None = None,
    seed: int = 0,
) -> Verification:
    """Ask `model` again about a record: its clean points, stored inputs and proofs, and a sample.

    The sample is of the points that it calls robust; they are attacked as the record says.

    Args:
        data: holds the points of the record, see `robustkit.gate.baseline.open_points`.
        sample: how many points to attack; None: all checks together take a tenth of the run's
            passes at most.
        seed: of the sample. One that the record's author could know lets a forger prepare.

    Raises:
        EvidenceAltered: when record and ledger do not bear each other out.
        UsageError, RobustkitError: when the model cannot be asked.
    """
    record = baseline.record
    refuse_altered(record, baseline.path)
    where = pick_device(device)
    private = private_copy(model, where, record.defense)
    with blaming(record.defense):
        findings = [
            _weights(baseline, private),
            _clean(baseline, private, data, where),
            *_stored(baseline, private, data, where),
        ]
    variants = _variants(baseline, private, data, where, seed)
    spent = sum(found.checked for found in [*findings[1:3], *variants])
    findings += variants
    again = reattack(baseline, private, data, device, points=sample, seed=seed, spent=spent)
    proofs = baseline.path.with_name(FOLDER)
    checked = verify_proofs(proofs) if (proofs / MANIFEST).is_file() else None
    if checked is not None and not checked.failures:
        checked = against_model(checked, data, lambda x: private(x.to(where)).cpu())
    findings += [_proofs(checked), _again(record, again)]
    passes = spent + again.passes, record.forwards + record.backwards
    return Verification(findings, _unchecked(record, findings, again, checked), passes, seed)


def _proofs(checked: Checked | None) -> Finding:
    what = "stored proofs hold"
    if checked is None:
        return Finding(what, 0, note="none are stored")
    failures = checked.failures
    points = tuple(sorted({failure.point for failure in failures if failure.point >= 0}))
    note = failures[0].found if failures else ""
    return Finding(what, len(checked.points), len(points) or int(bool(failures)), points, note)


def _again(record: Record, again: Reattack) -> Finding:
    what = "a sample withstands the record's attacks"
    if record.randomized and again.broken:
        told = f"{len(again.broken)} fell; the model is randomized: it varies"
        return Finding(what, len(again.sample), note=told)
    return _of(what, len(again.sample), again.broken)


def _unchecked(
    record: Record, findings: Sequence[Finding], again: Reattack, checked: Checked | None
) -> list[str]:
    """Say what was not asked, or cannot be."""
    asked = [found for found in findings[:-2] if found.note and not found.differing]
    told = [f"{found.what}: {found.note}" for found in asked]
    told += [again.left()] if again.left() else []
    told += [f"{text} could not be run again" for text in again.dropped]
    proved = record.points.status.count("certified") - (len(checked.points) if checked else 0)
    told += [f"{proved} certified points have no stored proof"] if proved > 0 else []
    return [*told, "whether other attacks break more, and whether the data is what its name says"]


def _weights(baseline: Baseline, model: Model) -> Finding:
    if not isinstance(model, nn.Module):
        return Finding("weights", 0, note="the model is a function: it has none to compare")
    same = weights_digest(model)[0] == baseline.record.weights.digest
    return Finding("weights", 1, int(not same), note="" if same else "those of another model")


def _clean(baseline: Baseline, model: Model, data: Dataset, device: torch.device) -> Finding:
    record, differing = baseline.record, list[int]()
    if record.randomized:
        return Finding("clean predictions", 0, note="the model is randomized: they vary")
    told = dict(zip(record.points.index, record.points.predicted, strict=True))
    for points in _batches(record.points.index):
        x, y = (part.to(device) for part in data.fetch(points))
        answer = predict(model, x, 1, partial(baseline.threat.criterion.clean, y=y))
        now = answer.predicted.tolist()
        differing += [point for point, k in zip(points, now, strict=True) if k != told[point]]
    return _of("clean predictions", record.n, differing)


def _stored(baseline: Baseline, model: Model, data: Dataset, device: torch.device) -> list[Finding]:
    """Judge the stored inputs as `robustkit.verify` does, and hold the record against that."""
    record = baseline.record
    status = dict(zip(record.points.index, record.points.status, strict=True))
    missing = {point for point, state in status.items() if state == "broken"}
    outside, futile, untold = list[int](), list[int](), list[int]()
    made = _made(baseline, data)
    stored = {p: z for p, z in _inputs(baseline, data).items() if p in status}
    unlike = [p for p, z in made.items() if not torch.equal(stored.get(p, z), z)]
    found = made | stored
    for points in _batches(sorted(found)):
        z = torch.stack([found[point] for point in points]).to(device)
        judged = _judge(baseline, model, data, points, z)
        for point, (inside, fooled, holds) in zip(points, judged, strict=True):
            outside += [] if inside else [point]
            futile += [point] if inside and not fooled else []
            untold += [point] if inside and fooled and not holds else []
    missing -= found.keys()
    note = f"{len(missing)} broken points have no stored input" if missing else ""
    goal = record.threat.criterion
    wrong = "the model misclassifies them" if goal is None else f"they are broken by {goal}"
    parameters = [_of("parameters make the stored inputs", len(made), unlike)] if made else []
    return [
        _of("stored inputs lie in the threat model", len(found), outside, note),
        Finding(wrong, 0, note="the model is randomized: it varies")
        if record.randomized
        else _of(wrong, len(found), futile),
        _of("the record says so, at their distance", len(found), untold),
        *parameters,
    ]


def _variants(
    baseline: Baseline, model: Model, data: Dataset, device: torch.device, seed: int
) -> list[Finding]:
    record, threat = baseline.record, baseline.threat
    if not isinstance(threat, FiniteThreat):
        return []
    what = "a sample's answers to all variants"
    if record.randomized:
        return [Finding(what, 0, note="the model is randomized: they vary")]
    found = differing_variants(record, threat, model, data, device, seed)
    return [_of(what, found.asked, found.points)]


def _made(baseline: Baseline, data: Dataset) -> dict[int, Images]:
    """Make the adversarial inputs of recorded parameters: they need no ledger beside the record."""
    threat, points = baseline.threat, baseline.record.points
    if not isinstance(threat, ParametricThreat):
        return {}
    told = list(zip(points.index, points.parameters or (), strict=False))
    if wrong := [p for p, parts in told if parts and len(parts) != threat.size(data.shape)]:
        raise UsageError(
            f"{baseline.path}: expected {threat.size(data.shape)} parameters of each point, got "
            f"another number at {some(wrong)}. Run the evaluation again."
        )
    return {
        p: threat.made(data.fetch([p])[0], torch.tensor([parts]))[0]
        for p, parts in told
        if parts is not None
    }


def _inputs(baseline: Baseline, data: Dataset) -> dict[int, Images]:
    path = baseline.path.with_name(LEDGER)
    if not path.is_file():
        return {}
    with open_readonly(path) as ledger:
        return ledger.examples(tuple(data.shape))


def _judge(
    baseline: Baseline, model: Model, data: Dataset, points: Sequence[int], z: Images
) -> list[tuple[bool, bool, bool]]:
    """Tell of each input whether it is allowed, fools the model, and is what the record says."""
    record, threat = baseline.record, baseline.threat
    x, y = (part.to(z.device) for part in data.fetch(points))
    # A minimum-norm run keeps inputs beyond eps: they have to fool all the same.
    nearest = record.points.nearest
    reach = threat if nearest is None else _whole(threat, prod(data.shape))
    inside = reach.contains(z, x, points=points) & z.isfinite().flatten(1).all(1)
    # A vote of a randomized model on new noise says little about the one that was counted.
    fooled, distance = inside.clone(), reach.distance(z, x, points)
    if bool(inside.any()) and not record.randomized:
        rows = inside.nonzero().flatten()
        fooled[rows] = verify(
            model, z[rows], x[rows], y[rows], reach, attack="the record",
            points=[points[row] for row in rows.tolist()], randomized=False,
        ).broken  # fmt: skip
    told = dict(zip(record.points.index, nearest or record.points.distance, strict=True))
    status = dict(zip(record.points.index, record.points.status, strict=True))
    limit = threat.limit(prod(data.shape))
    holds = [
        (status[p] == "broken") == (d <= limit) and isclose(told[p] or 0.0, d, rel_tol=_SAME)
        for p, d in zip(points, distance.tolist(), strict=True)
    ]
    return list(zip(inside.tolist(), fooled.tolist(), holds, strict=True))


def _whole(threat: Threat, features: int) -> Threat:
    whole = Threat.whole(threat.norm, features)
    return replace(threat, eps=whole.eps * (threat.upper - threat.lower))


def _batches(points: Sequence[int]) -> list[Sequence[int]]:
    return [points[start : start + _BATCH] for start in range(0, len(points), _BATCH)]
