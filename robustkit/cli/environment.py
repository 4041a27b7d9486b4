"""What the environment is, what is broken in it, and the command that cures it.

Everything beyond the standard library is imported inside its own check, so that one broken package
is a finding and not the end of the diagnosis.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import ModuleType

from robustkit.cli.doctor_finding import Finding, curable
from robustkit.cli.name_collision import own_files
from robustkit.core.packages import (
    DISTRIBUTION,
    altered,
    install_command,
    installed,
    pip_command,
    reinstall,
)

_CORE = ("click", "jaxtyping", "numpy", "pandas", "pillow", "pydantic", "rich", "safetensors")
_EXTRAS = (
    *("torchvision", "pyautoattack", "torchattacks", "foolbox", "timm", "transformers"),
    *("onnx", "onnx2torch", "matplotlib", "jinja2"),
)
_HELD_BACK = ("requests", "urllib3", "idna", "chardet")  # by torchattacks' pins
_MIB = 2**20


def examine(root: Path | None = None) -> list[Finding]:
    """Look at everything. Nothing is changed, and nothing is downloaded.

    Args:
        root: the data root to look at; the default one if not given.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "robustkit": own_files,
        "torch": _torch,
        "numpy and torch": _bridge,
        "packs": _packs,
        "compiler": _compiler,
        "extras": _extras,
        "robustbench": _robustbench,
        "pins": _pins,
        "folders": _folders,
        "data": lambda: _data(root),
    }
    return [finding for name, check in checks.items() for finding in _guarded(name, check)]


def repair(finding: Finding) -> str:
    """Let pip do what `finding.fix` says; return the end of what it said if it failed, else ""."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *finding.fix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    said = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else "; ".join(said[-3:]) or f"exit code {done.returncode}"


def conflicts(names: tuple[str, ...]) -> list[str]:
    """Name the installed distributions whose demands on `names` are not met.

    Raises:
        ImportError: when `packaging`, which reads the demands, is not installed.
    """
    from packaging.requirements import Requirement

    found = set()
    for dist in distributions():
        for demand in map(Requirement, dist.requires or ()):
            have = installed(demand.name) if demand.name.lower() in names else None
            applies = demand.marker is None or demand.marker.evaluate({"extra": ""})
            if have and applies and not demand.specifier.contains(have.version, prereleases=True):
                wanted = f"{demand.name}{demand.specifier}"
                found.add(f"{dist.metadata['Name']} needs {wanted}, got {have.version}")
    return sorted(found)


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        found.append(Finding(name, "broken", told, "Install PyTorch and robustkit again."))
    return found


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _versions() -> Iterator[Finding]:
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", f"{system}, {sys.executable}")
    for name in ("robustkit", "torch", "scipy", *_CORE):
        dist = installed(DISTRIBUTION if name == "robustkit" else name)
        if dist is None:
            cure = install_command() if name == "robustkit" else pip_command("install", name)
            yield Finding(name, "broken", "not installed", cure)
        else:
            yield Finding(name, "ok", dist.version)


def _torch() -> Iterator[Finding]:
    torch = _import("torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    threads = f"{torch.get_num_threads()} threads, {os.cpu_count()} CPU cores"
    yield Finding("cpu", "ok", f"{threads}; PyTorch build: {build}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            size = f"{card.total_memory / 2**30:.0f} GiB"
            yield Finding(f"cuda:{index}", "ok", f"{card.name}, {size}")
    elif shutil.which("nvidia-smi") is None:
        yield Finding("cuda", "absent", "no GPU; everything runs on the CPU")
    elif torch.version.cuda:
        cure = "Update the NVIDIA driver, or install a PyTorch build for an older CUDA."
        yield Finding("cuda", "warning", "there is a GPU driver, but PyTorch sees no GPU", cure)
    else:
        cure = "Install a CUDA build of PyTorch."
        yield Finding(
            "cuda", "warning", "there is a GPU driver, but this PyTorch is CPU only", cure
        )


def _bridge() -> Iterator[Finding]:
    """PyTorch built against NumPy 1 loads beside NumPy 2, and fails at the first array."""
    torch, numpy = _import("torch"), _import("numpy")
    try:
        torch.from_numpy(numpy.zeros(1)).numpy()
    except RuntimeError as error:
        told = f"torch {torch.__version__} cannot use numpy {numpy.__version__}: {error}"
        yield Finding("numpy and torch", "broken", told, pip_command("install", "numpy<2"))
    else:
        yield Finding("numpy and torch", "ok", "arrays pass between them")


def _packs() -> Iterator[Finding]:
    registry, data = _import("robustkit.registry"), _import("robustkit.data")
    kinds = ("attacks", "defenses", "datasets", "suites")
    counts = ", ".join(f"{len(getattr(registry, kind).entries())} {kind}" for kind in kinds)
    yield Finding("packs", "ok", counts)
    data.open_dataset("bundled", download=False).fetch([0])  # `_data` lists it


def _compiler() -> Iterator[Finding]:
    names = [os.environ.get("CXX") or "", "c++", "g++", "clang++"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path:
        yield Finding("compiler", "ok", path)
    else:
        yield Finding("compiler", "absent", "no C++ compiler; only torch.compile would need one")


def _extras() -> Iterator[Finding]:
    for name in _EXTRAS:
        dist = installed(name)
        if dist is None:
            yield Finding(name, "absent", "not installed (optional)")
            continue
        try:
            _import(name)
        except Exception as error:
            told = f"{dist.version} fails when it is imported: {type(error).__name__}: {error}"
            yield Finding(name, "broken", told, _reinstall(name))
            continue
        hub = _import("robustkit.models.zoo.timm") if name == "timm" else None
        fault = hub.hub_fault() if hub else ""
        if hub and fault:
            yield Finding(name, "warning", f"no pretrained weights: {fault}", hub.hub_cure())
        else:
            yield Finding(name, "ok", dist.version)


def _reinstall(name: str) -> str:
    if name != "torchvision":
        return pip_command(*reinstall(name))
    build = _import("torch").__version__
    return (
        f"Install the torchvision build that belongs to torch {build}, from the same place as "
        "torch; or `pip uninstall torchvision`: only downloads of data need it."
    )


def _robustbench() -> Iterator[Finding]:
    dist = installed("robustbench")
    if dist is None:
        shadow = importlib.util.find_spec("robustbench") is not None
        copy = "; the folder `robustbench` here is the old copy inside torchattacks"
        yield Finding("robustbench", "absent", "not installed (optional)" + copy * shadow)
        return
    lines = list(_robustbench_faults(dist))
    yield from lines or [Finding("robustbench", "ok", dist.version)]


def _robustbench_faults(dist: Distribution) -> Iterator[Finding]:
    files = [file for file in altered(dist) if file.startswith("robustbench/")]
    if files:
        culprit = " (torchattacks overwrites them)" if installed("torchattacks") else ""
        told = f"{len(files)} installed files are not its own{culprit}, first {files[0]}"
        yield curable("robustbench", "broken", told, reinstall(f"robustbench=={dist.version}"))
    if importlib.util.find_spec("pkg_resources") is None:
        told = "it imports pkg_resources, which setuptools no longer has"
        yield curable("robustbench", "broken", told, ("install", "setuptools<81"))
    if not any(importlib.util.find_spec(name) for name in ("pyautoattack", "autoattack")):
        told = "it imports AutoAttack, which is not installed"
        yield curable("robustbench", "broken", told, ("install", "pyautoattack"))


def _pins() -> Iterator[Finding]:
    if installed("torchattacks") is None:
        return
    try:
        unmet = [line for line in conflicts(_HELD_BACK) if not line.startswith("torchattacks ")]
    except ImportError:
        yield Finding("pins", "absent", "not checked: `packaging` is not installed")
        return
    if unmet:
        told = f"torchattacks holds packages back: {'; '.join(unmet)}"
        command = pip_command("install", "--upgrade", "requests")
        cure = f"{command} (robustkit uses torchattacks without it)"
        yield Finding("pins", "warning", told, cure)


def _folders() -> Iterator[Finding]:
    cache = _import("robustkit.data.download").cache_root()
    for name, folder in (("working folder", Path.cwd()), ("cache", cache)):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=place):
                free = shutil.disk_usage(place).free
        except OSError as error:
            cure = "Make it writable" + (", or set XDG_CACHE_HOME." if name == "cache" else ".")
            yield Finding(name, "broken", f"{folder} cannot be written: {error.strerror}", cure)
            continue
        if free < 200 * _MIB:
            told = f"{folder}: only {free / _MIB:.0f} MiB are free"
            yield Finding(name, "warning", told, "Free some space before a long run.")
        else:
            yield Finding(name, "ok", f"{folder}, {free / 2**30:.1f} GiB free")


def _data(root: Path | None) -> Iterator[Finding]:
    data, errors = _import("robustkit.data"), _import("robustkit.errors")
    place = data.data_root(root)
    yield Finding("data root", "ok" if place.is_dir() else "absent", str(place))
    for name in _import("robustkit.registry").datasets:
        try:
            found = data.open_dataset(name, root=root, download=False)
        except errors.UsageError as error:
            missing = "was not found" in str(error) or not place.is_dir()
            yield Finding(name, "absent" if missing else "broken", str(error))
        else:
            yield Finding(name, "ok", f"{len(found)} test points {list(found.shape)}")
