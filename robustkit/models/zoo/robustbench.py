"""RobustBench: `robustbench:cifar10/Linf/Carmon2019Unlabeled`, with its own preprocessing.

The wheel of RobustBench 1.1.1 has three faults, and all the work around them is in this file: it
imports AutoAttack under a name that no package has (`autoattack`), it imports `pkg_resources`,
which setuptools 81 removed, and torchattacks overwrites eleven of its files with old copies.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robustkit.core import files
from robustkit.core.optional import library
from robustkit.core.packages import altered, install_command, installed, pip_command, reinstall
from robustkit.data.download import cache_root
from robustkit.errors import UsageError, unknown
from robustkit.models import checkpoints
from robustkit.models.zoo.base import Ask, Found, building

_HOST = "https://drive.google.com"  # where it downloads from
_ALIASES = ("autoattack", "autopgd_base", "checks", "fab_base", "fab_projections", "fab_pt",
            "other_utils", "square", "state")  # fmt: skip


def load(ask: Ask) -> Found:
    """Load a model of the zoo: `dataset/threat/Name`, or `Name` for cifar10/Linf.

    Weights are downloaded once, by RobustBench, into the cache; their digest is written beside
    them and checked from then on. --weights FILE takes them from a file.

    Raises:
        UsageError: when RobustBench is absent or overwritten, there is no such model, or its
            weights cannot be had.
    """
    ask.refuse_options()
    zoo = _zoo()
    dataset, threat, name = _place(zoo, ask)
    entry = zoo.models[zoo.enums.BenchmarkDataset(dataset)][zoo.enums.ThreatModel(threat)][name]
    parts = entry["gdrive_id"] if isinstance(entry.get("gdrive_id"), list) else None
    with _folder(ask, dataset, threat, name, parts) as (folder, source):
        held = _digests(folder, dataset, threat, name)
        cure = (
            f"Its weights are looked for in {folder / dataset / threat} "
            f"({name}.pt{'_m0.pt, ...' if parts else ''}), and downloaded if they are missing"
            + (" (ensembles of several files are not taken by --weights)." if parts
               else "; or give them with --weights FILE.")
        )  # fmt: skip
        try:
            with building(ask, cure, "" if held or ask.weights else _HOST):
                model = zoo.load_model(
                    name, model_dir=str(folder), dataset=dataset, threat_model=threat,
                    custom_checkpoint=str(ask.weights or ""),
                )  # fmt: skip
        except BaseException:
            _drop(folder, dataset, threat, name, held)
            raise
        _remember(folder, dataset, threat, name, held)
    note = f"weights: {source}, model of RobustBench {zoo.version}"
    return Found(model.eval(), (note,), prepared=True)


def _zoo() -> types.SimpleNamespace:
    """Import RobustBench, around its faults.

    Raises:
        UsageError: when it is absent, or its files are not its own.
    """
    dist = installed("robustbench")
    if dist is None:
        raise UsageError(
            f"RobustBench is not installed. Run `{install_command('robustbench')}`. (A folder "
            "`robustbench` may be there all the same: torchattacks brings an old copy.)"
        )
    strange = [file for file in altered(dist) if file.startswith("robustbench/")]
    if strange:
        raise UsageError(
            f"{len(strange)} files of the installed RobustBench are not its own, first "
            f"{strange[0]}: torchattacks overwrites them. `robustkit doctor --fix` restores them "
            f"({pip_command(*reinstall(f'robustbench=={dist.version}'))})."
        )
    with _pkg_resources():
        _alias_autoattack()
        utils: Any = library("robustbench.utils", "robustbench")
        zoo: Any = library("robustbench.model_zoo", "robustbench")
    enums: Any = importlib.import_module("robustbench.model_zoo.enums")
    return types.SimpleNamespace(
        models=zoo.model_dicts, load_model=utils.load_model, enums=enums, version=dist.version
    )


def _alias_autoattack() -> None:
    """Let `import autoattack` find pyautoattack, where no package of that name is installed."""
    if "autoattack" in sys.modules or importlib.util.find_spec("autoattack") is not None:
        return
    sys.modules["autoattack"] = library("pyautoattack", "robustbench")
    for part in _ALIASES:
        sys.modules[f"autoattack.{part}"] = library(f"pyautoattack.{part}", "robustbench")


@contextlib.contextmanager
def _pkg_resources() -> Iterator[None]:
    """Provide the one function of pkg_resources that RobustBench calls, while it is imported."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    module = types.ModuleType("pkg_resources")

    def resource_filename(name: str, path: str) -> str:
        spec = importlib.util.find_spec(name)
        return str(Path(str(spec and spec.origin)).parent / path)

    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = module
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _place(zoo: types.SimpleNamespace, ask: Ask) -> tuple[str, str, str]:
    """Split the name and find its parts in the zoo."""
    parts = ask.name.split("/")
    if len(parts) == 1:
        parts = ["cifar10", "Linf", *parts]
    if len(parts) != 3:
        raise UsageError(
            f"{ask.text}: expected robustbench:DATASET/THREAT/NAME, such as "
            "robustbench:cifar10/Linf/Carmon2019Unlabeled."
        )
    datasets = {key.value: value for key, value in zoo.models.items()}
    if parts[0] not in datasets:
        raise unknown("RobustBench data set", parts[0], datasets)
    threats = {key.value: value for key, value in datasets[parts[0]].items()}
    if parts[1] not in threats:
        raise unknown("RobustBench threat model", parts[1], threats)
    if parts[2] not in threats[parts[1]]:
        raise unknown("RobustBench model", parts[2], threats[parts[1]])
    return parts[0], parts[1], parts[2]


@contextlib.contextmanager
def _folder(
    ask: Ask, dataset: str, threat: str, name: str, parts: list[str] | None
) -> Iterator[tuple[Path, str]]:
    """Give the folder that RobustBench looks into, and what to call the weights in it."""
    if ask.weights is None:
        folder = cache_root() / "robustbench"
        yield folder, f"{dataset}/{threat}/{name} in the cache"
        return
    if parts:
        raise UsageError(
            f"{ask.text} is an ensemble of {len(parts)} files; --weights names one. Put them into "
            f"{cache_root() / 'robustbench' / dataset / threat} as {name}.pt_m0.pt, ..."
        )
    with tempfile.TemporaryDirectory(prefix="robustkit-weights-") as scratch:
        place = Path(scratch) / dataset / threat / f"{name}.pt"
        place.parent.mkdir(parents=True)
        if ask.weights.suffix == ".safetensors":
            torch.save(checkpoints.read_weights(ask.weights), place)
        elif ask.weights.is_file():
            place.symlink_to(ask.weights.resolve())
        else:
            raise UsageError(f"{ask.weights}: there is no such file.")
        yield Path(scratch), str(ask.weights)


def _digests(folder: Path, dataset: str, threat: str, name: str) -> dict[Path, str]:
    """Return the digests of the weights that are there, and refuse those that have changed."""
    found = {}
    for path in sorted((folder / dataset / threat).glob(f"{name}.pt*")):
        if path.suffix == ".sha256":
            continue
        found[path] = checkpoints.digest(path)
        note = path.with_name(f"{path.name}.sha256")
        if note.is_file() and note.read_text().split()[0] != found[path]:
            raise UsageError(
                f"{path} has changed since it was downloaded (SHA-256 {found[path][:12]}..., "
                f"expected {note.read_text()[:12]}...). Delete it and its .sha256 to download anew."
            )
    return found


def _drop(folder: Path, dataset: str, threat: str, name: str, known: dict[Path, str]) -> None:
    """Delete what was downloaded and could not be used: often an error page in place of a file."""
    for path in (folder / dataset / threat).glob(f"{name}.pt*"):
        if path not in known and path.suffix != ".sha256":
            path.unlink()


def _remember(folder: Path, dataset: str, threat: str, name: str, known: dict[Path, str]) -> None:
    """Write the digest of every file that has none yet; it was read without an error."""
    if not folder.is_relative_to(cache_root()):
        return
    for path in sorted((folder / dataset / threat).glob(f"{name}.pt*")):
        note = path.with_name(f"{path.name}.sha256")
        if path.suffix != ".sha256" and not note.exists():
            text = f"{known.get(path) or checkpoints.digest(path)}  {path.name}\n"
            files.write(text.encode(), note)
