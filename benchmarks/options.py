"""Options that several benchmarks have, and the lists of names that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch

from robustkit.errors import UsageError

POSITIVE = click.IntRange(min=1)  # numbers of points, channels, epochs


def listed(text: str, separator: str = ",") -> list[str]:
    """Return the names in `text`, without blanks and empty ones."""
    return [part.strip() for part in text.split(separator) if part.strip()]


def some_of(known: Sequence[str], text: str, separator: str = ",") -> list[str]:
    """Return the names in `text` in the order of the known ones; all where it has none.

    Args:
        separator: of the names in `text`; another than "," where names contain commas.

    Raises:
        UsageError: for a name that is not known.
    """
    asked = listed(text, separator)
    if strangers := [name for name in asked if name not in known]:
        names = f"{separator} ".join(known)
        raise UsageError(
            f"expected some of {names} (separated by {separator!r}), got {strangers[0]!r}."
        )
    return [name for name in known if name in asked or not asked]


def names_of(
    known: Sequence[str], separator: str = ","
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return the callback of an option that takes a list of names; see `some_of`."""

    def read(context: click.Context, option: click.Parameter, text: str) -> list[str]:
        try:
            return some_of(known, text, separator)
        except UsageError as error:
            raise click.BadParameter(str(error)) from None

    return read


def nothing_run(what: str, out: Path) -> click.UsageError:
    """Say that there is nothing to report: `what` was to lie under `out`."""
    return click.UsageError(
        f"expected {what} under {out}, got none. Run the same command without --report first, or "
        "name the options that it was run with."
    )


def _count(context: click.Context, option: click.Parameter, text: str) -> int | None:
    """Read a number of points from 0 on, or `all`, which is None."""
    if text != "all" and not text.isdecimal():
        raise click.BadParameter(f"expected a number of points or all, got {text!r}.")
    return None if text == "all" else int(text)


@dataclass(frozen=True)
class Asked:
    """What a benchmark of masked gradients is asked for; see `masked_gradients`."""

    n: int
    controls: int | None
    only: str
    columns: str
    only_report: bool
    data_name: str
    data_root: Path | None
    threat: str
    seed: int
    out: Path
    as_json: bool
    as_markdown: bool
    check: bool


def masked_gradients(
    *, n: int, data: str, out: str, rows: str, keeper: str, columns: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that the benchmarks of masked gradients share; the function gets an `Asked`.

    Args:
        n, data, out: defaults; `out` a folder in robustkit-runs.
        rows: what the rows of the table are.
        keeper: who leaves the points of which some are controls.
        columns: all that there are.
    """
    controls = f"How many points that {keeper} are attacked too, or all."
    folder, place = click.Path(path_type=Path), Path("robustkit-runs") / out
    options = [
        click.option("--n", type=POSITIVE, default=n, show_default=True, help="Points of data."),
        click.option("--controls", callback=_count, default="8", show_default=True, help=controls),
        click.option("--only", default="", help=f"{rows}, separated by commas; by default all."),
        click.option("--columns", default="", help=f"Of {','.join(columns)}; by default all."),
        click.option(
            "--report", "only_report", is_flag=True, help="Run nothing; show what is there."
        ),
        click.option("--data", "data_name", default=data, show_default=True),
        click.option("--data-root", type=folder, envvar="ROBUSTKIT_DATA"),
        click.option("--threat", default="linf:0.1", show_default=True),
        click.option("--seed", default=0, show_default=True),
        click.option("--threads", type=int, default=None),
        click.option("--out", type=folder, default=place, show_default=True),
        click.option("--json", "as_json", is_flag=True),
        click.option("--markdown", "as_markdown", is_flag=True),
        click.option("--check", is_flag=True, help="Exit with 1 when a target is missed."),
    ]

    def added(main: Callable[..., None]) -> Callable[..., None]:
        @wraps(main)
        def called(threads: int | None, **given: Any) -> None:
            if threads:
                torch.set_num_threads(threads)
            shared = {field.name: given.pop(field.name) for field in fields(Asked)}
            main(Asked(**shared), **given)

        with_options: Callable[..., None] = called
        for option in reversed(options):
            with_options = option(with_options)
        return with_options

    return added
