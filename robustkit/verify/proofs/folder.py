"""All proofs of a folder: files and digests first, then one proof after the other."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from robustkit.verify.proofs.checker import Refused, check
from robustkit.verify.proofs.domain import Ball
from robustkit.verify.proofs.network import Network, build

SCHEMA, MANIFEST = "robustkit/proofs/1", "manifest.json"
NETWORK_SCHEMA = "robustkit/proof-network/1"


class Failure(NamedTuple):
    """A proof that does not hold; `point` is −1 for what concerns all of them."""

    point: int
    found: str


def check_folder(folder: Path, report: Callable[[int], None]) -> tuple[list[int], list[Failure]]:
    """Check every proof; return the points that have one, and what does not hold.

    Args:
        report: called after every proof with how many are done.
    """
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if told["schema"] != SCHEMA:
            raise Refused(f"expected {SCHEMA}, found {told['schema']!r}")
        for name, digest in told["files"].items():
            _same(folder / name, digest)
        net, points = read(folder), {int(name): entry for name, entry in told["points"].items()}
    except Exception as error:  # whatever a file may hold
        return [], [Failure(-1, f"{MANIFEST} or the network: {error}")]
    failures = []
    for done, (point, entry) in enumerate(points.items()):
        try:
            check_file(net, folder, told, point, entry)
        except Exception as error:
            told_of = (
                error if isinstance(error, Refused) else f"a file that cannot be read: {error}"
            )
            failures.append(Failure(point, str(told_of)))
        report(done + 1)
    return sorted(points), failures


def read(folder: Path) -> Network:
    """Read `network.json` and `network.safetensors`."""
    listed = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    if listed["schema"] != NETWORK_SCHEMA:
        raise Refused(f"expected {NETWORK_SCHEMA}, found {listed['schema']!r}")
    return build(listed["nodes"], load_file(folder / "network.safetensors"))


def check_file(net: Network, folder: Path, told: dict[str, Any], point: int, entry: Any) -> None:
    """Check one proof; raises whatever it meets."""
    content = io.BytesIO(_same(folder / f"{point}.npz", entry["sha256"]))
    with np.load(content, allow_pickle=False) as held:
        arrays = {name: held[name] for name in held.files}
    x, threat = torch.from_numpy(arrays.pop("x").astype(np.float64)), told["threat"]
    ball = Ball(x[None], threat["norm"], threat["eps"], threat["lower"], threat["upper"])
    with torch.no_grad():
        check(net, ball, int(entry["label"]), float(told["target"]), arrays)


def _same(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise Refused(f"expected {path.name} with SHA-256 {digest[:12]}…, found {found[:12]}…")
    return content
