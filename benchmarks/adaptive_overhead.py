"""The suite `adaptive` beside that of another build: passes per point and verdicts, in one run.

    python -m benchmarks.adaptive_overhead --against ef0da67
    python -m benchmarks.adaptive_overhead --against ../other-checkout --n 50 --only crossmax
    python -m benchmarks.adaptive_overhead --against ef0da67 --report      # what is there
    python -m benchmarks.adaptive_overhead --against ef0da67 --this 6a795e2 --report

Models are those whose evaluation is dear: bundled ones with randomness, gates or hard rules, and
the ten wrappers of the gauntlet whose line-ups ask for most. This build is the commit that is
checked out, without uncommitted changes, or the one that --this names. Each build evaluates the
same points of each model in a process of its own. Every evaluation is a folder under --out, by
commit, and what has finished there is not run again. Passes are counted, so that a busy machine
does not matter.

Exits with 1, under --check, when a model costs more than a fifth of the passes or its verdict
differs by more than 0.5 points.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.options import POSITIVE, names_of
from robustkit.core.packages import DISTRIBUTION
from robustkit.errors import RobustkitError
from robustkit.record.git import head
from robustkit.record.record import Record, load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_ROOT, _RUNNER = Path(__file__).parents[1], "adaptive_overhead_runner.py"
MODELS = ("crossmax", "adaptive_smoothing", "mixednuts")
WRAPPERS = (
    "early_exit", "served_labels", "rounded_noise", "thermometer", "jpeg", "staircase",
    "rounded_logits", "quantized", "clipped_lead", "purified",
)  # fmt: skip
SHARE, POINTS = 0.2, 0.5  # most passes beside the other build's; most difference of the verdicts


@dataclass
class Pair:
    """One model under both builds; passes are per point, verdicts in points (0 to 100)."""

    model: str
    n: int
    before: float
    after: float
    backwards_before: float
    backwards_after: float
    robust_before: float
    robust_after: float
    lost: int
    """How many points the other build breaks and this one does not."""

    @property
    def ratio(self) -> float:
        """Forward passes of this build over those of the other."""
        return self.after / self.before

    @property
    def difference(self) -> float:
        """Robust accuracy of this build less that of the other, in points."""
        return self.robust_after - self.robust_before

    @property
    def reached(self) -> bool:
        """Whether both targets are."""
        return self.ratio <= SHARE and abs(self.difference) <= POINTS


def checkout(against: str, out: Path) -> tuple[str, Path]:
    """Return a build's name and its files: a folder, or a commit, unpacked under `out` once.

    Raises:
        click.UsageError: when it is neither.
    """
    if Path(against).is_dir():
        return Path(against).resolve().name, Path(against).resolve()
    asked = ["git", "-C", str(_ROOT), "rev-parse", "--short", f"{against}^{{commit}}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    if found.returncode:
        raise click.UsageError(
            f"expected a folder or a commit of {_ROOT}, got {against!r}. See git log for commits."
        )
    name = found.stdout.strip()
    folder = out / "builds" / name
    if not folder.exists():
        packed = subprocess.run(["git", "-C", str(_ROOT), "archive", name], capture_output=True,
                                check=True).stdout  # fmt: skip
        partial = folder.with_name(f"{name}.partial")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    return name, folder


def this_build() -> str:
    """Return the commit that is checked out here.

    Raises:
        click.ClickException: when there is none, or the files are not those of it.
    """
    commit = head(_ROOT)
    if commit is None or commit.dirty:
        raise click.ClickException(
            f"expected {_ROOT} to be a checkout without uncommitted changes, as results are kept "
            f"by commit, got {'changes' if commit else 'no answer of git'}. Commit them, or name "
            "a commit with --this."
        )
    return commit.hash


def importable(name: str, build: Path, out: Path) -> Path:
    """Return a folder to import a build from, whatever is installed.

    An installation maps `robustkit.attacks` and `robustkit.defenses` to its own packs: links inside
    the package come first. What a build asks of its distribution, name and entry points, is written
    beside it.
    """
    path = out / "imports" / name
    links = {f"robustkit/{entry.name}": entry for entry in (build / "robustkit").iterdir()}
    links |= {f"robustkit/{pack}": build / pack for pack in ("attacks", "defenses")}
    links |= {"benchmarks": build / "benchmarks", _RUNNER: _ROOT / "benchmarks" / _RUNNER}
    for place, target in links.items():
        link = path / place
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target.resolve(), target_is_directory=target.is_dir())
    project = tomllib.loads((build / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # One without entry points hides what is installed, which may have another name.
    _describe(path, DISTRIBUTION, "0", {})
    _describe(path, project["name"], project["version"], project.get("entry-points", {}))
    return path


def _describe(path: Path, name: str, version: str, entry_points: dict[str, dict[str, str]]) -> None:
    """Write the metadata of a distribution into a folder to import from."""
    info = path / f"{name.replace('-', '_')}.dist-info"
    info.mkdir(exist_ok=True)
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def evaluated(
    name: str, folder: Path, path: Path, asked: dict[str, object], *, go: bool
) -> Record | None:
    """Return the record of one model under one build; None: it is not there and not to be made."""
    record = folder / "record.json"
    if not record.exists():
        if not go:
            return None
        command = [sys.executable, _RUNNER, name, str(folder.resolve()), json.dumps(asked)]
        subprocess.run(command, check=True,
                       cwd=path, env={**os.environ, "PYTHONPATH": str(path.resolve())})  # fmt: skip
    return load(record)


def compare(name: str, before: Record, after: Record) -> Pair:
    """Put two records of a model side by side."""
    n = before.n
    lost = sum(after.outcomes[p] and not stands for p, stands in before.outcomes.items())
    return Pair(name, n, before.forwards / n, after.forwards / n, before.backwards / n,
                after.backwards / n, 100 * before.robust, 100 * after.robust, lost)  # fmt: skip


@click.command()
@click.option("--against", required=True, help="The other build: a commit, or a checkout.")
@click.option("--this", default="", help="This build, likewise; by default what is checked out.")
@click.option("--only", "names", default="", callback=names_of((*MODELS, *WRAPPERS)),
              help=f"Of {', '.join((*MODELS, *WRAPPERS))}, by commas.")  # fmt: skip
@click.option("--n", type=POSITIVE, default=100, show_default=True)
@click.option("--data", "data_name", default="bundled", show_default=True)
@click.option("--data-root", type=click.Path(path_type=Path), envvar="ROBUSTKIT_DATA")
@click.option("--threat", default="linf:0.1", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), show_default=True,
              default=Path("robustkit-runs/adaptive-overhead"))  # fmt: skip
@click.option("--report", "only_report", is_flag=True, help="Run nothing; show what is there.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
def main(
    against: str,
    this: str,
    names: list[str],
    n: int,
    data_name: str,
    data_root: Path | None,
    threat: str,
    seed: int,
    threads: int,
    out: Path,
    only_report: bool,
    as_json: bool,
    check: bool,
) -> None:
    """Count the passes of `adaptive` in this build and in another, on models that are dear."""
    root = None if data_root is None else str(data_root.resolve())
    asked: dict[str, object] = {"data": data_name, "root": root, "threat": threat, "n": n,
                                "seed": seed, "threads": threads}  # fmt: skip
    place, pairs = f"{data_name}-{threat.replace(':', '-')}-n{n}-seed{seed}", list[Pair]()
    other, own = checkout(against, out), checkout(this or this_build(), out)
    builds = [(build, importable(build, files, out)) for build, files in (other, own)]
    try:
        for name in names:
            found = [
                evaluated(name, out / place / build / name, path, asked, go=not only_report)
                for build, path in builds
            ]
            if found[0] is not None and found[1] is not None:
                pairs.append(compare(name, found[0], found[1]))
    except (RobustkitError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([{**asdict(pair), "ratio": pair.ratio} for pair in pairs]))
    else:
        Console(width=max(110, Console().width)).print(_table(pairs, other[0], own[0]))
    if check and not (len(pairs) == len(names) and all(pair.reached for pair in pairs)):
        sys.exit(1)


def _table(pairs: list[Pair], other: str, own: str) -> Table:
    table = Table(title=f"adaptive, passes per point: {other}, then {own} (this)")
    for heading in ("model", "n", "forward", "this", "ratio", "backward", "this", "robust", "this",
                    "difference", "lost"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for p in pairs:
        table.add_row(
            p.model, str(p.n), f"{p.before:,.0f}", f"{p.after:,.0f}", f"{p.ratio:.2f}",
            f"{p.backwards_before:,.0f}", f"{p.backwards_after:,.0f}", f"{p.robust_before:.1f}",
            f"{p.robust_after:.1f}", f"{p.difference:+.1f}", str(p.lost),
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
