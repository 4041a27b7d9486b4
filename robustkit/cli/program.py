"""The program `robustkit`: what every command shares, and how an error becomes an exit code.

0: done. 1: a gate failed. 2: the request cannot be carried out as it stands. 3: the run could not
finish. 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import difflib
import traceback
from typing import Any, NoReturn

import click
from click.exceptions import Abort, Exit

from robustkit.cli.console import say, stderr
from robustkit.core.imports import ended_by_code
from robustkit.core.packages import DISTRIBUTION
from robustkit.errors import NEAR, RobustkitError, unknown

_DEBUG = "robustkit.debug"
STOPPED = 130  # exit code after Ctrl-C
RESUMES = {
    "evaluate": "nothing is lost, and the same command resumes.",
    "check": "nothing is lost, and the same command resumes.",
    "baseline": "nothing is lost, and the same command resumes.",
    "diagnose": "with --out, the same command resumes.",
    "train": "the same command resumes from the last saved state, at most a minute ago.",
}


class CommandGroup(click.Group):
    """A group of commands that answer with an exit code and fail with one clear sentence."""

    def invoke(self, ctx: click.Context) -> NoReturn:
        """Run the command; leave with its exit code."""
        try:
            code = super().invoke(ctx) or 0
        except (Exit, Abort):
            raise
        except KeyboardInterrupt:
            code = _stopped(ctx)
        except SystemExit as error:  # click's own way out is `Exit`: this is a user's code
            code = fail(ended_by_code(error), debug=debugging(ctx))
        except Exception as error:
            code = fail(error, debug=debugging(ctx))
        ctx.exit(int(code))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def debugging(ctx: click.Context) -> bool:
    """Tell whether tracebacks were asked for."""
    return bool(ctx.meta.get(_DEBUG))


def fail(error: Exception, *, debug: bool, prefix: str = "") -> int:
    """Print one clear message about `error`, and return the exit code for it."""
    console = stderr()
    if debug:
        console.out("".join(traceback.format_exception(error)), end="", highlight=False)
    message, code = told(error)
    say(console, "error", prefix + message, "bold red")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        console.out(f"Try '{error.ctx.command_path} --help'.", highlight=False)
    return code


def told(error: Exception) -> tuple[str, int]:
    """Return one clear message about `error`, and its exit code."""
    if isinstance(error, RobustkitError):
        return str(error), error.exit_code
    if isinstance(error, click.NoSuchOption):  # dashes make any two options look alike
        near = {name.strip("-"): name for name in error.possibilities or ()}
        typed = error.option_name.strip("-")
        close = difflib.get_close_matches(typed, near, n=1, cutoff=NEAR)
        guesses = [near[name] for name in close]
        error = click.NoSuchOption(error.option_name, error.message, guesses, error.ctx)
    if isinstance(error, click.ClickException):
        return error.format_message(), 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}.", 3
    seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{seen}. robustkit did not expect this; --debug shows where it happened.", 3


def _stopped(ctx: click.Context) -> int:
    rest = RESUMES.get(ctx.invoked_subcommand or "", "nothing was changed.")
    say(stderr(), "stopped", rest, "bold yellow")
    return STOPPED


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True


def debug(command: Any) -> Any:
    """Add `--debug` to a command."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        envvar="ROBUSTKIT_DEBUG",
        callback=_remember,
        help="Show the traceback of an error.",
    )(command)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="robustkit")
@debug
def program() -> None:
    """Tell how robust an image classifier really is.

    Without arguments, `robustkit evaluate` attacks every bundled model on the bundled images and
    prints the leaderboard.
    """
