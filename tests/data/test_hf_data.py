"""`hf-data:FOLDER`: data sets of the Hugging Face Hub, written on the spot by `datasets`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustkit.data.hf_data import open_hf_data
from robustkit.data.open import names_code, open_dataset
from robustkit.errors import UsageError

NAMES = ["cat", "dog", "frog"]


def test_no_code_is_named_by_it() -> None:
    assert not names_code("hf-data:somewhere(split=test)")


def test_a_folder_that_is_none_tells_how_to_get_it() -> None:
    with pytest.raises(UsageError, match="hf download USER/NAME"):
        open_dataset("hf-data:nowhere")
    with pytest.raises(UsageError, match="Unknown option 'columns'"):
        open_dataset("hf-data:nowhere(columns=x)")


datasets: Any = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the user's cache."""
    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache").as_posix()
    )


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def table(pixels: NDArray[np.uint8], **more: Any) -> Any:
    """Six images with class names, and what else is given as (feature, values)."""
    columns = {"img": [Image.fromarray(image) for image in pixels], "kind": [0, 1, 2, 0, 1, 2]}
    features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    for name, (feature, values) in more.items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def holds(text: str, pixels: NDArray[np.uint8]) -> None:
    data = open_dataset(text)
    x, y = data.fetch(range(len(data)))
    np.testing.assert_array_equal((x.numpy() * 255).round(), pixels.transpose(0, 3, 1, 2))
    assert (y.tolist(), data.classes, data.class_names) == ([0, 1, 2, 0, 1, 2], 3, tuple(NAMES))
    assert data.shape == (3, 8, 10)


def test_parquet_as_the_hub_has_it(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table(pixels).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    table(pixels[::-1]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    holds(f"hf-data:{tmp_path}", pixels)
    holds(f"hf-data:{tmp_path}(split=train)", pixels[::-1])
    assert open_hf_data(f"hf-data:{tmp_path}", "train").fetch([0])[0].numel() == 240


def test_what_save_to_disk_wrote(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    made = table(pixels)
    datasets.DatasetDict({"validation": made, "train": made}).save_to_disk(tmp_path / "two")
    made.select([5, 4, 3, 2, 1, 0]).save_to_disk(tmp_path / "one")
    holds(f"hf-data:{tmp_path / 'two'}", pixels)
    x, y = open_dataset(f"hf-data:{tmp_path / 'one'}").fetch([0, 5])
    np.testing.assert_array_equal((x[0].numpy() * 255).round(), pixels[5].transpose(2, 0, 1))
    assert y.tolist() == [2, 0]


def test_image_files(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    for place, image in enumerate(pixels[:3]):
        folder = tmp_path / "test" / NAMES[place]
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "a.png")
    data = open_dataset(f"hf-data:{tmp_path}")
    x, y = data.fetch([0, 1, 2])
    np.testing.assert_array_equal((x.numpy() * 255).round(), pixels[:3].transpose(0, 3, 1, 2))
    assert (y.tolist(), data.class_names) == ([0, 1, 2], tuple(NAMES))


def test_columns_are_named_where_several_could_be_meant(
    pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    fine = (datasets.ClassLabel(names=list("abcdef")), list(range(6)))
    table(pixels, fine=fine).save_to_disk(tmp_path)
    with pytest.raises(UsageError, match=r"got kind, fine\. Name it: .*\(label=COLUMN\)"):
        open_dataset(f"hf-data:{tmp_path}")
    holds(f"hf-data:{tmp_path}(label=kind)", pixels)
    assert open_dataset(f"hf-data:{tmp_path}(label=fine)").classes == 6
    with pytest.raises(UsageError, match="Unknown label column 'coarse'"):
        open_dataset(f"hf-data:{tmp_path}(label=coarse)")


@pytest.mark.parametrize(
    ("label", "split", "reason"),
    [
        ([-1] * 6, "test", "labels of this split are hidden"),
        ([0, 1, 2] * 2, "extra", "expected a split train"),
    ],
)
def test_what_cannot_be_used(
    pixels: NDArray[np.uint8], tmp_path: Path, label: list[int], split: str, reason: str
) -> None:
    plain = (datasets.Value("int64"), label)
    made = table(pixels, label=plain).remove_columns(["kind"])
    datasets.DatasetDict({split: made}).save_to_disk(tmp_path)
    with pytest.raises(UsageError, match=reason):
        open_dataset(f"hf-data:{tmp_path}", split="test" if split == "test" else "train")


def test_images_of_two_sizes_and_folders_without_data(
    pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = io.BytesIO()
    Image.fromarray(pixels[0, :5]).save(other, format="PNG")
    made = table(pixels)
    odd = datasets.Dataset.from_dict(
        {"img": [{"bytes": other.getvalue(), "path": None}], "kind": [0]}, features=made.features
    )
    datasets.concatenate_datasets([made, odd]).save_to_disk(tmp_path / "sizes")
    with pytest.raises(UsageError, match=r"image 6: expected 10 × 8 pixels as in .*, got 10 × 5"):
        open_dataset(f"hf-data:{tmp_path / 'sizes'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        open_dataset(f"hf-data:{tmp_path / 'empty'}")


def test_files_outside_the_folder_are_not_opened(pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "outside.png")
    made = datasets.Dataset.from_dict(
        {"img": [{"bytes": None, "path": str(tmp_path / "outside.png")}], "kind": [0]},
        features=table(pixels).features,
    )
    (tmp_path / "repo").mkdir()
    made.to_parquet(tmp_path / "repo" / "test.parquet")  # holds the path alone
    with pytest.raises(UsageError, match="or a file in"):
        open_dataset(f"hf-data:{tmp_path / 'repo'}")


def test_an_older_library_is_refused(
    pixels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(pixels).save_to_disk(tmp_path)
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(UsageError, match="can run code"):
        open_dataset(f"hf-data:{tmp_path}")
