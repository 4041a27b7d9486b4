"""Image towers with a folder of text embeddings: cosines, by name and label, clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.errors import UsageError
from robustkit.models.load import load_model

RANDOM = np.random.default_rng(0)
X = RANDOM.random((6, 1, 2, 2)).astype(np.float32)
TEXTS = RANDOM.normal(size=(2, 4)).astype(np.float32)


@pytest.fixture
def data() -> Dataset:
    made: ImageSet = from_arrays("it", X, np.arange(6) % 2, layout="nchw")
    return replace(made, class_names=("cat", "dog"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text("import torch\nimages = torch.nn.Flatten().eval()\n")
    (tmp_path / "texts").mkdir()
    return tmp_path


def name(place: Path, more: str = "") -> str:
    return f"tower:{place / 'mine.py'}:images(texts={str(place / 'texts')!r}{more})"


def test_logits_are_scaled_cosines(place: Path, data: Dataset) -> None:
    np.save(place / "texts" / "dog.npy", TEXTS[1])
    save_file({"embedding": 3 * TEXTS[:1]}, place / "texts" / "0.safetensors")
    subject = load_model(name(place, ", scale=50"), data=data)
    rows = X.reshape(6, 4)
    norms = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(TEXTS, axis=1)
    found = subject.model(torch.from_numpy(X)).numpy()
    assert np.allclose(found, 50 * rows @ TEXTS.T / norms, rtol=1e-4)
    assert "zero-shot: 2 embeddings" in subject.notes[-1]
    assert subject.model.state_dict()["texts"].shape == (2, 4)


def test_several_texts_of_a_class_are_averaged_as_unit_vectors(place: Path, data: Dataset) -> None:
    np.save(place / "texts" / "cat.npy", np.eye(4, dtype=np.float32)[:2] * [[2], [9]])
    np.save(place / "texts" / "dog.npy", TEXTS[1])
    texts = load_model(name(place), data=data).model.state_dict()["texts"]
    assert torch.allclose(texts[0], torch.tensor([0.5**0.5, 0.5**0.5, 0, 0]))


def test_what_is_missing_or_does_not_fit_is_said(place: Path, data: Dataset) -> None:
    texts = place / "texts"
    np.save(texts / "cat.npy", TEXTS[0])
    with pytest.raises(UsageError, match=r"expected a file dog\.npy in .*1 classes without one"):
        load_model(name(place), data=data)
    np.save(texts / "dog.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(UsageError, match=r"dog\.npy cannot be read: .*allow_pickle=False"):
        load_model(name(place), data=data)
    np.save(texts / "dog.npy", np.arange(4))
    with pytest.raises(UsageError, match=r"expected an embedding .* of floats"):
        load_model(name(place), data=data)
    for path in ("cat", "dog"):
        np.save(texts / f"{path}.npy", np.ones(5, dtype=np.float32))
    with pytest.raises(UsageError, match=r"embeddings of two images as \[2, 5\].*got \[2, 4\]"):
        load_model(name(place), data=data)
    with pytest.raises(UsageError, match="expected texts='FOLDER'"):
        load_model(f"tower:{place / 'mine.py'}:images", data=data)


def test_files_of_torch_are_read_without_running_code(place: Path, data: Dataset) -> None:
    """A bare tensor, one of a dictionary in bfloat16; an object of a class is refused."""
    texts, model = place / "texts", torch.from_numpy(TEXTS)
    torch.save(model[0], texts / "cat.pt")
    torch.save({"text_features": model[1:].bfloat16()}, texts / "dog.pth")
    found = load_model(name(place), data=data).model.state_dict()["texts"]
    whole = torch.stack([model[0], model[1].bfloat16().float()])
    assert torch.allclose(found, torch.nn.functional.normalize(whole, dim=1))
    torch.save({"one": model[0], "two": model[1]}, texts / "dog.pth")
    with pytest.raises(UsageError, match=r"dog\.pth cannot be read: expected one tensor, got 2"):
        load_model(name(place), data=data)
    torch.save(torch.nn.Flatten(), texts / "dog.pth")
    with pytest.raises(UsageError, match=r"dog\.pth cannot be read: .*[Ww]eights.only"):
        load_model(name(place), data=data)
