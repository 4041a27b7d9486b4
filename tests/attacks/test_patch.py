"""Patches: the geometry, a closed form on linear models, brute force on a small network, runs."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit
from robustkit.certify.certifier import build_certifier
from robustkit.core.threat import Threat
from robustkit.data.arrays import as_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.leaderboard.report.gallery import GalleryMaker
from robustkit.models.load import load_model
from robustkit.registry import attacks, read_threat
from robustkit.search.functional import attack
from robustkit.search.suites import default_suite, line_up


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def windows(height: int, width: int, sides: tuple[int, int]) -> list[tuple[slice, slice]]:
    places = product(range(sides[0] - height + 1), range(sides[1] - width + 1))
    return [(slice(r, r + height), slice(c, c + width)) for r, c in places]


def test_the_distance_is_the_count_of_changes_in_one_window_by_brute_force() -> None:
    threat, x = read_threat("patch:2x3"), 0.25 + draw(100, 2, 4, 5) / 2
    changed = draw(100, 4, 5, seed=1) < torch.linspace(0, 0.3, 100)[:, None, None]
    channel = (draw(100, 2, 4, 5, seed=2) < 0.5) | (torch.arange(2) == 0)[:, None, None]
    z = torch.where(changed[:, None] & channel, x + 0.1, x)
    found = threat.distance(z, x).tolist()
    for row in range(100):
        held = any(not (changed[row] & ~_mask(w)).any() for w in windows(2, 3, (4, 5)))
        assert found[row] == (int(changed[row].sum()) if held else math.inf)
    assert 0 < sum(map(math.isinf, found)) < 100
    z[0, 0, 0, 0], z[1, 0, 0, 0] = 1.1, math.nan
    assert not threat.contains(z, x)[:2].any() and threat.contains(x, x).all()


def _mask(window: tuple[slice, slice]) -> Tensor:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[window] = True
    return mask


class Linear(nn.Module):
    def __init__(self, classes: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = draw(classes, 2, 7, 6, seed=3) - 0.5
        self.weight[1:] *= 0.2  # the others are far apart, so that targets matter
        self.bias = torch.tensor([bias] + [0.0] * (classes - 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (x.flatten(1)[:, None] * self.weight.flatten(1)).sum(2) + self.bias
        return logits


def best(model: Linear, x: Tensor, target: int) -> Tensor:
    """The largest z_target − z_0 that a patch of 3 x 2 reaches: the best window's best pixels."""
    slope = model.weight[target] - model.weight[0]
    gain = torch.maximum(slope * (1 - x), -slope * x).sum(1)
    most = torch.stack([gain[:, r, c].sum((1, 2)) for r, c in windows(3, 2, (7, 6))]).amax(0)
    logits = model(x)
    reached: Tensor = logits[:, target] - logits[:, 0] + most
    return reached


@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_linear_model_exactly_the_points_of_the_closed_form_fall(classes: int) -> None:
    x, y = draw(200, 2, 7, 6), torch.zeros(200, dtype=torch.long)
    wanted = torch.stack([best(Linear(classes), x, k) for k in range(1, classes)]).amax(0)
    model = Linear(classes, float(wanted.median()) + 1e-4)
    right = model(x).argmax(1) == 0
    falls = torch.stack([best(model, x, k) for k in range(1, classes)]).amax(0) > 0
    assert 20 < int((right & falls).sum()) < 180 and int((right & ~falls).sum()) > 20
    # One look beside a lattice of four windows, and no climb.
    spec = f"patch(looks=4, near=1, starts=0, targets={0 if classes == 2 else classes - 1})"
    z = attack(model, x, y, spec, "patch:3x2")
    assert torch.equal((model(z).argmax(1) != 0) & right, right & falls)
    assert read_threat("patch:3x2").contains(z, x).all()


def test_it_breaks_what_brute_force_breaks_on_a_small_network() -> None:
    """Four pixels in any of nine windows, each with every one of five values: 5,625 images."""
    x, levels = draw(24, 1, 4, 4), torch.linspace(0, 1, 5)
    contents = torch.cartesian_prod(*[levels] * 4).view(-1, 1, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3),
                              nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).eval()  # fmt: skip
    with torch.no_grad():
        y = model(x).argmax(1)
        truth = torch.zeros(24, dtype=torch.bool)
        for (r, c), row in product(windows(2, 2, (4, 4)), range(24)):
            z = x[row].repeat(len(contents), 1, 1, 1)
            z[:, :, r, c] = contents
            truth[row] |= bool((model(z).argmax(1) != y[row]).any())
        z = attack(model, x, y, "patch", "patch:2x2")
        fooled = model(z).argmax(1) != y
    assert 0 < int(truth.sum()) < 24
    assert not bool((truth & ~fooled).any())


def test_what_is_found_depends_on_the_point_alone_and_costs_what_is_said() -> None:
    x, model, calls = draw(12, 2, 7, 6), Linear(3), list[int]()
    y = model(x).argmax(1)
    whole = attack(model, x, y, "patch(steps=5)", "patch:3x2")
    assert torch.equal(whole, attack(model, x, y, "patch(steps=5)", "patch:3x2", slots=5))

    def sure(z: Tensor) -> Tensor:
        calls.append(len(z))
        return torch.stack([z.flatten(1).sum(1) * 0 + 1, z.flatten(1).sum(1) * 1e-6], 1)

    attack(sure, x[:1], y[:1] * 0, "patch(looks=4, near=3, starts=2, steps=3)", "patch:3x2")
    assert sum(calls) == 1 + 1 + 3 * (4 + 3) + 2 * 3  # the first is the clean pass


def test_a_run_on_a_real_model_is_resumed_verified_and_shown(tmp_path: Path) -> None:
    class Stop(robustkit.Watcher):
        left = 3

        def advance(self, done: int, robust: int, points: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def run(folder: Path, **more: Any) -> robustkit.Record:
        return robustkit.evaluate(
            "pgd_at",
            "bundled",
            "patch:5x5",
            n=16,
            folder=tmp_path / folder,
            certify="auto(share=0.15)",
            attacks=["patch(looks=30, near=4, starts=1, steps=5)"],
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run(Path("stopped"), watcher=Stop())
    record = run(Path("whole"))
    again = run(Path("stopped"))
    assert again.points == record.points
    assert default_suite(read_threat("patch:5x5")) == "patch" and record.threat.text == "patch:5x5"
    assert record.points.status.count("broken") > 0 and record.certified is None
    assert all(0 < d <= 25 for d in record.points.distance if d is not None)
    data = robustkit.open_dataset("bundled")
    model = load_model("pgd_at", data=data).model
    checked = verify_record(load_baselines(tmp_path / "whole")[0], model, data, sample=2)
    assert checked.holds
    assert checked.findings[2].checked == record.points.status.count("broken")
    gallery = GalleryMaker(data="bundled").gallery(record, tmp_path / "whole" / "record.json", 2)
    assert len(gallery.pictures) == 2


@pytest.mark.parametrize("text", ["patch:5", "patch:0x5", "patch:5x5x5", "patch:axb", "patch:-1x2"])
def test_other_forms_are_refused_with_the_right_one(text: str) -> None:
    with pytest.raises(UsageError, match="expected patch:5x5, height and width.*got " + text):
        read_threat(text)


def test_what_does_not_fit_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    data = as_dataset("small", (draw(4, 1, 8, 6), torch.tensor([0, 1, 0, 1])))
    model = Linear(2)
    with pytest.raises(UsageError, match=r"no larger than the images, 8x6 .*got 5x7"):
        robustkit.evaluate(model, data, "patch:5x7", folder=tmp_path)
    threat = read_threat("patch:5x5")
    with pytest.raises(UsageError, match=r"needs images \[c, h, w\], got inputs \[4\]"):
        threat.check((4,), None)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"needs a norm.*patch:5x5 changes one window"):
        line_up("fast", [], threat)
    with pytest.raises(UsageError, match=r"needs a norm.*patch:5x5 changes one window"):
        line_up(None, ["apgd"], threat)
    with pytest.raises(UsageError, match=r"patch supports patch:5x5 and the like, got linf"):
        attacks.build("patch").jobs(Threat("linf", 0.1), 10)
    with pytest.raises(UsageError, match=r"patch:5x5: expected --certify auto, ibp or crown.*got"):
        build_certifier(model, (2, 7, 6), threat, "complete")
    with pytest.raises(
        UsageError, match=r"--certify ibp bounds deterministic networks, got Linear"
    ):
        build_certifier(model, (2, 7, 6), threat, "ibp", randomized=True)
    assert build_certifier(model, (2, 7, 6), threat, "auto", randomized=True) is None
    assert build_certifier(model, (2, 7, 6), threat, "quick") is None
    with pytest.raises(UsageError, match=r"minimum_norm.*needs a norm"):
        robustkit.evaluate("pgd_at", "bundled", threat, n=4, minimum_norm=True)
