"""Proofs that can be checked again: one file a point, each accepted by the checker before it lies.

The checker is `robustkit.verify.proofs`; what is written here it reads as plain data.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from robustkit.certify.certifier import Bounds, Certifier
from robustkit.certify.complete.plain import plain
from robustkit.certify.complete.points import PointVerifier
from robustkit.certify.complete.record import Recorder, bare
from robustkit.certify.complete.verifier import Effort, build_verifier
from robustkit.core import files
from robustkit.core.types import Images
from robustkit.errors import UsageError
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.stages.stage import PointSource
from robustkit.record.record import Record
from robustkit.verify.proofs import folder as stored
from robustkit.verify.proofs.checker import Refused, check
from robustkit.verify.proofs.domain import Ball, Domain
from robustkit.verify.proofs.network import Network, build

FOLDER = "proofs"
_SAME = 1e-9  # how far the network as plain data may be from the traced one, in float64
_Arrays = dict[str, NDArray[Any]]


@dataclass
class ProofStage:
    """The proofs of one run.

    Attributes:
        folder: where they lie.
        data: the points.
        effort: what a point may cost that bounds proved, and whose proof is sought again.
        entries: label and digest of every proof, by point.
    """

    folder: Path
    network: Network
    verifier: PointVerifier
    data: PointSource
    effort: Effort
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)

    def recorder(self) -> Recorder:
        """Return what listens to the search on one point."""
        return Recorder(self.network.width)

    def keep(self, point: int, x: Images, y: int, record: Recorder) -> bool:
        """Store the proof of a point x [1, *f] if the checker accepts it; return whether it does.

        One without splits and slopes is tried before the recorded one.
        """
        classes = self.network.nodes[-1].shape[0]
        for arrays in (bare(self.network.width, classes, y), record.result(classes, y)):
            if arrays is not None and self._accepted(x, y, arrays):
                content = io.BytesIO()
                np.savez_compressed(content, x=x[0].cpu().numpy(), **arrays)  # type: ignore[arg-type]
                files.write(content.getvalue(), self.folder / f"{point}.npz")
                return True
        return False

    def _accepted(self, x: Images, y: int, arrays: _Arrays) -> bool:
        threat = self.verifier.prover.exact.threat
        ball = Ball(x.cpu().double(), threat.norm, threat.eps, threat.lower, threat.upper)
        try:
            with torch.no_grad():
                check(self.network, ball, y, self.verifier.target, arrays)
        except Refused:
            return False
        return True

    def run(self, points: Sequence[int], labels: Sequence[int], record: Record) -> list[int]:
        """Store a proof of every one of `points`, if there is none; return those without one."""
        files.make_folder(self.folder)
        threat = self.verifier.prover.exact.threat
        told = {"threat": {"norm": threat.norm, "eps": threat.eps, "lower": threat.lower,
                           "upper": threat.upper}, "target": self.verifier.target}  # fmt: skip
        for point, label in zip(points, labels, strict=True):
            x, _ = self.data.fetch([point])
            if self._holds(point, label, x, told):
                continue
            heard = self.recorder()
            if self.keep(point, x, label, Recorder(0)):  # bounds alone
                continue
            found = self.verifier.verify(x.cpu(), label, self.effort.budget(), heard)
            if found.outcome == "proved":
                self.keep(point, x, label, heard)
        self._seal(points, labels, told, record)
        return [point for point in points if point not in self.entries]

    def _holds(self, point: int, label: int, x: Images, told: dict[str, Any]) -> bool:
        """Whether the proof of an earlier life lies there, of this very point."""
        path = self.folder / f"{point}.npz"
        if not path.is_file():
            return False
        entry = {"label": label, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        try:
            stored.check_file(self.network, self.folder, told, point, entry)
            with np.load(path, allow_pickle=False) as held:
                return bool(np.array_equal(held["x"], x[0].cpu().numpy()))
        except Exception:  # damaged, or of another run: it is made anew
            return False

    def _seal(
        self, points: Sequence[int], labels: Sequence[int], told: dict[str, Any], record: Record
    ) -> None:
        """Write network and manifest, with the digests that tie them to points and record."""
        listed, tensors = plain(self.verifier.prover.exact.graph)
        content = {
            "network.json": json.dumps({"schema": stored.NETWORK_SCHEMA, "nodes": listed}).encode(),
            "network.safetensors": save(tensors),
        }
        for name, part in content.items():
            files.write(part, self.folder / name)
        for point, label in zip(points, labels, strict=True):
            path = self.folder / f"{point}.npz"
            if path.is_file():
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                self.entries[point] = {"label": label, "sha256": digest}
        for path in self.folder.glob("*.npz"):
            if path.stem not in map(str, self.entries):
                files.remove(path)  # of a point that is not proved any more
        manifest = {
            "schema": stored.SCHEMA, "record": record.digest, **told,
            "files": {name: hashlib.sha256(part).hexdigest() for name, part in content.items()},
            "points": {str(point): entry for point, entry in self.entries.items()},
        }  # fmt: skip
        files.write(json.dumps(manifest, indent=1).encode(), self.folder / stored.MANIFEST)


def apart(network: Network, x: Images, logits: Tensor) -> float:
    """Return how far logits [n, k] at x [n, *f] are outside what the checker bounds them by there.

    The ball has hardly any size; what float32 may lose is counted.
    """
    far = 0.0
    for z, found in zip(x.cpu().double(), logits.cpu().double(), strict=True):
        low, high = Domain(network, Ball(z[None], "linf", 1e-15, -1e9, 1e9), []).boxes[-1]
        far = max(far, float(torch.maximum(low - found, found - high).max()))
    return far


def build_proof_stage(
    settings: Settings, prepared: Prepared, prover: Certifier | None, folder: Path
) -> ProofStage | None:
    """Return what stores proofs in the folder of a run; None where they are not asked for.

    Raises:
        UsageError: where a certificate is no bound, or the network has an operation that proofs do
            not know.
    """
    if not settings.save_proofs:
        return None
    if settings.threat.criterion.suffix:
        raise UsageError(
            "--save-proofs stores proofs that no other class is decided for, and the criterion is "
            f"{settings.threat.criterion}: leave --save-proofs out."
        )
    if not isinstance(prover, Bounds) or prover.mixture is not None:
        name = "no certificate" if prover is None else prover.name
        raise UsageError(
            "--save-proofs stores proofs by bounds on one network (--certify quick, auto, ibp, "
            f"crown, alpha-crown or complete), got {name} of {settings.name}. Leave it out."
        )
    listed, tensors = plain(prover.graph)
    network, shape = build(listed, tensors), settings.data.shape
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, *shape, generator=generator, dtype=torch.float64) * 3 - 1
    there = prover.graph.values(x.to(prepared.device))[-1].cpu()
    if (off := apart(network, x, there)) > _SAME:
        raise UsageError(
            f"--save-proofs: {settings.name} as plain data answers otherwise than the model, by "
            f"{off:.3g}. Leave --save-proofs out."
        )
    assert isinstance(prepared.model, torch.nn.Module)  # as of all that bounds trace
    verifier = build_verifier(prepared.model, shape, settings.threat, prover.threat)
    assert verifier is not None  # `plain` has read the network
    place = folder / FOLDER
    if settings.fresh:
        shutil.rmtree(place, ignore_errors=True)
    effort = prover.effort or Effort.parse("complete")
    return ProofStage(place, network, verifier, prepared.data, effort)
