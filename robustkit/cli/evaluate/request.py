"""What `robustkit evaluate` was asked for, as it was typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustkit.data.sampling import PROPORTIONAL, Sample
from robustkit.data.values import UNIT, Box
from robustkit.models.tuning import AUTOMATIC, Tuning


@dataclass(frozen=True)
class Request:
    """What was asked for, as it was typed."""

    models: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    data: str = "bundled"
    box: Box = UNIT
    data_root: Path | None = None
    threat: str | None = None
    criterion: str | None = None
    eps_grid: tuple[float, ...] | None = None
    minimum_norm: bool = False
    suite: str | None = None
    attacks: tuple[str, ...] = ()
    certify: str | None = None
    certify_time: float | None = None
    certify_nodes: int | None = None
    attack_certified: bool = False
    n: int | None = None
    sample: Sample = PROPORTIONAL
    seed: int = 0
    device: str = "auto"
    distributed: str | None = None
    workers: int | None = None
    batch_size: int | None = None
    tuning: Tuning = AUTOMATIC
    replay: Path | None = None
    max_time: float | None = None
    max_forwards: int | None = None
    out: Path | None = None
    fresh: bool = False
    save_adversarial: bool | None = None
    save_proofs: bool = False
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    threads: int | None = None
    as_json: bool = False
    quiet: bool = False
