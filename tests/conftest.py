"""Shared ground of the tests: one thread, small data, small models."""

from __future__ import annotations

import base64
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import field, make_dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.data.open import open_dataset
from robustkit.evaluation import adapt
from robustkit.models.surrogates.distillation import distill
from robustkit.models.training import Recipe, fit
from robustkit.record.points import Points, Status
from robustkit.record.record import Record
from robustkit.record.schema import DataInfo, ThreatInfo, WeightsInfo
from robustkit.registry import attacks, defenses, suites

# `benchmarks` is no part of the package; last, so that the checkout shadows nothing installed.
sys.path.append(str(Path(__file__).parents[1]))
# One thread here and in whatever the tests start: bits do not depend on the number of cores, and
# workers of pytest-xdist do not crowd each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def bound_by_modes() -> Iterator[None]:
    """File modes hold in this test for root as well, which may write anywhere otherwise.

    Changing the user would not do: everything may lie in folders that only root may enter.
    """
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("needs Linux, or a user other than root")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # third version of the sets, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the upper halves
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@pytest.fixture
def stop_by_ctrl_c() -> Callable[..., None]:
    """Start the program, stop it by SIGINT once all of `ledgers` exist, and see how it ends."""

    def stop(arguments: list[str], room: Path, ledgers: list[Path], seconds: float) -> None:
        # A shell that starts the tests in the background has them, and what they start, ignore it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, "-m", "robustkit", *arguments],
            cwd=room,
            stderr=subprocess.PIPE,
            text=True,
        )
        signal.signal(signal.SIGINT, before)
        deadline = time.monotonic() + seconds
        while not all(ledger.exists() for ledger in ledgers):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "stopped: nothing is lost, and the same command resumes." in told
        assert "Traceback" not in told

    return stop


@pytest.fixture(scope="session")
def processes() -> BaseContext:
    """How code gets a process of its own: a copy of one that has imported what takes long."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context()
    context = multiprocessing.get_context("forkserver")
    packs = ["robustkit.attacks", "robustkit.defenses"]
    context.set_forkserver_preload(["torch._dynamo", "robustkit.cli.evaluate.run", *packs])
    return context


@pytest.fixture(scope="session")
def prototypes() -> torch.Tensor:
    """One image [1, 6, 6] for each of four classes."""
    return torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def blobs(prototypes: torch.Tensor) -> Dataset:
    """80 noisy copies of the prototypes; every twentieth label is wrong."""
    generator = torch.Generator().manual_seed(6)
    y = torch.arange(80) % 4
    noise = torch.rand(80, 1, 6, 6, generator=generator)
    x = 0.4 * prototypes[y] + 0.6 * noise
    labels = torch.where(torch.arange(80) % 20 == 7, (y + 1) % 4, y)
    return from_arrays("blobs", x.numpy(), labels.numpy().astype(np.int64), classes=4)


@pytest.fixture
def nearest(prototypes: torch.Tensor) -> nn.Module:
    """A linear model that names the nearest prototype, four classes."""
    linear = nn.Linear(36, 4)
    flat = prototypes.flatten(1)
    with torch.no_grad():
        linear.weight.copy_(2 * flat)
        linear.bias.copy_(-flat.square().sum(1))
    return nn.Sequential(nn.Flatten(), linear).eval()


@pytest.fixture(scope="session")
def bundled() -> Dataset:
    """The images that come with the package."""
    return open_dataset("bundled")


@pytest.fixture(scope="session")
def hardened(bundled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A small network, adversarially trained for seconds: at 0.1 some points fall, some stand."""
    from safetensors.torch import load_file

    folder, defense = (
        tmp_path_factory.mktemp("hardened"),
        defenses.build("pgd_at(steps=2, width=4)"),
    )
    recipe = Recipe(epochs=5, batch_size=25, lr=5e-3)
    device = torch.device("cpu")
    for _ in fit(defense, bundled, folder, recipe=recipe, seed=0, device=device, identity={}):
        pass
    model: nn.Module = defense.network(bundled.shape, bundled.classes)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)


@pytest.fixture
def brief_adaptive(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite `adaptive` with short lessons for its student, a short audit, and short legs.

    `parity` is replaced by two of its attacks, at a hundredth of their queries; `relay` ends after
    two long legs of ten steps.
    """
    relay = attacks.entry("relay")
    legs = [("legs", int, field(default=2)), ("steps", int, field(default=10))]
    short = make_dataclass("Relay", legs, bases=(relay.target,), frozen=True)
    monkeypatch.setitem(attacks._entries, "relay", relay._replace(target=short))
    (parity,) = (entry.target for entry in suites.entries() if entry.name == "parity")
    line = ["apgd(steps=10)", "square(queries=50)"]
    monkeypatch.setattr(parity, "attacks", lambda *_: line)
    monkeypatch.setattr(adapt, "distill", functools.partial(distill, steps=40))


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Build a record of points in three classes, one letter a point: c, r, b or m.

    The letters are those of certified, robust, broken and misclassified; broken points fell to the
    last attack, at the distance eps.
    """
    kinds: dict[str, Status] = {
        **{"c": "certified", "r": "robust"},
        **{"b": "broken", "m": "misclassified"},
    }

    def make(defense: str, points: str, *, eps: float = 0.1, **changes: Any) -> Record:
        status = [kinds[letter] for letter in points]
        n, attacks = len(points), changes.get("attacks", ["apgd", "square"])
        label = [i % 3 for i in range(n)]
        predicted = [(i + (s == "misclassified")) % 3 for i, s in enumerate(status)]
        fields: dict[str, Any] = {
            "robustkit": "0.1.0",
            "defense": defense,
            "data": DataInfo(
                name="toys", digest=f"first {n}", n=n, total=100, classes=3, shape=[1, 4, 4],
                class_names=["bear", "ball", "kite"],
            ),
            "threat": ThreatInfo(norm="linf", eps=eps),
            "suite": "parity",
            "attacks": attacks,
            "seed": 0,
            "arguments": {"data": "toys"},
            "weights": WeightsInfo(digest=f"weights of {defense}", parameters=12),
            "certify": "ibp" if "c" in points else None,
            "randomized": False,
            "flags": [],
            "notes": [],
            "stages": [],
            "points": Points(
                index=list(range(n)),
                label=label,
                predicted=predicted,
                status=status,
                attack=[attacks[-1] if s == "broken" else None for s in status],
                distance=[eps if s == "broken" else None for s in status],
            ),
            "forwards": 10 * n,
            "backwards": 5 * n,
            "flips": 0,
            "seconds": 1.5,
            "started": "2026-01-02T03:04:05+00:00",
            "versions": {"torch": "2.0"},
            "device": "cpu",
            "commit": None,
        }  # fmt: skip
        return Record(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def write_wheel() -> Callable[..., Path]:
    """Write a wheel of a made-up distribution: pip installs it from the file, and asks no index."""

    def write(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        wanted = {
            **{path.replace("INFO", info): content for path, content in files.items()},
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        lines = []
        path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for place, content in wanted.items():
                archive.writestr(place, content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
                lines.append(f"{place},sha256={digest.decode().rstrip('=')},{len(content)}")
            archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))
        return path

    return write


def _mlp(seed: int, sizes: tuple[int, ...]) -> Any:
    """Linear layers with ReLUs between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return _centered(nn.Sequential(*layers[:-1]), sizes[:1])


def _centered(net: nn.Module, shape: tuple[int, ...]) -> Any:
    """Freeze a network, its classes made about as likely as each other."""
    net.eval().requires_grad_(False)
    bias = list(net.parameters())[-1]  # of the last layer
    bias.sub_(net(torch.rand(256, *shape)).mean(0))
    return net


class _Residual(nn.Module):
    """Strides, a sum, a concatenation, pooling and batch normalization, over [1, 5, 5]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.third = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(4, 3)
        self.norm.get_buffer("running_mean").uniform_(-0.2, 0.2)
        self.norm.get_buffer("running_var").uniform_(0.5, 1.5)
        _centered(self, (1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[b, 1, 5, 5] -> [b, 3]."""
        a = F.relu(self.norm(self.first(x)))
        b = F.relu(self.second(a)) - a
        c = F.relu(self.third(torch.cat([a, b], 1)))
        logits: Tensor = self.head(self.pool(c).flatten(1))
        return logits


def _exact_minimum(
    model: nn.Module, low: Tensor, high: Tensor, wanted: Tensor,
    ball: tuple[Tensor, float] | None = None,
) -> float:  # fmt: skip
    """Minimize wanted · logits over a box: one linear program per activation pattern.

    Patterns against interval bounds are left out: no input has them.

    Args:
        ball: center and radius of an l1 ball, with which the box is intersected.
    """
    from scipy.optimize import linprog

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [(la.weight.double().numpy(), la.bias.double().numpy()) for la in layers]
    last, direction = weights.pop(), wanted.double().numpy()
    down, up = box = [end.double().flatten().numpy() for end in (low, high)]
    choices, ends = [], list[int]()
    for w, b in weights:
        plus, minus = np.maximum(w, 0), np.minimum(w, 0)
        down, up = plus @ down + minus @ up + b, plus @ up + minus @ down + b
        choices += [
            (0.0,) * bool(a <= 0) + (1.0,) * bool(z > 0) for a, z in zip(down, up, strict=True)
        ]
        ends.append(len(choices))
        down, up = np.maximum(down, 0), np.maximum(up, 0)
    least = np.inf
    for pattern in itertools.product(*choices):
        a, c = np.eye(len(box[0])), np.zeros(len(box[0]))
        rows, limits = [], []
        for (w, b), on in zip(weights, np.split(np.array(pattern), ends[:-1]), strict=True):
            a, c = w @ a, w @ c + b
            rows.append((1 - 2 * on)[:, None] * a)  # on: −v ≤ 0, off: v ≤ 0
            limits.append(-(1 - 2 * on) * c)
            a, c = on[:, None] * a, on * c
        a, c = direction @ last[0] @ a, direction @ (last[0] @ c + last[1])
        above, most, bounds = np.concatenate(rows), np.concatenate(limits), np.stack(box, 1)
        if ball is not None:  # distances |x − x°| ≤ t beside x, their sum at most the radius
            x, d = ball[0].double().flatten().numpy(), len(a)
            eye, none = np.eye(d), np.zeros((len(above), d))
            total = np.repeat([[0.0, 1.0]], d, 1)
            above = np.block([[above, none], [eye, -eye], [-eye, -eye], [total]])
            most = np.concatenate([most, x, -x, [ball[1]]])
            a, bounds = np.pad(a, (0, d)), np.concatenate([bounds, [[0, np.inf]] * d])
        found = linprog(a, above, most, bounds=bounds, method="highs")
        if found.status == 0:
            least = min(least, found.fun + float(c))
    return float(least)


@pytest.fixture
def exact_minimum() -> Callable[..., float]:
    """The least value of wanted · logits of a small ReLU network over a box, by enumeration."""
    return _exact_minimum


@pytest.fixture
def mlp() -> Callable[[int, tuple[int, ...]], nn.Sequential]:
    """Makes small fully connected networks of a seed and sizes."""
    return _mlp


@pytest.fixture
def residual() -> Callable[[int], nn.Module]:
    """Makes residual networks of a seed."""
    return _Residual


@pytest.fixture
def runner(tmp_path: Path) -> Callable[..., Any]:
    """Make a runner of workflows, `runner(event_name=…, event=…)`: `gate/workflow_runner.py`."""
    path = Path(__file__).parent / "gate" / "workflow_runner.py"
    spec = importlib.util.spec_from_file_location("workflow_runner", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # which dataclasses look into
    spec.loader.exec_module(module)
    (tmp_path / "job").mkdir()
    return lambda **how: module.Runner(tmp_path / "job", **how)


@pytest.fixture
def write_mnist() -> Callable[[Path, int], None]:
    """Writes mnist.npz into a folder: so many training and 40 test images at random."""

    def write(folder: Path, train: int) -> None:
        draw = np.random.default_rng(0)
        arrays: dict[str, Any] = {}
        for split, n in (("train", train), ("test", 40)):
            arrays[f"x_{split}"] = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8)
            arrays[f"y_{split}"] = (np.arange(n) % 10).astype(np.uint8)
        np.savez(folder / "mnist.npz", **arrays)

    return write
