"""CLIP and SigLIP as classifiers: tiny ones made on the spot, compared with their own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset, ImageSet
from robustkit.errors import UsageError
from robustkit.models.load import load_model

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("torchvision")
NAMES = ("cat", "dog", "tree frog")


@pytest.fixture(scope="module")
def photos() -> Dataset:
    """Six random color images of 32 × 32, three classes with names."""
    from dataclasses import replace

    x = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    made: ImageSet = from_arrays("photos", x, np.arange(6) % 3, classes=3)
    return replace(made, class_names=NAMES)


def write_tokenizer(folder: Path, masks: bool) -> None:
    """A tokenizer that reads letters one by one, in the files of CLIP's."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    inputs = ["input_ids", "attention_mask"] if masks else ["input_ids"]
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 40, "model_input_names": inputs}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, place = request.param, tmp_path_factory.mktemp(request.param)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    texts = {**small, "vocab_size": 190, "max_position_embeddings": 40,
             "bos_token_id": 188, "eos_token_id": 189, "projection_size": 16}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_config=texts, vision_config={**small, "image_size": 24, "patch_size": 8},
        **{"projection_dim": 12} if kind == "CLIP" else {},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(place)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    ).save_pretrained(place)
    write_tokenizer(place, masks=kind == "CLIP")  # SigLIP's has no mask
    return place


def own_answers(folder: Path, x: Tensor, lines: list[str]) -> Tensor:
    """What the model of transformers itself says to images and texts."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    images = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in x]
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    tokens = tokenizer(lines, padding="max_length", max_length=40, return_tensors="pt")
    with torch.no_grad():
        answer: Tensor = model(pixel_values=pixels, **tokens).logits_per_image
    return answer


def test_it_answers_as_the_model_itself(folder: Path, photos: Dataset) -> None:
    x = photos.fetch(range(6))[0].requires_grad_(True)
    found = load_model(f"hf:{folder}", data=photos)
    theirs = own_answers(folder, x.detach(), [f"a photo of a {name}." for name in NAMES])
    logits = found.model(x)
    # The processor rounds the resized image to bytes.
    torch.testing.assert_close(logits, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert bool(gradient.isfinite().all()) and bool(gradient.any())
    assert "zero-shot: 3 texts such as 'a photo of a cat.'" in found.notes


def test_other_texts_are_other_weights(folder: Path, photos: Dataset) -> None:
    def state(options: str) -> Tensor:
        model: nn.Module = load_model(f"hf:{folder}{options}", data=photos).model
        return torch.as_tensor(model.state_dict()["model.texts"])

    plain, drawn = state(""), state("(prompt='a drawing of a {}.')")
    assert not torch.equal(plain, drawn)
    both = state("(prompt=('a photo of a {}.', 'a drawing of a {}.'))")
    torch.testing.assert_close(both, torch.nn.functional.normalize(plain + drawn, dim=-1))
    torch.testing.assert_close(state("(labels=('cat', 'dog', 'tree frog'))"), plain)


def test_labels_of_a_file(folder: Path, photos: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("bird\nfish\nfly\n")
    found = load_model(f"hf:{folder}(labels='{file.as_posix()}')", data=photos)
    assert "zero-shot: 3 texts such as 'a photo of a bird.'" in found.notes
    with pytest.raises(UsageError, match="cannot be read"):
        load_model(f"hf:{folder}(labels='none.txt')", data=photos)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("(prompt='a photo')", "one {} for the class"),
        ("(labels=('cat', 'dog'))", "expected 3 labels, one a class, got 2"),
        ("(template=1)", "has no option 'template'"),
    ],
)
def test_requests_that_cannot_be_met(
    folder: Path, photos: Dataset, options: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        load_model(f"hf:{folder}{options}", data=photos)


def test_classes_without_names_are_refused(folder: Path) -> None:
    bare = from_arrays(
        "bare", np.zeros((3, 3, 32, 32), dtype=np.uint8), np.arange(3), layout="nchw"
    )
    with pytest.raises(UsageError, match="labels='FILE'"):
        load_model(f"hf:{folder}", data=bare)


def test_another_function_of_the_embeddings_is_refused(
    folder: Path, photos: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(transformers.AutoModel.from_pretrained(folder))
    plain = kind.get_image_features

    def other(self: Any, *args: Any, **options: Any) -> Tensor:
        found: Tensor = plain(self, *args, **options)
        return found.flip(-1)

    monkeypatch.setattr(kind, "get_image_features", other)
    with pytest.raises(UsageError, match="scaled cosines"):
        load_model(f"hf:{folder}", data=photos)


def test_random_weights_are_told(folder: Path, photos: Dataset) -> None:
    found = load_model(f"hf:{folder}(pretrained=false)", data=photos)
    assert getattr(found.model, "untrained", False)
