"""`robustkit init`: a first configuration."""

from __future__ import annotations

from pathlib import Path

import click

from robustkit.cli.console import stdout
from robustkit.cli.program import debug


@click.command("init", short_help="Write a first configuration for `robustkit check`.")
@click.option("--model", default="pgd_at", show_default=True, metavar="MODEL")
@click.option("--data", default="bundled", show_default=True, metavar="NAME|npz:PATH|...")
@click.option("--threat", metavar="linf:8/255", help="By default the usual one of the data.")
@click.option("--suite", metavar="NAME", help="By default quick; what the threat model needs.")
@click.option("--pyproject", is_flag=True, help="Append [tool.robustkit] to pyproject.toml.")
@debug
def command(model: str, data: str, threat: str | None, suite: str | None, pyproject: bool) -> None:
    """Write robustkit.toml, or a table of pyproject.toml; never over an existing one."""
    from robustkit.cli.evaluate.threats import usual_threat
    from robustkit.core import files
    from robustkit.errors import UsageError
    from robustkit.gate import config
    from robustkit.registry import read_threat, suites
    from robustkit.search.suites import default_suite

    threat = threat or usual_threat(data) or "linf:8/255"
    suite = suite or default_suite(read_threat(threat))
    suites.build(suite)
    path = Path("pyproject.toml" if pyproject else "robustkit.toml")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if (before and not pyproject) or config.has_table(before):
        raise UsageError(f"{path} has a configuration already: change it, or remove it first.")
    there = config.find(Path.cwd())
    if there is not None and there.parent == Path.cwd() and there.name != path.name:
        other = f"would keep {path}" if pyproject else f"{path} would put"
        raise UsageError(
            f"{there.name} has a configuration already, which {other} out of force: change it, or "
            "remove it first."
        )
    text = config.first(model=model, data=data, threat=threat, suite=suite, pyproject=pyproject)
    files.write((before + text).encode(), path)
    config.load(path)
    stdout().out(
        f"{path} is written. Next: robustkit baseline update --reason 'first baseline', "
        "then robustkit check",
        highlight=False,
    )
