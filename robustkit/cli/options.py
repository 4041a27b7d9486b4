"""Options that several commands share, and the kinds of value they take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from robustkit.core import arguments
from robustkit.core.files import STDOUT, refuse_unwritable, refuse_unwritable_folder
from robustkit.core.text import number, seconds
from robustkit.errors import UsageError


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Read `0.5` or `0.49,0.48,0.45`; a fraction such as 1/4 is a number."""
    try:
        return None if value is None else tuple(number(part) for part in value.split(","))
    except ValueError:
        given = getattr(param, "metavar", None) or ""
        example = given if any(letter.isdigit() for letter in given) else "0.49,0.48,0.45"
        raise click.BadParameter(
            f"expected comma-separated numbers such as {example}, got {value!r}.", ctx, param
        ) from None


def ends(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, float]:
    """Read `-1,1` as lower and upper end of a box."""
    found = numbers(ctx, param, value)
    if len(found) != 2 or not -math.inf < found[0] < found[1] < math.inf:
        raise click.BadParameter(
            f"expected a lower end and a larger upper one, such as -1,1, got {value!r}.", ctx, param
        )
    return found[0], found[1]


def no_option(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse an option where a path is expected: `--published --out FILE` lacks its value."""
    for path in value:
        if str(path).startswith("--"):
            raise click.BadParameter(f"expected a path, got the option {path}.", ctx, param)
    return value


def batch_size(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Read `auto` as None, `64` as 64."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(
            f"expected 'auto' or a positive whole number, got {value!r}.", ctx, param
        )
    return int(value)


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read `90`, `30s`, `5m` or `1h` as seconds."""
    try:
        return None if value is None else seconds(value)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from None


class Certificate(click.Choice[str]):
    """One of the certificates for any model, or another name, that models may declare."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take any name: whether a model knows it shows when it is loaded."""
        if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", str(value)):
            return str(value)
        return str(super().convert(value, param, ctx))


class Written(click.Path):
    """A place to write to, which is refused at once where nothing can be written.

    Args:
        check: one of `robustkit.core.files`.
    """

    def __init__(self, check: Callable[[Path], None], **kind: Any) -> None:
        super().__init__(path_type=Path, **kind)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the path, and see whether it can be written."""
        path: Any = super().convert(value, param, ctx)
        if ctx is None or not ctx.resilient_parsing:
            try:
                self._check(path)
            except UsageError as error:
                self.fail(str(error), param, ctx)
        return path


SEED = click.IntRange(0, arguments.SEEDS - 1)
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
OUTPUT = Written(refuse_unwritable, dir_okay=False, allow_dash=True)
OUTPUT_FOLDER = Written(refuse_unwritable_folder, file_okay=False)

data_root = click.option(
    "--data-root",
    type=FOLDER,
    envvar="ROBUSTKIT_DATA",
    show_envvar=True,
    help="Folder that holds data sets, or that they are downloaded to.",
)
device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i][,...]",
    help="Where the model runs; several (cuda:0,cuda:1): a process on each.",
)
threads = click.option(
    "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads; all by default."
)
mean = click.option("--mean", callback=numbers, metavar="A,B,C", help="As for evaluate.")
std = click.option("--std", callback=numbers, metavar="A,B,C", help="As for evaluate.")
seed = click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    metavar="S",
    help="Every random draw follows from it.",
)
fresh = click.option("--fresh", is_flag=True, help="Start over instead of resuming.")
trust_code = click.option(
    "--trust-code", "--trust", "trust_code", multiple=True, type=FILE, metavar="FILE|TYPE",
    help="Let the code in FILE run, such as that of export:FILE, or let sklearn:FILE make objects "
    "of TYPE; repeatable.",
)  # fmt: skip
max_time = click.option(
    "--max-time", callback=duration, metavar="30s|5m|1h",
    help="Stop then; what is finished is a random sample of the points.",
)  # fmt: skip
max_forwards = click.option(
    "--max-forwards", type=click.IntRange(min=1), metavar="N",
    help="Stop after the part of 16 to 128 points in which so many forward passes are reached, "
    "earlier lives of the run included.",
)  # fmt: skip
criterion = click.option(
    "--criterion", metavar="targeted:3|groups:0,2|1,3|reject:10|top5|loss>2|error>0.5",
    help="What breaks a point; by default any decision but its label (untargeted).",
)  # fmt: skip
box = click.option(
    "--box", callback=ends, default="0,1", show_default=True, metavar="LOW,HIGH",
    help="The range of the data, where they are floats in another than [0, 1], such as -1,1.",
)  # fmt: skip
quiet = click.option("--quiet", is_flag=True, help="Only errors (and --json).")
published = click.option(
    "--published",
    multiple=True,
    type=click.Path(path_type=Path),
    callback=no_option,
    metavar="FILE|DIR",
    help="Results that others published, beside the own: model_info of RobustBench.",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else."
)


def recorded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the model and the points of a record are now."""
    named = click.option(
        "--model", metavar="MODEL", help="As for evaluate; by default the one named there."
    )
    data = click.option("--data", metavar="NAME|npz:PATH|...", help="Where its points are now.")
    weights = click.option("--weights", type=FILE, metavar="FILE", help="State dict of the model.")
    for option in (std, mean, weights, data_root, data, named):
        command = option(command)
    return command


def takes_stdout(places: Iterable[Path | None], *, as_json: bool = False) -> bool:
    """Tell whether a report goes to standard output, which then holds nothing else.

    Raises:
        click.UsageError: when more than one thing would.
    """
    many = sum(str(place) == STDOUT for place in places) + as_json
    if many > 1:
        raise click.UsageError("only one thing can go to standard output (-, --json).")
    return many - as_json > 0


def use_threads(threads: int | None) -> None:
    """Limit the CPU threads of PyTorch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
