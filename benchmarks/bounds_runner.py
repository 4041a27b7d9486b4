"""One tool's bounds on one network, as a program: prints one line of JSON.

It imports nothing of this project but what the tool's own checkout provides, so that an older
checkout can run it too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Name: threat model's radius in linf. "cnn-a" nets read weights and points from a folder.
NETS = {
    "cnn-a-mnist-0.1": 0.1,
    "cnn-a-mnist-0.3": 0.3,
    "cnn-a-cifar": 2 / 255,
    "pgd_at": 0.1,
    "ibp": 0.1,
    "resnet": 1 / 255,
}


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(into, out, 3, stride, 1)
        self.two = nn.Conv2d(out, out, 3, 1, 1)
        self.short = nn.Conv2d(into, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.short(x))


def load(name: str, folder: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network in float32, points [n, c, h, w] in [0, 1] and labels."""
    if name.startswith("cnn-a"):
        return _cnn_a(Path(folder), "mnist" if "mnist" in name else "cifar", n)
    if name == "resnet":
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Block(8, 16, 2), Block(16, 16, 1), nn.Flatten(),
            nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10),
        )  # fmt: skip
        x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        return net, x, net(x).argmax(1)
    return _bundled(name, *_points(Path(folder), "mnist", n))


def _points(folder: Path, stem: str, n: int) -> tuple[Tensor, Tensor]:
    arrays = np.load(folder / f"{stem}_sdp.npz")
    x, y = torch.tensor(arrays["x"][:n]).float() / 255, torch.tensor(arrays["y"][:n]).long()
    return (x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()), y


def _bundled(name: str, x: Tensor, y: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    from safetensors.torch import load_file

    root = Path(__file__).parents[1] / "defenses" / "checkpoints"
    state = load_file(root / f"{name}-mnist.safetensors")
    convs = [nn.Conv2d(1, 32, 4, 2, 1), nn.Conv2d(32, 64, 4, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)]
    layers: list[nn.Module] = [part for conv in convs for part in (conv, nn.ReLU())]
    layers += [nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10)]
    if name == "ibp":
        layers = [nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(1568, 10)]
    net = nn.Sequential(*layers)
    weights = [value for key, value in state.items() if key.rsplit(".", 1)[1] in ("weight", "bias")]
    shapes = {tuple(value.shape): value for value in weights}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(shapes[tuple(parameter.shape)])
    return net, x, y


def _cnn_a(folder: Path, data: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    from safetensors.torch import load_file

    into, flat, stem = (1, 1568, "mnist") if data == "mnist" else (3, 2048, "cifar10")
    net = nn.Sequential(
        nn.Conv2d(into, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    net.load_state_dict(load_file(folder / f"{data}_cnn_a_adv.safetensors"))
    x, y = _points(folder, stem, n)
    if data == "mnist":
        return net, x, y
    mean = torch.tensor([125.3, 123.0, 113.9]) / 255
    std = torch.tensor([63.0, 62.1, 66.7]) / 255
    with torch.no_grad():  # the normalization, as a 1 × 1 convolution that every tool reads
        first = nn.Conv2d(3, 3, 1)
        first.weight.copy_(torch.diag(1 / std)[:, :, None, None])
        first.bias.copy_(-mean / std)  # type: ignore[union-attr]
    return nn.Sequential(first, *net), x, y


def ours(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, *, rounding: bool = True
) -> Callable[[], Tensor]:
    """Bound as the certificate does: in batches of 16, or one at a time in the older build."""
    # Not by trying to import: an installed version would lend its modules to an older checkout.
    spec = find_spec("robustkit")
    assert spec is not None
    assert spec.origin is not None
    if (Path(spec.origin).parent / "certify").is_dir():
        crown: Any = import_module("robustkit.certify.crown")
        tracing: Any = import_module("robustkit.certify.graph")
        threats: Any = import_module("robustkit.core.threat")
        batch = 16
    else:  # the flat layout of the older build
        crown = import_module("robustkit.bounds.linear")
        tracing = import_module("robustkit.bounds.graph")
        threats = import_module("robustkit.threat")
        batch = 1
    graph = tracing.trace(net.double(), tuple(x.shape[1:]))
    threat = threats.Threat("linf", eps)
    options: dict[str, Any] = {"intermediate": "crown", "rounding": rounding, "iterations": steps}

    def run() -> Tensor:
        pairs = zip(x.double().split(batch), y.split(batch), strict=True)
        parts = [crown.crown_margins(graph, a, b, threat, **options) for a, b in pairs]
        return torch.cat(parts)

    return run


def auto_lirpa(
    net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int
) -> Callable[[], Tensor]:
    """Bound by auto_LiRPA with its defaults, all points at once."""
    library: Any = import_module("auto_LiRPA")

    k = int(net(x[:1]).shape[1])
    others = torch.stack([torch.tensor([j for j in range(k) if j != int(c)]) for c in y])
    eye = torch.eye(k)
    wanted = eye[y][:, None] - eye[others]
    options = {"optimize_bound_args": {"iteration": steps}} if steps else {}
    bounded = library.BoundedModule(net, x[:1], bound_opts=options, verbose=False)
    ball = library.PerturbationLpNorm(
        norm=float("inf"), x_L=(x - eps).clamp(0, 1), x_U=(x + eps).clamp(0, 1)
    )
    method = "CROWN-Optimized" if steps else "CROWN"

    def run() -> Tensor:
        found = bounded.compute_bounds(
            x=(library.BoundedTensor(x, ball),), C=wanted, method=method, bound_upper=False
        )
        return torch.zeros(len(x), k).scatter(1, others, found[0].detach())

    return run


def main() -> None:
    warnings.filterwarnings("ignore")
    tool, _, name, folder, n, steps, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    net, x, y = load(name, folder, int(n))
    net.eval().requires_grad_(False)
    job = net, x, y, NETS[name], int(steps)
    run = auto_lirpa(*job) if tool == "auto_LiRPA" else ours(*job, rounding=tool != "unrounded")
    run()  # the first call of a process pays for libraries
    before, used = time.perf_counter(), time.process_time()
    lower = run()
    seconds = (time.perf_counter() - before) / len(x)
    others = torch.arange(lower.shape[1]) != y[:, None]
    result = {
        "seconds": seconds,
        "cpu": (time.process_time() - used) / len(x),
        "bound": float(lower.sum() / others.sum()),
        "proved": int((lower.masked_fill(~others, torch.inf).amin(1) > 0).sum()),
        "points": len(x),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
