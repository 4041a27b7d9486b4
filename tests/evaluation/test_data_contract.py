"""One answer for one data set: however it is stored, and only while it stays what it was."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.data.dataset import ImageSet
from robustkit.errors import RobustkitError, UsageError
from robustkit.evaluation.evaluate import evaluate
from robustkit.evaluation.watcher import Watcher
from robustkit.record.record import Record

LINE = ("pgd(steps=4)", "square(queries=12)")
THREAT = Threat("linf", 0.13)
N, H, W = 24, 6, 5
Y = np.arange(N) % 3


def pixels() -> NDArray[np.uint8]:
    """Bytes [n, h, w, c] of which every one is even: float16 and bfloat16 know x / 256 of them."""
    base = np.random.default_rng(3).integers(100, 130, (3, H, W, 3))
    noise = np.random.default_rng(4).integers(-90, 90, (N, H, W, 3))
    return ((base[Y] + noise) // 2 * 2).astype(np.uint8)


class Strict(nn.Module):
    """A linear model that takes nothing but contiguous float32, as one that uses `view` does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * H * W, 3)
        x = torch.from_numpy(pixels().transpose(0, 3, 1, 2) / 255).float().flatten(1)
        means = torch.stack([x[k == Y].mean(0) for k in range(3)])
        with torch.no_grad():
            self.linear.weight.copy_(2 * means)
            self.linear.bias.copy_(-means.square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        logits: Tensor = self.linear(x.view(len(x), -1))
        return logits


def run(data: Any, folder: Path, **options: Any) -> Record:
    return evaluate(
        Strict().eval(), data=data, threat=THREAT, attacks=LINE, device="cpu", folder=folder,
        **options,
    )  # fmt: skip


def told(record: Record) -> tuple[Any, ...]:
    return record.points, record.data.digest


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The verdicts on contiguous float32 [n, c, h, w]."""
    x = np.ascontiguousarray(pixels().transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    record = run((x, Y), tmp_path_factory.mktemp("plain"))
    assert 0 < record.robust < record.clean
    return record


def forms() -> dict[str, NDArray[Any]]:
    """Bytes, as they may lie in memory."""
    last = pixels()
    first = last.transpose(0, 3, 1, 2)
    wide = np.zeros((2 * N, 3, H, W), dtype=np.uint8)
    wide[::2] = first
    return {
        "channels last": last,
        "a view of channels last": first,
        "sliced": wide[::2],
        "reversed": np.ascontiguousarray(first[::-1])[::-1],
        "mirrored": np.ascontiguousarray(last[:, :, ::-1])[:, :, ::-1],
        "fortran": np.asfortranarray(first),
    }


TYPES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "uint16, big-endian": lambda x: x.astype(">u2"),
    "float32": lambda x: x.astype(np.float32) / np.float32(255),
    "float32, big-endian": lambda x: (x.astype(np.float32) / np.float32(255)).astype(">f4"),
    "float64": lambda x: (x.astype(np.float32) / np.float32(255)).astype(np.float64),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("form", forms())
def test_arrays(plain: Record, tmp_path: Path, form: str, kind: str) -> None:
    laid = forms()[form]
    x = TYPES[kind](laid)
    assert told(run((x, Y), tmp_path)) == told(plain)


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files(plain: Record, tmp_path: Path, form: str, save: Callable[..., None]) -> None:
    save(tmp_path / "set.npz", x=forms()[form], y=Y)
    record = run(f"npz:{tmp_path / 'set.npz'}", tmp_path / "out")
    assert told(record) == told(plain)


@pytest.mark.parametrize("form", forms())
def test_tensors(plain: Record, tmp_path: Path, form: str) -> None:
    laid = forms()[form]
    x = torch.from_numpy(laid.copy(order="K"))
    for number, made in enumerate((x, x.float() / 255)):
        assert told(run((made, torch.from_numpy(Y)), tmp_path / str(number))) == told(plain)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_floats_are_read_exactly(tmp_path: Path, kind: torch.dtype) -> None:
    x = torch.from_numpy(pixels().transpose(0, 3, 1, 2).copy()).float() / 256
    short = run((x.to(kind), torch.from_numpy(Y)), tmp_path / "short")
    assert torch.equal(x.to(kind).float(), x)  # seven bits are known to both
    assert told(short) == told(run((x, Y), tmp_path / "long"))


def test_image_folders_and_functions(plain: Record, tmp_path: Path) -> None:
    order = np.argsort(Y, kind="stable")
    for k in range(3):
        (tmp_path / "images" / str(k)).mkdir(parents=True)
        for i in np.flatnonzero(k == Y):
            Image.fromarray(pixels()[i]).save(tmp_path / "images" / str(k) / f"{i:02}.png")
    found = run(f"folder:{tmp_path / 'images'}", tmp_path / "folder")
    sorted_ = run((pixels()[order], Y[order]), tmp_path / "sorted")
    assert told(found) == told(sorted_)
    code = tmp_path / "mine.py"
    np.save(tmp_path / "x.npy", pixels())
    code.write_text(
        textwrap.dedent(f"""
        import numpy as np
        def load():
            return np.load({str(tmp_path / "x.npy")!r}).transpose(0, 3, 1, 2), np.arange({N}) % 3
        """)
    )
    assert told(run(f"{code}:load", tmp_path / "function")) == told(plain)


def test_one_image_broadcast_over_all_points(tmp_path: Path) -> None:
    one = pixels()[:1].transpose(0, 3, 1, 2)
    thin = run((np.broadcast_to(one, (N, 3, H, W)), Y), tmp_path / "thin")
    whole = run((np.repeat(one, N, axis=0), Y), tmp_path / "whole")
    assert told(thin) == told(whole)
    expanded = torch.from_numpy(one.copy()).expand(N, -1, -1, -1)
    assert told(run((expanded, torch.from_numpy(Y)), tmp_path / "expanded")) == told(whole)


def test_bundled_images_in_both_layouts(bundled: Any, tmp_path: Path) -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(784, 10)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.linear(x.view(len(x), 784))
            return logits

    torch.manual_seed(0)
    model = Viewed().eval()
    x, y = bundled.fetch(range(20))
    last = ImageSet("last", "last", (1, 28, 28), 10, y.numpy(), lambda i: x.numpy()[i])
    digests = set()
    for name, data in (("bundled", bundled), ("last", last)):
        record = evaluate(
            model, data=data, threat="linf:0.01", attacks=["pgd(steps=2)"], points=range(20),
            device="cpu", folder=tmp_path / name,
        )  # fmt: skip
        digests.add((record.data.digest, tuple(record.points.status)))
    assert len(digests) == 1


class Vandal(Watcher):
    """Does something to the data in the middle of the run: once an attack has begun."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.done = act, False

    def stage(self, name: str, tasks: int) -> None:
        if name.startswith("square") and not self.done:
            self.done = True
            self.act()


class TestDataThatChanges:
    def file(self, folder: Path) -> Path:
        x = np.ascontiguousarray(pixels().transpose(0, 3, 1, 2) / np.float32(255))
        np.savez(folder / "set.npz", x=x, y=Y)
        return folder / "set.npz"

    def test_a_pixel_that_changes(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        whole = path.read_bytes()
        want = run(f"npz:{path}", tmp_path / "undisturbed")

        def act() -> None:
            # The first pixels of every point: whichever is read next has changed.
            place = whole.index(np.load(path)["x"][0].tobytes())
            with path.open("r+b") as file:
                for point in range(N):
                    file.seek(place + point * 4 * 3 * H * W)
                    file.write(np.float32(0.125).tobytes())

        with pytest.raises(RobustkitError, match=r"set\.npz: the data changed") as caught:
            run(f"npz:{path}", tmp_path / "out", watcher=Vandal(act))
        told_ = str(caught.value)
        assert caught.value.exit_code == 3
        assert want.data.digest in told_ and "now it is" in told_
        assert not (tmp_path / "out" / "record.json").exists()
        assert (tmp_path / "out" / "ledger.sqlite").exists()
        with pytest.raises(UsageError, match="another configuration: data was"):
            run(f"npz:{path}", tmp_path / "out")
        path.write_bytes(whole)  # put back, the run goes on where it was
        assert told(run(f"npz:{path}", tmp_path / "out")) == told(want)

    def test_a_file_that_is_cut_short(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        with pytest.raises(RobustkitError, match=r"set\.npz.*cannot be read any more"):
            run(f"npz:{path}", tmp_path / "out", watcher=Vandal(lambda: os.truncate(path, 900)))
        assert not (tmp_path / "out" / "record.json").exists()

    def test_what_changes_after_the_last_attack(self, tmp_path: Path) -> None:
        x = pixels().transpose(0, 3, 1, 2).copy()

        def act() -> None:
            x[:, 0, 0, 0] = 7

        with pytest.raises(RobustkitError, match="the data changed while the run went on"):
            run((x, Y), tmp_path / "out", watcher=_Last(act))
        assert not (tmp_path / "out" / "record.json").exists()

    def test_a_model_that_writes_into_its_input(self, tmp_path: Path) -> None:
        x = np.ascontiguousarray(pixels().transpose(0, 3, 1, 2)) / np.float32(255)
        before = x.copy()
        strict = Strict().eval()

        def model(z: Tensor) -> Tensor:
            logits: Tensor = strict(z.clone())
            with torch.no_grad():
                z.zero_()
            return logits

        with contextlib.suppress(RobustkitError):  # what becomes of such a model: elsewhere
            evaluate(model, data=(x, Y), threat=THREAT, attacks=["square(queries=4)"],
                     device="cpu", folder=tmp_path / "out")  # fmt: skip
        assert np.array_equal(x, before)


class _Last(Watcher):
    """Acts when the last attack says for the last time how far it is."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.tasks, self.name = act, 0, ""

    def stage(self, name: str, tasks: int) -> None:
        self.tasks, self.name = tasks, name

    def advance(self, done: int, robust: int, points: int) -> None:
        if self.name.startswith("square") and done == self.tasks:
            self.act()
