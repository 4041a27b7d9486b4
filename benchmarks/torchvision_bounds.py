"""Whether bounds read torchvision's networks: trace, interval bounds, one backward pass, a check.

Random weights, small images and a tiny eps: of interest is what is read and what it costs, not how
tight deep networks come out. Sampled points must lie inside the box of every operation.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import input_box, intervals
from robustkit.core.threat import Threat
from robustkit.errors import UsageError

MODELS = ("shufflenet_v2_x0_5", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16")


def build(name: str, size: int) -> nn.Module:
    """Return a network of torchvision in float64, in evaluation mode."""
    models: Any = import_module("torchvision.models")
    torch.manual_seed(0)
    options = {"image_size": size} if name.startswith("vit") else {}
    net: nn.Module = getattr(models, name)(weights=None, num_classes=10, **options)
    return net.eval().double().requires_grad_(False)


def sound(graph: Graph, x: Tensor, threat: Threat) -> bool:
    """Return whether the values at sampled points lie in the interval bounds of every node."""
    boxes = intervals(graph, input_box(x, threat), rounding=True)
    draw = torch.Generator().manual_seed(1)
    step = threat.eps * (2 * torch.rand(x.shape, generator=draw, dtype=x.dtype) - 1)
    values = graph.values((x + step).clamp(0, 1))
    pairs = zip(values, boxes, strict=True)
    return all(bool(((low <= v) & (v <= high)).all()) for v, (low, high) in pairs)


@click.command()
@click.option("--model", "names", multiple=True, default=MODELS, show_default="all")
@click.option("--size", default=32, show_default=True, help="Height and width of the images.")
@click.option("--eps", default=1e-6, show_default=True)
def main(names: tuple[str, ...], size: int, eps: float) -> None:
    """Print operations, whether bounds held, and CPU seconds."""
    table = Table("network", "operations", "samples inside", "CROWN finite", "CPU s")
    for name in names:
        before, net = time.process_time(), build(name, size)
        shape, threat = (3, size, size), Threat("linf", eps)
        x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).double()
        try:
            graph = trace(net, shape)
        except UsageError as error:
            table.add_row(name, str(error), "", "", "")
            continue
        with torch.no_grad():
            held = sound(graph, x, threat)
            lower = crown_margins(graph, x, net(x).argmax(1), threat)
        seconds = f"{time.process_time() - before:.1f}"
        finite = "yes" if bool(lower.isfinite().all()) else "no"
        table.add_row(name, str(len(graph.nodes)), "yes" if held else "NO", finite, seconds)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
