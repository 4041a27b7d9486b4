"""What `robustkit verify` does: answer one instance or a list, in the competition's form."""

from __future__ import annotations

import time
from pathlib import Path

from robustkit.certify.vnnlib.instance import SECONDS, Instance, answer, instances, witness
from robustkit.cli.console import result, say, stderr
from robustkit.core import files
from robustkit.errors import RobustkitError
from robustkit.models.onnx_operators import KNOWN

_CAPABILITIES = {
    "operators": "\n".join(sorted(KNOWN)),
    "opsets": "7\n25",
    "versions": "1.0\n2.0",
    "assignments": "false",
    "networks": "SNET",
    "hidden": "NHNET",
    "ends": "SIO",
    "arithmetic": "BND\nOUTC\nLIN",
}


def capabilities(asked: str) -> str:
    """Return the answer to one question of `robustkit supports`."""
    return _CAPABILITIES[asked]


def verify_one(
    network: Path, text: Path, seconds: float | None, out: Path | None, seed: int, *, quiet: bool
) -> int:
    """Answer one instance; where it cannot be answered `out` says so too.

    Raises:
        RobustkitError: when a file cannot be used.
    """
    try:
        query, found = answer(Instance(network, text, seconds or SECONDS), seed=seed)
    except RobustkitError:
        if out is not None:
            files.write(b"error\n", out)
        raise
    told: str = found.verdict
    if found.verdict == "sat":
        told = f"{told}\n{witness(query, found)}"
    if out is not None:
        files.write(f"{told}\n".encode(), out)
    if str(out) != files.STDOUT:
        result(told)
    if found.reason and not quiet:
        say(stderr(), "note", f"{found.verdict}: {found.reason}.", "yellow")
    return 0


def verify_all(
    path: Path, seconds: float | None, out: Path | None, seed: int, *, quiet: bool
) -> int:
    """Answer every instance of a folder; one line of CSV for each."""
    lines, failed = [], False
    for one in instances(path):
        begun = time.monotonic()
        try:
            _, found = answer(one._replace(seconds=seconds or one.seconds), seed=seed)
            verdict, reason = str(found.verdict), found.reason
        except RobustkitError as error:
            verdict, reason, failed = "error", str(error), True
        took = time.monotonic() - begun
        lines.append(f"{one.network.name},{one.property.name},{verdict},{took:.3f}")
        if str(out) != files.STDOUT:
            result(lines[-1])
        if reason and not quiet:
            say(stderr(), "note", f"{one.property.name}: {verdict}: {reason}", "yellow")
    if out is not None:
        files.write(("\n".join(lines) + "\n").encode(), out)
    return 3 if failed else 0
