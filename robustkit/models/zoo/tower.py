"""Zero-shot classifiers of two parts: `tower:MODEL(texts=FOLDER)`, images and text embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.imports import load_attribute
from robustkit.core.process_state import kept
from robustkit.errors import UsageError
from robustkit.models import zoo
from robustkit.models.readiness import evaluation_mode, refuse_unready
from robustkit.models.zoo.base import Ask, Found, building

_SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")
_SCALE = 100.0  # of CLIP, whose training clips it there


class Tower(nn.Module):
    """Scaled cosines of an image's embedding with that of each class: [b, c, h, w] -> [b, k].

    The embeddings of the texts are in the state dict, so that other texts are other weights.
    """

    texts: Tensor

    def __init__(self, images: nn.Module, texts: Tensor, scale: float) -> None:
        super().__init__()
        self.images, self.scale = images, scale
        self.register_buffer("texts", texts)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> logits [b, k]."""
        embedded = F.normalize(self.images(x), dim=-1)
        return self.scale * embedded @ self.texts.to(embedded.dtype).T


def load(ask: Ask) -> Found:
    """Classify images by the nearest text embedding (Radford et al. 2021, arXiv:2103.00020, 3.1).

    MODEL is the image tower, [b, c, h, w] -> embeddings [b, d]: `path/to/file.py:attr`,
    `package.module:attr` or a name of another source. `texts` is a folder with one file a class,
    `NAME.npy`, `.safetensors`, or `.pt` with tensors alone, an embedding [d] or several [t, d],
    which are averaged as unit vectors (3.1.4); NAME is that of the class, or its label. `scale=100`
    is that of the cosines.
    Normalization is that of the tower, or left to --mean and --std.

    Raises:
        UsageError: when the tower cannot be loaded, a class has no file, or embeddings differ in
            length.
    """
    folder, ask = ask.option("texts", str)
    scale = ask.options.get("scale", _SCALE)
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not scale > 0:
        raise UsageError(f"{ask.text}: expected scale as a positive number, got {scale!r}.")
    ask = ask._replace(options={k: v for k, v in ask.options.items() if k != "scale"})
    if folder is None:
        raise UsageError(
            f"{ask.text}: expected texts='FOLDER', with a file NAME.npy for each class, got none."
        )
    ask.refuse_options()
    found = _images(ask)
    texts = torch.stack([_embedding(ask, path) for path in _files(ask, Path(folder).expanduser())])
    with building(ask, "The tower was tried on two inputs."), torch.no_grad():
        size = tuple(found.model(torch.zeros(2, *ask.shape)).shape)
    if size != (2, texts.shape[1]):
        raise UsageError(
            f"{ask.text}: expected embeddings of two images as [2, {texts.shape[1]}], the length "
            f"of the texts', got {list(size)}."
        )
    note = f"zero-shot: {len(texts)} embeddings in {folder}, cosines times {scale:g}"
    model = Tower(found.model, texts, float(scale)).eval()
    return found._replace(model=model, notes=(*found.notes, note))


def _images(ask: Ask) -> Found:
    """Load the image tower."""
    if zoo.is_named(ask.name):
        return zoo.open_model(ask.name, ask.shape, ask.classes, ask.weights, ask.class_names)
    with kept():
        value: Any = load_attribute(ask.name)
    with building(ask, f"It is made by {ask.name}."):
        made = value if isinstance(value, nn.Module) else value()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{ask.text}: expected an nn.Module, got a {type(made).__name__}.")
    refuse_unready(made, ask.text)
    ask.refuse_weights()
    return Found(evaluation_mode(made))


def _files(ask: Ask, folder: Path) -> list[Path]:
    """Return the file of each class, in order of the labels."""
    if not folder.is_dir():
        raise UsageError(f"{ask.text}: there is no folder {folder} (looked from {Path.cwd()}).")
    held = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES}
    names = ask.class_names or tuple(map(str, range(ask.classes)))
    files = [held.get(name) or held.get(str(label)) for label, name in enumerate(names)]
    lacking = [name for name, file in zip(names, files, strict=True) if file is None]
    if lacking:
        raise UsageError(
            f"{ask.text}: expected a file {lacking[0]}.npy in {folder}, one for each of "
            f"{len(names)} classes, got {len(held)} files and {len(lacking)} classes without one."
        )
    return [file for file in files if file is not None]


def _embedding(ask: Ask, path: Path) -> Tensor:
    """Read the embedding of a class as a unit vector [d]."""
    try:
        raw = _read(path)
    except Exception as error:  # damaged files fail in many ways
        raise UsageError(f"{ask.text}: {path} cannot be read: {error}.") from None
    if raw.ndim not in (1, 2) or not raw.is_floating_point() or not raw.numel():
        raise UsageError(
            f"{ask.text}: expected an embedding [d] or [t, d] of floats in {path}, got "
            f"{str(raw.dtype).removeprefix('torch.')} {list(raw.shape)}."
        )
    several = torch.atleast_2d(raw.detach().float())
    return F.normalize(F.normalize(several, dim=1).mean(0), dim=0)


def _read(path: Path) -> Tensor:
    """Read the only tensor of a file; of `.pt` no code is run."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    read = load_file if path.suffix == ".safetensors" else _tensors
    found: Any = read(path)
    tensors = list(found.values()) if isinstance(found, Mapping) else [found]
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor):
        raise ValueError(f"expected one tensor, got {len(tensors)} entries")
    return tensors[0]


def _tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
