"""What is installed, and whether its files are still its own. Standard library only."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def installed(name: str) -> Distribution | None:
    """Return the metadata of an installed distribution."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def altered(dist: Distribution) -> list[str]:
    """Name the files of a distribution that are missing or differ from its own list of digests."""
    found = []
    for file in dist.files or ():
        if file.hash is None or file.hash.mode != "sha256":
            continue
        path = Path(str(dist.locate_file(file)))
        content = path.read_bytes() if path.is_file() else b""
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        if not path.is_file() or digest != file.hash.value:
            found.append(str(file))
    return found
