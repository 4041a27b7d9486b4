"""How far bounds lie from the truth: ours beside auto_LiRPA, by activation, norm and method.

Both bound the margins of the same small networks at the same points. The gap is the mean, over
points and classes, of the least margin that sampling and gradient steps find less the bound: it
holds what the bound loses and what the search did not find, the same for both. auto_LiRPA computes
in float32, ours in float64 without what `rounding` takes off. Inputs may leave [0, 1]: in l2 and
l1 auto_LiRPA knows the ball alone.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import trace
from robustkit.certify.ibp import input_box, intervals, margins_of
from robustkit.core.threat import Threat

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU,
               "gelu": nn.GELU}  # fmt: skip
EPS = {"linf": 0.03, "l2": 0.5, "l1": 2.0}
METHODS = ("ibp", "crown", "alpha-crown")
SHAPE, CLASSES = (1, 8, 8), 5


def network(activation: str, scale: float, seed: int) -> nn.Sequential:
    """Return two convolutions and two linear layers, with weights `scale` times the usual."""
    torch.manual_seed(seed)
    act = ACTIVATIONS[activation]
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), act(), nn.Conv2d(6, 8, 3, 2, 1), act(), nn.Flatten(),
        nn.Linear(32, 24), act(), nn.Linear(24, CLASSES),
    )  # fmt: skip
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data.mul_(scale)
    return net.eval().requires_grad_(False)


def ours(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: str, steps: int) -> Tensor:
    """Return lower bounds of the margins [b, k] in float64."""
    graph, x = trace(net.double(), SHAPE), x.double()
    if method == "ibp":
        boxes = intervals(graph, input_box(x, threat), ball=(x, threat))
        lower = margins_of(graph, boxes, y)
    else:
        iterations = steps if method == "alpha-crown" else 0
        lower = crown_margins(graph, x, y, threat, intermediate="crown", iterations=iterations)
    net.float()
    return lower.float().detach()


def auto_lirpa(
    net: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: str, steps: int
) -> Tensor:
    """Return auto_LiRPA's lower bounds of the margins [b, k]."""
    library: Any = import_module("auto_LiRPA")
    others = torch.stack([torch.tensor([j for j in range(CLASSES) if j != int(c)]) for c in y])
    eye = torch.eye(CLASSES)
    options = {
        "optimize_bound_args": {"iteration": steps},
        "conv_mode": "matrix",  # alpha-CROWN of its S-shaped functions fails behind convolutions
        "sparse_intermediate_bounds": False,
    }
    own: Any = import_module("auto_LiRPA.operators.gelu").GELU  # it does not read that of PyTorch
    layers = [own() if isinstance(layer, nn.GELU) else layer for layer in net.children()]
    net = nn.Sequential(*layers)
    bounded = library.BoundedModule(net, x[:1], bound_opts=options, verbose=False)
    if threat.norm == "linf":
        low, high = input_box(x, threat)
        ball = library.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
    else:
        ball = library.PerturbationLpNorm(norm=float(threat.norm[1:]), eps=threat.eps)
    name = {"ibp": "IBP", "crown": "CROWN", "alpha-crown": "CROWN-Optimized"}[method]
    found = bounded.compute_bounds(
        x=(library.BoundedTensor(x, ball),), C=eye[y][:, None] - eye[others], method=name,
        bound_upper=False,
    )  # fmt: skip
    return torch.zeros(len(x), CLASSES).scatter(1, others, found[0].detach())


def attacked(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, rounds: int = 30) -> Tensor:
    """Return the least margins [b, k] that projected gradient steps find from random starts."""
    best = torch.full((len(x), CLASSES), torch.inf)
    draw = torch.Generator().manual_seed(0)
    for j in range(CLASSES):
        noise = torch.randn(x.shape, generator=draw)
        z = threat.project(x + threat.eps * noise, x)
        for step in range(rounds):
            z = z.detach().requires_grad_(True)
            logits = net(z)
            margins = logits.gather(1, y[:, None]) - logits
            best = torch.minimum(best, margins.detach())
            (gradient,) = torch.autograd.grad(margins[:, j].sum(), z)
            size = 2 * threat.eps / (1 + step)
            z = threat.project(z - size * threat.steepest(gradient), x)
    return best


@click.command()
@click.option("--auto-lirpa", "checkout", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--activation",
    "activations",
    multiple=True,
    type=click.Choice(list(ACTIVATIONS)),
    default=tuple(ACTIVATIONS),
)
@click.option("--scale", "scales", multiple=True, type=float, default=(1.0, 3.0), show_default=True)
@click.option("--norm", "norms", multiple=True, type=click.Choice(list(EPS)), default=tuple(EPS))
@click.option("--n", default=6, show_default=True, help="Points of each network.")
@click.option("--iterations", default=20, show_default=True, help="Of alpha-CROWN.")
def main(
    checkout: Path | None,
    activations: tuple[str, ...],
    scales: tuple[float, ...],
    norms: tuple[str, ...],
    n: int,
    iterations: int,
) -> None:
    """Print mean gaps of the margins, and auto_LiRPA's as a multiple of ours."""
    warnings.filterwarnings("ignore")
    tools = {"ours": ours}
    if checkout is not None:
        sys.path.insert(0, str(checkout))
        tools["auto_LiRPA"] = auto_lirpa
    console = Console(width=110)
    for activation in activations:
        table = Table("activation", "weights", "norm", "method", *tools, "times ours")
        for scale in scales:
            net = network(activation, scale, 0)
            x = 0.2 + 0.6 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))
            y = net(x).argmin(1)  # every margin is open: alpha-CROWN raises no other
            for norm in norms:
                threat = replace(Threat.parse(f"{norm}:{EPS[norm]}"), lower=-9.0, upper=9.0)
                least = attacked(net, x, y, threat)
                others = torch.arange(CLASSES) != y[:, None]
                for method in METHODS:
                    gaps = [
                        float((least - bound(net, x, y, threat, method, iterations))[others].mean())
                        for bound in tools.values()
                    ]
                    row = [f"{gap:.4g}" for gap in gaps]
                    ratio = f"{gaps[-1] / gaps[0]:.2f}" if len(gaps) > 1 else ""
                    table.add_row(activation, f"{scale:g}", norm, method, *row, ratio)
        console.print(table)


if __name__ == "__main__":
    main()
