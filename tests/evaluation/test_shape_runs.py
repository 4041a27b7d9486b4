"""Whole evaluations of vectors, signals and volumes, held against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkit
from robustkit.cli.program import program
from robustkit.core.threat import Norm, Threat
from robustkit.data.arrays import from_arrays
from robustkit.errors import UsageError
from robustkit.leaderboard.report.drawn import drawn, widest
from robustkit.leaderboard.report.gallery import GalleryMaker
from robustkit.models.protocols import assemble
from robustkit.record.record import Record, load
from robustkit.registry import defenses

SHAPES = {"nd": (12,), "nct": (2, 8), "ncdhw": (1, 3, 2, 4)}
LINE = ("apgd(steps=10)", "square(queries=50)")


def made(layout: str, low: float = 0.0, high: float = 1.0) -> tuple[Any, nn.Module, Any, Any]:
    """Points in the middle of a box, a linear model, each point's margin, and the weights."""
    shape, draw = SHAPES[layout], np.random.default_rng(3)
    share = draw.uniform(0.47, 0.53, size=(24, *shape))
    x = (low + (high - low) * share).astype(np.float32)
    last = nn.Linear(x[0].size, 2).requires_grad_(False)
    last.weight[0] = 0
    last.weight[1] = torch.tensor(draw.normal(size=x[0].size)).float()
    last.bias[:] = torch.tensor([0.0, -float(last.weight[1].sum() * (low + high) / 2)])
    net = nn.Sequential(nn.Flatten(), last).eval()
    gap = net(torch.tensor(x))[:, 1].numpy()
    data = from_arrays("toy", x, (gap > 0).astype(int), layout=layout, box=(low, high))
    return data, net, gap, last.weight[1].numpy()


def exact(gap: Any, weight: Any, norm: Norm) -> Any:
    """Distance of each point to the decision boundary of a linear model."""
    return np.abs(gap) / np.linalg.norm(weight, {"linf": 1, "l2": 2, "l1": np.inf}[norm])


def statuses(record: Record, status: str) -> list[bool]:
    return [found == status for found in record.points.status]


@pytest.mark.parametrize(("layout", "norm"), [("nd", "l1"), ("nct", "linf"), ("ncdhw", "l2")])
def test_verdict_and_certificate_are_those_of_the_closed_form(
    layout: str, norm: Norm, tmp_path: Path
) -> None:
    data, net, gap, weight = made(layout)
    radius = exact(gap, weight, norm)
    eps = float(np.sort(radius)[11:13].mean())
    attacks = (
        (
            "apgd_l1(steps=20)",
            "fab",
        )
        if norm == "l1"
        else LINE
    )
    record = robustkit.evaluate(
        net, data, f"{norm}:{eps}", attacks=attacks, certify="crown", device="cpu", folder=tmp_path
    )
    assert statuses(record, "broken") == list(radius < eps)
    assert statuses(record, "certified") == list(radius > eps)


def test_a_box_of_the_data_is_an_option_and_stays_with_the_evidence(tmp_path: Path) -> None:
    data, _, _, _ = made("nd", -2, 6)
    file, code = tmp_path / "x.npz", tmp_path / "net.py"
    np.savez(file, x=data.fetch(range(24))[0], y=data.labels)
    code.write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Linear(12, 2)\n"
    )
    asked = [
        *("evaluate", f"{code}:make", "--data", f"npz:{file}", "--threat", "linf:0.5"),
        *("--device", "cpu", "--attack", "pgd(steps=5)", "--quiet", "--out", str(tmp_path / "out")),
    ]
    refused = CliRunner().invoke(program, asked, catch_exceptions=True)
    assert refused.exit_code == 2
    done = CliRunner().invoke(program, [*asked, "--box", "-2,6"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out").glob("*/record.json")
    record = load(path)
    assert (record.threat.lower, record.threat.upper) == (-2, 6)
    found = GalleryMaker().gallery(record, path, 3).pictures
    assert len(found) == 3
    assert "feature" in found[0].says
    wrong = CliRunner().invoke(program, [*asked, "--box", "6,-2"], catch_exceptions=True)
    assert wrong.exit_code == 2
    assert "a lower end and a larger upper one" in wrong.output


def test_eps_is_a_share_of_each_feature_where_ranges_are_given(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    width = 10.0 ** draw.integers(-2, 3, 6)
    lower = 3 * width * draw.normal(size=6)
    x = lower + width * draw.uniform(0.45, 0.55, size=(20, 6))
    net = nn.Linear(6, 2).requires_grad_(False)
    net.weight[0], net.bias[0] = 0, 0
    net.weight[1] = torch.tensor(draw.normal(size=6) / width)
    net.bias[1] = -float(net.weight[1] @ torch.tensor(lower + width / 2).float())
    gap = net(torch.tensor(x).float())[:, 1].numpy()
    data = from_arrays("table", x, (gap > 0).astype(int), lower=lower, upper=lower + width)
    # In units of the data the adversary may move feature i by eps · width i.
    radius = np.abs(gap) / (np.abs(net.weight[1].numpy()) * width).sum()
    eps = float(np.sort(radius)[9:11].mean())
    record = robustkit.evaluate(
        net, data, f"linf:{eps}", attacks=LINE, certify="ibp", device="cpu", folder=tmp_path
    )
    assert statuses(record, "broken") == list(radius < eps)
    assert statuses(record, "certified") == list(radius > eps)


def test_a_convolution_of_signals_is_bounded_as_its_matrix(tmp_path: Path) -> None:
    torch.manual_seed(2)
    head = nn.Conv1d(2, 3, 3, stride=2, padding=1)
    net = nn.Sequential(head, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).requires_grad_(False)
    matrix = torch.stack([
        (head(unit.view(1, 2, 8)) - head(torch.zeros(1, 2, 8))).flatten() for unit in torch.eye(16)
    ], 1)  # fmt: skip
    flat = nn.Linear(16, 12)
    flat.weight.data, flat.bias.data = matrix, head(torch.zeros(1, 2, 8)).flatten()
    dense = nn.Sequential(nn.Flatten(), flat, nn.ReLU(), net[3]).requires_grad_(False)
    x = torch.rand(40, 2, 8)
    data = from_arrays("s", x.numpy(), net(x).argmax(1).numpy(), classes=2, layout="nct")
    asked: Any = {"attacks": ["pgd(steps=3)"], "certify": "crown", "device": "cpu"}
    eps = "linf:0.05"
    one, two = (
        robustkit.evaluate(model, data, eps, folder=tmp_path / name, **asked).points.status
        for name, model in (("conv", net), ("dense", dense))
    )
    assert one == two
    assert 0 < one.count("certified") < 40


@pytest.mark.parametrize("threat", ["patch:2x2", "rotation:10", "style:mean=0.1", "corruption:fog"])
def test_threats_to_images_refuse_other_shapes_and_say_what_is_left(threat: str) -> None:
    data, net, _, _ = made("nd")
    with pytest.raises(UsageError, match=r"got inputs \[12\]. Balls of linf"):
        robustkit.evaluate(net, data, threat, device="cpu")


def test_defenses_that_are_trained_here_are_for_images() -> None:
    data, _, _, _ = made("nd")
    with pytest.raises(UsageError, match=r"network for images \[c, h, w\], got inputs \[12\]"):
        assemble(defenses.build("undefended"), data)


def test_drawings_show_values_and_changes() -> None:
    bars = drawn(np.array([0.0, 1.0]))[0]
    half = bars.shape[1] // 2
    assert bars[5:-5, half + 5 : -5].max() < 0.5 < bars[5:-5, : half - 5].min()
    signal = drawn(np.stack([np.zeros(50), np.ones(50)]))[0]
    assert signal[: len(signal) // 2 - 5].min() > 0.7  # 0 is drawn at the bottom of its half
    assert signal[len(signal) // 2].min() < 0.1  # 1 at the top of the other
    volume = np.zeros((1, 5, 3, 3))
    volume[0, 3, 1, 1] = 0.1
    assert widest(np.zeros_like(volume), volume) == 3
    assert Threat("linf", 1, -3, 9).limit(4) == 1 + 1e-6 + 9 * 2.0**-24
