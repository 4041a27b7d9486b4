"""What is installed, under which name, whether its files are still its own, and what pip is told.

Standard library only: this must answer where everything else is broken.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

DISTRIBUTION = "robustkit-eval"  # the package index has another project's package as `robustkit`
PROGRAM = "robustkit.cli:main"


def pip_command(*words: str) -> str:
    """Write a pip command as it can be typed in any shell: special characters in double quotes."""
    return " ".join(["pip", *(f'"{word}"' if set(word) & set("<>[] ") else word for word in words)])


def install_command(extra: str = "", *, upgrade: bool = False, checkout: bool = False) -> str:
    """Write the command that installs robustkit.

    Args:
        extra: the extra that is needed with it.
        upgrade: replace an older version.
        checkout: install the checkout in the working directory, not a release.
    """
    wanted = ["-e", "."] if checkout else [f"{DISTRIBUTION}[{extra}]" if extra else DISTRIBUTION]
    return pip_command("install", *["--upgrade"] * upgrade, *wanted)


def reinstall(*target: str) -> tuple[str, ...]:
    """Return pip's words for putting the files of one distribution back, and nothing else."""
    return ("install", "--force-reinstall", "--no-deps", *target)


def own_version() -> str:
    """Return robustkit's version.

    Raises:
        PackageNotFoundError: when it is not installed.
    """
    return importlib.metadata.version(DISTRIBUTION)


def not_installed() -> str:
    """Say why `own_version` fails, with the cure: a checkout, or an install under another name."""
    cure = install_command(checkout=True)
    other = recorded("robustkit")
    if other is None:
        return f"robustkit is not installed: this is a checkout. Run `{cure}` in it first."
    whose = "this package under its old name" if is_robustkit(other) else "of another project"
    return (
        f"{DISTRIBUTION} is not installed, and the distribution `robustkit` {other.version} that "
        f"is installed is {whose}. Run `{pip_command('uninstall', 'robustkit')}`, then `{cure}` in "
        "the checkout."
    )


def installed(name: str) -> Distribution | None:
    """Return the metadata of an installed distribution."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def recorded(name: str) -> Distribution | None:
    """Return an installed distribution that lists its files, as pip's do.

    `installed` also finds the `.egg-info` that a build leaves in the working directory.
    """
    found = (dist for dist in distributions(name=name) if dist.read_text("RECORD") is not None)
    return next(found, None)


def is_robustkit(dist: Distribution) -> bool:
    """Tell whether a distribution brings this program, under whichever name it is installed."""
    return any(point.value == PROGRAM for point in dist.entry_points)


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
