"""NRTK's perturbers as corruptions: exact verdicts, keyed draws, the real package where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.core.stats.intervals import clopper_pearson
from robustkit.data.dataset import Dataset
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.nrtk import Corruptions, evaluate_corruptions


class Perturber:
    """What robustkit asks of NRTK's `PerturbImage`."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self.draw = np.random.default_rng(config.get("seed"))

    def get_config(self) -> dict[str, Any]:
        return dict(self.config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Perturber:
        return cls(**config)

    def perturb(self, *, image: Any, boxes: Any = None) -> tuple[Any, Any]:
        return image, boxes


class Invert(Perturber):
    def perturb(self, *, image: Any, boxes: Any = None) -> tuple[Any, Any]:
        return 255 - image, boxes


class Noise(Perturber):
    def perturb(self, *, image: Any, boxes: Any = None) -> tuple[Any, Any]:
        return self.draw.integers(0, 256, image.shape, dtype=np.uint8), boxes


class Halve(Perturber):
    def perturb(self, *, image: Any, boxes: Any = None) -> tuple[Any, Any]:
        return image[::2], boxes


class Fail(Perturber):
    def perturb(self, *, image: Any, boxes: Any = None) -> tuple[Any, Any]:
        raise RuntimeError("out of fog")


def test_verdicts_are_those_of_every_variant(nearest: nn.Module, blobs: Dataset) -> None:
    threat = Corruptions({"same": Perturber(), "invert": Invert(), "noise": Noise(seed=0)}, draws=3)
    assert threat.variants == [
        ("same", 0), ("invert", 0), ("noise", 0), ("noise", 1), ("noise", 2)
    ]  # fmt: skip
    points = [5, 3, 60, 7, 41]
    found = evaluate_corruptions(nearest, blobs, threat, points=points)
    x, y = blobs.fetch(points)
    bytes_ = (x * 255).round() / 255
    assert found.clean.tolist() == (nearest(x).argmax(1) == y).tolist()
    assert found.right[:, 0].tolist() == (nearest(bytes_).argmax(1) == y).tolist()
    assert found.right[:, 1].tolist() == (nearest(1 - bytes_).argmax(1) == y).tolist()
    robust = [bool(c) and bool(r.all()) for c, r in zip(found.clean, found.right, strict=True)]
    assert found.robust == sum(robust) / 5
    assert found.robust_interval == clopper_pearson(sum(robust), 5)
    table = found.to_pandas()
    assert table.loc["same", "accuracy"] == found.right[:, 0].mean()
    assert table.loc["noise", "accuracy"] == pytest.approx(found.right[:, 2:].mean())
    assert table.loc["noise", "worst"] == found.right[:, 2:].all(1).mean()
    assert found.mean == pytest.approx(table["accuracy"].mean())
    verdicts = found.verdicts()
    assert list(verdicts) == points
    assert [v == "robust" for v in verdicts.values()] == robust
    assert verdicts[7] == "misclassified" and "invert" in verdicts.values()


def test_draws_depend_on_seed_point_and_draw_alone(nearest: nn.Module, blobs: Dataset) -> None:
    def threat(seed: int = 0) -> Corruptions:
        return Corruptions({"noise": Noise(seed=9), "other": Noise(seed=9)}, draws=2, seed=seed)

    x, _ = blobs.fetch(range(6))
    one = threat()
    whole = [one.apply(variant, x, range(6)) for variant in one.variants]
    again = threat()
    for variant, wanted in zip(again.variants, whole, strict=True):
        back = again.apply(variant, x.flip(0), range(5, -1, -1)).flip(0)
        assert torch.equal(back, wanted)
        assert torch.equal(again.apply(variant, x[3:4], [3]), wanted[3:4])
    assert len({tuple(image.flatten().tolist()) for z in whole for image in z}) == 24
    assert not torch.equal(threat(1).apply(("noise", 0), x, range(6)), whole[0])
    parts = [evaluate_corruptions(nearest, blobs, threat(), batch_size=size) for size in (80, 7)]
    assert np.array_equal(parts[0].right, parts[1].right) and parts[0].digest == parts[1].digest


@pytest.mark.parametrize(
    ("perturber", "error", "reason"),
    [
        (Noise(), UsageError, "two passes over one image differ"),
        (Halve(), RobustkitError, r"expected uint8 \[6, 6\] as it was given, got uint8 \[3, 6\]"),
        (Fail(), RobustkitError, "fog fails on point 0: RuntimeError: out of fog"),
    ],
)
def test_perturbers_that_cannot_be_judged(
    nearest: nn.Module, blobs: Dataset, perturber: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        evaluate_corruptions(nearest, blobs, Corruptions({"fog": perturber}))


def test_requests_that_cannot_be_met(nearest: nn.Module, blobs: Dataset) -> None:
    with pytest.raises(UsageError, match="got none"):
        Corruptions({})
    with pytest.raises(UsageError, match="with a method perturb"):
        Corruptions({"fog": Fail})
    threat = Corruptions({"same": Perturber()})
    with pytest.raises(UsageError, match="at least one"):
        evaluate_corruptions(nearest, blobs, threat, points=[])
    with pytest.raises(UsageError, match="training mode"):
        evaluate_corruptions(nearest.train(), blobs, threat)

    class Lost(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 4), torch.nan)

    with pytest.raises(RobustkitError, match="NaN or infinite logits on points 2"):
        evaluate_corruptions(Lost().eval(), blobs, threat, points=[2])


@pytest.mark.filterwarnings("ignore")
class TestTheRealOne:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("nrtk", reason="nrtk is not installed")

    def test_noise_and_brightness(self, nearest: nn.Module, blobs: Dataset) -> None:
        pytest.importorskip("skimage")
        from nrtk.impls.perturb_image import ComposePerturber
        from nrtk.impls.perturb_image.photometric.enhance import BrightnessPerturber
        from nrtk.impls.perturb_image.photometric.noise import GaussianNoisePerturber

        noise = GaussianNoisePerturber(var=0.05, seed=1)
        dark = BrightnessPerturber(factor=0.3)
        perturbers = {"noise": noise, "dark": dark, "both": ComposePerturber([dark, noise])}
        threat = Corruptions(perturbers, draws=2)
        assert [name for name, _ in threat.variants] == ["noise", "noise", "dark", "both", "both"]
        found = [evaluate_corruptions(nearest, blobs, threat, batch_size=size) for size in (80, 9)]
        assert np.array_equal(found[0].right, found[1].right)
        assert 0 < found[0].robust < found[0].clean.mean()
        x, _ = blobs.fetch([0])
        made = threat.apply(("dark", 0), x, [0])
        image = (x[0, 0].numpy() * 255).round().astype(np.uint8)
        wanted, _ = dark.perturb(image=image)
        np.testing.assert_array_equal((made[0, 0].numpy() * 255).round(), wanted)

    def test_color_images(self) -> None:
        pytest.importorskip("skimage")
        from nrtk.impls.perturb_image.photometric.enhance import ColorPerturber

        x = torch.randint(0, 256, (2, 3, 5, 4), generator=torch.Generator().manual_seed(0)) / 255
        made = Corruptions({"gray": ColorPerturber(factor=0.0)}).apply(("gray", 0), x, [0, 1])
        assert made.shape == x.shape
        assert torch.equal(made[:, 0], made[:, 1]) and not torch.equal(made, x)
