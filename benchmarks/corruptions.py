"""Our corruptions beside those of the package imagecorruptions, at its own constants.

Accuracy: the bundled images, set in a frame of 32 x 32, are corrupted by both, cut out again, and
classified by one model. What is random is drawn several times; the error beside a difference is
that of the mean over points of each point's difference. Pixels: photographs of scikit-image, cut to
224 x 224: the mean change of a pixel by each. `pip install imagecorruptions-imaug` first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from robustkit import registry
from robustkit.data.open import open_dataset
from robustkit.models.load import load_model

FRAME, SIZE = 2, 224  # pixels
FIXED = ("brightness", "contrast", "defocus_blur", "gaussian_blur", "jpeg_compression",
         "pixelate", "saturate", "zoom_blur")  # fmt: skip
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
Bytes = NDArray[np.uint8]


def ours(image: Bytes, name: str, severity: int, key: int) -> Bytes:
    """Corrupt [h, w, 3] with the constants of ImageNet-C, whatever its size."""
    module = import_module("robustkit.attacks._corruptions")
    x = image.transpose(2, 0, 1).astype(np.float64) / 255
    done: Bytes = module.corrupt(x, name, severity, key, large=True).transpose(1, 2, 0)
    return done


def theirs(image: Bytes, name: str, severity: int, key: int) -> Bytes:
    """Corrupt [h, w, 3] by imagecorruptions."""
    module: Any = import_module("imagecorruptions")
    seed = zlib.crc32(f"{name}/{severity}/{key}".encode())
    np.random.seed(seed)
    given = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    done: Bytes = module.corrupt(image, severity, name, **given)
    return done


def rights(model: Any, images: list[Bytes], y: torch.Tensor) -> NDArray[np.float64]:
    """Say which of the images, cut out of their frame, are classified rightly."""
    cut = [image[FRAME:-FRAME, FRAME:-FRAME, :1].transpose(2, 0, 1) for image in images]
    with torch.no_grad():
        found = model(torch.from_numpy(np.stack(cut)).float() / 255).argmax(1)
    right: NDArray[np.float64] = (found == y).double().numpy()
    return right


def accuracies(model: str, n: int, draws: int) -> Iterator[tuple[str, int, float, float, float]]:
    """Yield corruption, severity, both accuracies and the error of their difference."""
    data = open_dataset("bundled")
    x, y = data.fetch(range(n))
    net = load_model(model, data=data).model.eval()
    pad = ((FRAME, FRAME), (FRAME, FRAME))
    framed = [np.pad((z[0] * 255).round().astype(np.uint8), pad) for z in x.numpy()]
    colour = [np.repeat(image[..., None], 3, axis=2) for image in framed]
    for name in import_module("robustkit.attacks._corruptions").CORRUPTIONS:
        for severity in range(1, 6):
            shares = []
            for corrupt in (ours, theirs):
                keys = [k * n for k in range(1 if name in FIXED else draws)]
                runs = [rights(net, [corrupt(image, name, severity, start + place)
                                     for place, image in enumerate(colour)], y)
                        for start in keys]  # fmt: skip
                shares.append(np.mean(runs, axis=0))
            apart = shares[0] - shares[1]
            yield name, severity, *(float(s.mean()) for s in shares), float(apart.std() / n**0.5)


def changes(draws: int) -> Iterator[tuple[str, int, float, float]]:
    """Yield corruption, severity, and by how much each moves a pixel of the photographs."""
    from PIL import Image

    folder = Path(str(import_module("skimage.data").__file__)).parent
    cuts = []
    for name in PHOTOGRAPHS:
        whole = np.asarray(Image.open(folder / name).convert("RGB"))
        top, left = (whole.shape[0] - SIZE) // 2, (whole.shape[1] - SIZE) // 2
        cuts.append(np.ascontiguousarray(whole[top : top + SIZE, left : left + SIZE]))
    for name in import_module("robustkit.attacks._corruptions").CORRUPTIONS:
        for severity in range(1, 6):
            found = []
            for corrupt in (ours, theirs):
                moved = [np.abs(corrupt(cut, name, severity, 10 * key + place) / 255 - cut / 255)
                         for key in range(1 if name in FIXED else draws)
                         for place, cut in enumerate(cuts)]  # fmt: skip
                found.append(float(np.mean(moved)))
            yield name, severity, *found


@click.command()
@click.option("--model", default="undefended", show_default=True)
@click.option("--n", default=1000, show_default=True, help="Points.")
@click.option("--draws", default=3, show_default=True, help="Of what is random.")
@click.option("--pixels", is_flag=True, help="Pixels of photographs, in place of accuracies.")
def main(model: str, n: int, draws: int, *, pixels: bool) -> None:
    """Print ours and theirs, one line for each corruption."""
    torch.set_num_threads(1)
    registry.load_packs()
    what = "mean change of a pixel" if pixels else f"accuracy of {model} in percent, {n} points"
    click.echo(f"{what}: ours / imagecorruptions{'' if pixels else ' (error of the difference)'}\n")
    click.echo("| corruption | severity 1 | 2 | 3 | 4 | 5 |\n| --- | --- | --- | --- | --- | --- |")
    cells = _pixels(draws) if pixels else _accuracies(model, n, draws)
    for name, row in groupby(cells, key=lambda cell: cell[0]):
        click.echo(f"| {name} | {' | '.join(text for _, text in row)} |")


def _pixels(draws: int) -> Iterator[tuple[str, str]]:
    for name, _, mine, other in changes(draws):
        yield name, f"{mine:.4f} / {other:.4f}"


def _accuracies(model: str, n: int, draws: int) -> Iterator[tuple[str, str]]:
    apart = []
    for name, _, mine, other, error in accuracies(model, n, draws):
        apart.append((mine - other, error))
        yield name, f"{100 * mine:.1f} / {100 * other:.1f}{f' ({100 * error:.1f})' * (error > 0)}"
    far = sum(abs(gap) > 2 * error and abs(gap) > 0.005 for gap, error in apart)
    mean = 100 * float(np.mean([gap for gap, _ in apart]))
    yield (
        "all",
        (
            f"mean difference {mean:+.2f}; {far} of {len(apart)} cells are over 0.5 points and two "
            "errors apart"
        ),
    )


if __name__ == "__main__":
    main()
