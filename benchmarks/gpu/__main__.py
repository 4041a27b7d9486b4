"""Run the sections one after the other, and write down what each has found as soon as it ends.

    python -m benchmarks.gpu --out gpu                        # on a card: ten minutes at most
    python -m benchmarks.gpu --out gpu --device cpu --small   # the same in small, without one

Whatever ends a section, its rows so far are kept: `SECTION.jsonl` has them as they come, `gpu.json`
and `gpu.md` all that is known after each section.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gpu.sections import SECTIONS
from robustkit.core.lifeline import end_with_parent
from robustkit.record.provenance import device_name

_TAIL = 2000  # characters of what a section that failed has said
_LEAST = 5.0  # seconds that a section gets, even at the end


def begin(name: str, device: str, small: bool, out: Path, limit: float) -> dict[str, Any]:
    """Run one section in a process group of its own; return what came of it."""
    rows, log = out / f"{name}.jsonl", out / f"{name}.log"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--device", device]
    command += ["--out", str(out), *(["--small"] if small else [])]
    # So little work gains nothing by threads, which wait for each other where cores are busy.
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if small else {})}
    started = time.monotonic()
    with log.open("w") as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        finally:  # a section has workers of its own
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = rows.read_text() if rows.exists() else ""
    return {
        "section": name,
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "rows": [json.loads(line) for line in text.splitlines()],
        "said": "" if status == "done" else log.read_text()[-_TAIL:],
    }


def markdown(facts: dict[str, Any], sections: list[dict[str, Any]]) -> str:
    """Write what was found as tables."""
    lines = ["# On a card", "", ", ".join(f"{key}: {value}" for key, value in facts.items()), ""]
    for found in sections:
        lines += [f"## {found['section']}: {found['status']}, {found['seconds']} s", ""]
        heads = list(dict.fromkeys(key for row in found["rows"] for key in row))
        if heads:
            lines += [_line(heads), _line(["---"] * len(heads))]
            lines += [_line([row.get(head, "") for head in heads]) for row in found["rows"]]
            lines.append("")
        if found["said"]:
            lines += ["```", found["said"], "```", ""]
    return "\n".join(lines)


def _line(cells: list[Any]) -> str:
    shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(cell.replace('|', '/') for cell in shown)} |"


def _end_with_the_command(command: int) -> None:
    """Leave nothing running on a card that has been given back."""

    def gone() -> None:
        while os.getppid() == command:
            time.sleep(0.5)

    end_with_parent(command, gone)


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="A rehearsal: few points, a narrow network.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu"), show_default=True)
@click.option("--minutes", default=10.0, show_default=True, help="For all sections together.")
@click.option("--only", multiple=True, type=click.Choice(list(SECTIONS)), help="Repeatable.")
@click.option("--section", type=click.Choice(list(SECTIONS)), hidden=True)
def main(
    device: str, small: bool, out: Path, minutes: float, only: tuple[str, ...], section: str | None
) -> None:
    """Measure what runs on a card; exit code 1 if a section could not be finished."""
    out.mkdir(parents=True, exist_ok=True)
    if section is not None:
        _end_with_the_command(os.getppid())
        with (out / f"{section}.jsonl").open("a") as rows:
            for row in SECTIONS[section].run(device, small):
                rows.write(json.dumps(row) + "\n")
                rows.flush()
        return
    if device != "cpu" and not torch.cuda.is_available():
        raise click.UsageError("this PyTorch sees no card: rehearse with --device cpu --small.")
    facts = {
        "device": device_name(torch.device(device)),
        "PyTorch": str(torch.__version__),
        "CUDA": str(torch.version.cuda),
        "Python": platform.python_version(),
        "size": "small" if small else "full",
    }
    end, found = time.monotonic() + 60 * minutes, list[dict[str, Any]]()
    for name in only or SECTIONS:
        limit = min(SECTIONS[name].seconds, max(_LEAST, end - time.monotonic()))
        found.append(begin(name, device, small, out, limit))
        (out / "gpu.json").write_text(json.dumps({"facts": facts, "sections": found}, indent=2))
        (out / "gpu.md").write_text(markdown(facts, found))
        click.echo(f"{name}: {found[-1]['status']}, {found[-1]['seconds']} s")
    sys.exit(any(row["status"] != "done" for row in found))


if __name__ == "__main__":
    main()
