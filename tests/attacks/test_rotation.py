"""Rotations and translations: closed forms, an independent implementation, and brute force."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform
from torch import Tensor

import robustkit
from robustkit.core.finite import FiniteThreat
from robustkit.data.arrays import as_dataset
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.gate.baseline import load_baselines
from robustkit.gate.verify_record import verify_record
from robustkit.models.load import load_model
from robustkit.registry import read_threat


def finite(text: str) -> FiniteThreat:
    threat = read_threat(text)
    assert isinstance(threat, FiniteThreat)
    return threat


def moved(threat: FiniteThreat, x: Tensor) -> dict[str, Tensor]:
    return {v.kind: threat.images(x, range(len(x)), v) for v in threat.variants}


def test_quarter_turns_are_those_of_rot90_bit_by_bit() -> None:
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    made = moved(finite("rotation:180@90"), x)
    for kind, quarters in (("rotate-90", -1), ("rotate+90", 1), ("rotate+180", 2)):
        assert torch.equal(made[kind], x.rot90(quarters, (2, 3)))
    assert len(made) == 4


def test_translations_move_whole_pixels_exactly_and_leave_black() -> None:
    x = torch.rand(2, 1, 7, 5, generator=torch.Generator().manual_seed(0))
    made = moved(finite("translation:4@2"), x)
    assert len(made) == 24
    for down, right in product((-4, -2, 0, 2, 4), repeat=2):
        if not (down or right):
            continue
        expected = torch.zeros_like(x)
        expected[:, :, max(down, 0) : 7 + min(down, 0), max(right, 0) : 5 + min(right, 0)] = x[
            :, :, max(-down, 0) : 7 - max(down, 0), max(-right, 0) : 5 - max(right, 0)
        ]
        assert torch.equal(made[f"shift{down:+d}{right:+d}"], expected)


def by_scipy(x: Tensor, angle: float, down: int, right: int) -> Tensor:
    """Rotate and move with SciPy's linear interpolation, black outside (a border pixel is cut)."""
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    middle = (np.array(x.shape[2:]) - 1) / 2
    offset = middle - matrix @ (middle + np.array([down, right]))
    images = np.pad(x.double().numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    offset = offset + 2 - matrix @ [2, 2]
    made = [
        affine_transform(channel, matrix, offset, order=1)[2:-2, 2:-2]
        for image in images for channel in image
    ]  # fmt: skip
    return torch.from_numpy(np.stack(made)).view_as(x)


def test_angles_between_agree_with_scipy() -> None:
    x = torch.rand(2, 2, 12, 10, generator=torch.Generator().manual_seed(0))
    threat = finite("rotation:20@20,translation=3@3")
    made = moved(threat, x)
    for angle, down, right in product((-20, 20), (-3, 0, 3), (-3, 0, 3)):
        shift = f"_shift{down:+d}{right:+d}" if down or right else ""
        expected = by_scipy(x, angle, down, right)
        assert made[f"rotate{angle:+d}{shift}"] == pytest.approx(expected, abs=5e-5)


def test_severity_counts_steps_and_is_the_distance() -> None:
    threat = finite("rotation:30@10,translation=2")
    assert threat.eps == 3 and len(threat.variants) == 7 * 25 - 1
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    told = {v.kind: threat.images(x, [0], v) for v in threat.variants}
    for kind, steps in (("rotate-10", 1), ("rotate+30", 3), ("rotate+10_shift+0-2", 2)):
        assert threat.distance(told[kind], x, [0]).tolist() == [steps]
    assert threat.distance(told["rotate-10"] + 1e-6, x, [0]).tolist() == [math.inf]


@pytest.mark.parametrize("text", ["rotation:15@5", "translation:2@2", "rotation:8@8,translation=1"])
def test_the_verdict_on_a_real_model_is_that_of_brute_force(text: str, tmp_path: Path) -> None:
    record = robustkit.evaluate("pgd_at", "bundled", text, n=24, folder=tmp_path)
    data, threat = open_dataset("bundled"), finite(text)
    model, (x, y) = load_model("pgd_at", data=data).model.eval(), data.fetch(record.points.index)
    turns = {"rotation:15@5": (range(-15, 16, 5), (0,)), "translation:2@2": ((0,), (-2, 0, 2))}
    angles, shifts = turns.get(text, ((-8, 0, 8), (-1, 0, 1)))
    with torch.no_grad():
        right = [
            model(by_scipy(x, *move).float()).argmax(1) == y
            for move in product(angles, shifts, shifts)
        ]
    robust = torch.stack(right).all(0).tolist()
    assert [status == "robust" for status in record.points.status] == robust
    assert 0 < record.points.status.count("broken") < 24
    assert record.threat.text == text and len(record.threat.variants or ()) == len(right) - 1
    checked = verify_record(load_baselines(tmp_path)[0], model, data)
    assert checked.holds and threat.eps == record.threat.eps


@pytest.mark.parametrize(
    "text", ["rotation:fast", "rotation:200", "rotation:15@4", "rotation:15@0", "rotation:9,by=2",
             "translation:2.5", "translation:1@0.5", "rotation:9,translation=", "rotation:-5"]
)  # fmt: skip
def test_other_forms_are_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected rotation:15@5 \(degrees.*got " + text):
        read_threat(text)


def test_grids_and_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"36,000 variants.*at most 4,096.*wider steps"):
        read_threat("rotation:180@0.01")
    with pytest.raises(UsageError, match=r"needs images \[c, h, w\], got inputs \[4\]"):
        finite("rotation:5").check((4,), None)
    data = as_dataset("small", (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(UsageError, match=r"fewer pixels than the images have a side, 8 .*got 8"):
        finite("translation:8@8").check(data.shape, data.labels)
    with pytest.raises(UsageError, match=r"lists the inputs to try.*--suite exhaustive"):
        robustkit.evaluate("pgd_at", "bundled", "rotation:5", n=4, suite="fast")
