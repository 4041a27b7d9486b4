"""Stored corruptions, in both layouts, give the verdicts of the images that lie there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import robustkit
from robustkit.core.finite import FiniteThreat
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.models.load import load_model
from robustkit.registry import read_threat

corrupt = importlib.import_module("robustkit.attacks._corruptions").corrupt
KINDS, N = ("fog", "contrast", "saturate", "tilt"), 12


def points() -> tuple[NDArray[Any], NDArray[Any]]:
    x, y = open_dataset("bundled").fetch(range(N))
    return x.numpy(), y.numpy()


def made(kind: str, severity: int) -> NDArray[np.uint8]:
    """Of each point one variant, as CIFAR-10-C has them: [n, h, w, c]."""
    name = "brightness" if kind == "tilt" else kind  # a name that nobody knows
    x, _ = points()
    return np.stack([corrupt(image, name, severity, p) for p, image in enumerate(x)]).transpose(
        0, 2, 3, 1
    )


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    for kind in KINDS:
        np.save(folder / f"{kind}.npy", np.concatenate([made(kind, k) for k in range(1, 6)]))
    np.save(folder / "labels.npy", np.tile(points()[1], 5))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Clean images by class, and beside them the same images corrupted."""
    root = tmp_path_factory.mktemp("files")
    x, y = points()
    sets = {root / "clean": (x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)}
    sets |= {root / "c" / "fog" / str(k): made("fog", k) for k in range(1, 6)}
    for folder, images in sets.items():
        for number, (image, label) in enumerate(zip(images, y, strict=True)):
            place = folder / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(place / f"{number:03}.png")
    return root / "clean", root / "c"


def read(text: str) -> FiniteThreat:
    threat = read_threat(text)
    assert isinstance(threat, FiniteThreat)
    return threat


def test_a_folder_of_arrays_is_what_the_generated_images_are(arrays: Path, tmp_path: Path) -> None:
    data = points()
    threat = read(f"stored:{arrays}::fog+contrast@2-5")
    assert [str(v) for v in threat.variants][:2] == ["fog@1", "fog@2"]
    model = load_model("undefended", data=open_dataset("bundled")).model
    stored = robustkit.evaluate(model, data, threat, folder=tmp_path / "stored")
    fresh = robustkit.evaluate(model, data, "corruption:fog+contrast@2-5",
                               folder=tmp_path / "fresh")  # fmt: skip
    assert stored.points.variants == fresh.points.variants
    assert stored.outcomes == fresh.outcomes and stored.threat.variants == fresh.threat.variants


def test_all_leaves_out_what_the_benchmark_has_not(arrays: Path) -> None:
    kinds = {variant.kind for variant in read(f"stored:{arrays}").variants}
    assert kinds == {"fog", "contrast"}
    assert {v.kind for v in read(f"stored:{arrays}::extra").variants} == {"saturate", "tilt"}
    assert read(f"stored:{arrays}::tilt@4").eps == 4


def test_a_folder_of_images_is_read_by_class_and_severity(files: tuple[Path, Path]) -> None:
    clean, corrupted = files
    data = open_dataset(f"folder:{clean}")
    threat = read(f"stored:{corrupted}")
    threat.check(data.shape, data.labels)
    order = np.argsort(points()[1], kind="stable")  # images of a class stand together
    for severity in (1, 5):
        chosen = [3, 0, 7]
        z = threat.images(data.fetch(chosen)[0], chosen, threat.variants[severity - 1])
        expected = made("fog", severity)[order[chosen]].transpose(0, 3, 1, 2)
        assert torch.equal((z * 255).round(), torch.from_numpy(expected).float())


def test_other_data_is_refused(arrays: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    x, y = map(torch.from_numpy, points())
    pairs: list[Any] = [(x, y.flip(0)), (x[:-1], y[:-1])]
    for data in pairs:
        with pytest.raises(UsageError, match="or their labels differ"):
            robustkit.evaluate(torch.nn.Flatten(), data, f"stored:{arrays}::fog", folder=tmp_path)
    with pytest.raises(UsageError, match="got neither"):
        read_threat(f"stored:{tmp_path}")
    with pytest.raises(UsageError, match="Did you mean 'fog'"):
        read_threat(f"stored:{arrays}::fogg")
    np.save(tmp_path / "fog.npy", np.zeros((10, 4, 4, 1)))
    with pytest.raises(UsageError, match="expected bytes"):
        read(f"stored:{tmp_path}").check((1, 4, 4), y)
    (tmp_path / "fog.npy").write_bytes(b"no array")
    with pytest.raises(UsageError, match="expected an npy file"):
        read(f"stored:{tmp_path}::fog@1-2").images(x, list(range(N)), read(
            f"stored:{tmp_path}").variants[1])  # fmt: skip
