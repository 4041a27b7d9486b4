"""Files that promise more than they hold, or hold more than fits, are refused before any room."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustkit.data import npz
from robustkit.data.image_folder import open_folder
from robustkit.data.npz import Bomb
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError

Y = np.array([0, 1, 0, 1])


def npy(header: str, body: bytes = b"") -> bytes:
    """An npy file with a header of our own."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def with_x(folder: Path, x: bytes, kind: int = zipfile.ZIP_STORED) -> str:
    y = io.BytesIO()
    np.save(y, Y)
    with zipfile.ZipFile(folder / "set.npz", "w", kind) as archive:
        archive.writestr("x.npy", x)
        archive.writestr("y.npy", y.getvalue())
    return f"npz:{folder / 'set.npz'}"


def header(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


class TestNpz:
    @pytest.mark.parametrize(
        "shape",
        [
            "(-1, 4, 4)",
            "(4, -4, -4)",
            "(-4, 4, 4)",
            "(4, 4294967296, 4294967296)",
            f"(4, {2**63}, 2)",
            "(4000000000, 28, 28)",
            "(True, 4, 4)",
            "(4.0, 4, 4)",
            "'wide'",
        ],
    )
    @pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_shapes_that_cannot_be(self, tmp_path: Path, shape: str, kind: int) -> None:
        text = with_x(tmp_path, npy(header(shape), bytes(64)), kind)
        with pytest.raises(UsageError, match=r"set\.npz"):
            open_dataset(text)

    @pytest.mark.parametrize("descr", ["'|V0'", "'|S0'", "'<U0'", "[]", "'|V2'", "'nonsense'"])
    def test_types_that_take_no_bytes_or_are_none(self, tmp_path: Path, descr: str) -> None:
        text = with_x(tmp_path, npy(header("(4, 1000000000, 1000000000)", descr), bytes(64)))
        with pytest.raises(UsageError, match=r"set\.npz"):
            open_dataset(text)

    def test_a_header_of_many_brackets(self, tmp_path: Path) -> None:
        text = with_x(tmp_path, npy(header("(" * 300 + ")" * 300), bytes(64)))
        with pytest.raises(UsageError, match=r"set\.npz"):
            open_dataset(text)

    def test_a_member_that_unpacks_to_far_more_than_it_is(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "set.npz", x=np.zeros((4, 100, 100), dtype=np.uint8), y=Y)
        path = tmp_path / "set.npz"
        with pytest.raises(
            UsageError, match=r"\[x\]: expected images, got 40,128 bytes compressed"
        ):
            npz.rows(path, "x", bomb=Bomb(size=10_000, ratio=50))
        # Neither a small file nor one that is compressed as images are.
        assert len(npz.rows(path, "x", bomb=Bomb(size=50_000, ratio=50))) == 4
        assert len(npz.rows(path, "x", bomb=Bomb(size=10_000, ratio=100_000))) == 4

    def test_a_disk_that_is_too_small(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.savez_compressed(tmp_path / "set.npz", x=np.zeros((4, 9, 9), dtype=np.uint8), y=Y)
        usage = type("Usage", (), {"free": 100})
        monkeypatch.setattr("robustkit.data.npz.shutil.disk_usage", lambda _: usage)
        with pytest.raises(UsageError, match=r"there are 100 bytes; it takes 452 bytes.*TMPDIR"):
            open_dataset(f"npz:{tmp_path / 'set.npz'}")

    def test_labels_that_are_too_many_for_the_memory(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "set.npz", y=np.zeros(200_000, dtype=np.int64))
        with pytest.raises(UsageError, match=r"\[y\]: expected at most 1,000 bytes, got 1,600,128"):
            npz.array(tmp_path / "set.npz", "y", most=1000)

    def test_a_size_in_the_directory_that_is_a_lie(self, tmp_path: Path) -> None:
        """The archive says that a member of 64 bytes has 4 GB."""
        text = with_x(tmp_path, npy(header("(4, 4, 4)"), bytes(64)), zipfile.ZIP_DEFLATED)
        path = tmp_path / "set.npz"
        content = bytearray(path.read_bytes())
        place = content.index(b"PK\x01\x02")
        content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
        path.write_bytes(bytes(content))
        with pytest.raises(UsageError, match="that is how a file looks that fills the disk"):
            open_dataset(text)


def png(width: int, height: int) -> bytes:
    """A PNG whose header says so, with hardly a pixel in it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestImages:
    def folder(self, root: Path, content: bytes) -> Path:
        for name in ("a", "b"):
            (root / name).mkdir()
            (root / name / "0.png").write_bytes(content)
        return root

    def test_a_header_of_a_huge_image(self, tmp_path: Path) -> None:
        root = self.folder(tmp_path, png(10_000, 10_000))
        with pytest.raises(
            UsageError, match=r"a/0\.png: .* at most 67,108,864 pixels, got 10000 × "
        ):
            open_dataset(f"folder:{root}")

    def test_the_limit_is_an_argument(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        Image.new("L", (7, 5)).save(buffer, "PNG")
        root = self.folder(tmp_path, buffer.getvalue())
        assert open_folder("images", root, most=35).shape == (1, 5, 7)
        with pytest.raises(UsageError, match=r"a/0\.png: expected at most 34 pixels, got 7 × 5"):
            open_folder("images", root, most=34)

    def test_an_image_that_grows_after_it_was_opened(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        Image.new("L", (7, 5)).save(buffer, "PNG")
        data = open_folder("images", self.folder(tmp_path, buffer.getvalue()))
        (tmp_path / "b" / "0.png").write_bytes(png(8000, 8000))
        with pytest.raises(UsageError, match=r"b/0\.png: expected 7 × 5 pixels, got 8000 × 8000"):
            data.fetch([1])

    @pytest.mark.parametrize("cut", [8, 20, 33, 40, 50])
    def test_any_damage_is_a_sentence(self, tmp_path: Path, cut: int) -> None:
        root = self.folder(tmp_path, png(7, 5)[:cut])
        with pytest.raises(UsageError, match=r"0\.png"):
            open_dataset(f"folder:{root}").fetch([0])


def test_digests_read_large_images_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkit.data import dataset
    from robustkit.data.arrays import from_arrays

    data, sizes = from_arrays("toy", np.zeros((40, 10, 10), dtype=np.uint8), np.arange(40) % 2), []
    want = dataset.digest(data, range(40))
    fetch = dataset.ImageSet.fetch

    def counted(self: Any, indices: Any) -> Any:
        sizes.append(len(indices))
        return fetch(self, indices)

    monkeypatch.setattr(dataset.ImageSet, "fetch", counted)
    monkeypatch.setattr(dataset, "_CHUNK_BYTES", 2000)
    assert dataset.digest(data, range(40)) == want and set(sizes) == {5}
