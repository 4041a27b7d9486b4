"""Options that several commands share, and the kinds of value they take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.errors import UsageError

if TYPE_CHECKING:
    import torch


class Numbers(click.ParamType):
    """Comma-separated numbers; a fraction such as 1/4 is one."""

    name = "a,b,c"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Read `0.5` or `0.485,0.456,0.406`."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(_number(part) for part in str(value).split(","))
        except (ValueError, ZeroDivisionError):
            self.fail(f"expected comma-separated numbers such as 0.485,0.456,0.406, got {value!r}.")


class BatchSize(click.ParamType):
    """`auto`, or how many inputs go through the model at once."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Read `auto` as None, `64` as 64."""
        if value == "auto":
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"expected 'auto' or a positive whole number, got {value!r}.")
        return int(value)


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

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
    metavar="auto|cpu|cuda[:i]",
    help="Where the model runs.",
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; all by default."
)
seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="S",
    help="Every random draw follows from it.",
)
fresh = click.option("--fresh", is_flag=True, help="Start over instead of resuming.")
quiet = click.option("--quiet", is_flag=True, help="Only errors (and --json).")
as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else."
)


def choose_device(text: str) -> torch.device:
    """Return the device that `--device` names; `auto` takes a GPU if there is one.

    Raises:
        UsageError: for another word, or a GPU that cannot be used.
    """
    import torch

    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (":" in text and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:0, got {text!r}.")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UsageError(
            f"--device {text}: this PyTorch ({torch.__version__}) sees no CUDA device. Use "
            "--device cpu, or install a CUDA build of PyTorch beside a working driver "
            "(`robustkit doctor` shows what is there)."
        )
    if int(number or 0) >= count:
        raise UsageError(f"--device {text}: there are {count} CUDA devices, the last is {count - 1}.")
    return torch.device(text)


def use_threads(threads: int | None) -> None:
    """Limit the CPU threads of PyTorch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    return float(top) / float(bottom) if slash else float(text)
