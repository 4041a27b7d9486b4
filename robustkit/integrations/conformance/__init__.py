"""What every registered thing must do, as checks that can be run on anyone's pack.

`robustkit validate` runs them on a third party's; the tests run them on what comes in the box.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from robustkit import registry
from robustkit.core.imports import USER, failure, load_file
from robustkit.errors import UsageError
from robustkit.integrations.conformance import (
    attacks,
    criteria,
    datasets_and_suites,
    defenses,
    losses,
    threats,
)
from robustkit.integrations.conformance.fixtures import Unmet, documented
from robustkit.registry import Entry

__all__ = ["CheckResult", "find", "validate"]

_KINDS = {
    "attack": registry.attacks,
    "attack library": registry.libraries,
    "defense": registry.defenses,
    "loss": registry.losses,
    "dataset": registry.datasets,
    "suite": registry.suites,
    "threat model": registry.threats,
    "criterion": registry.criteria,
}
_CHECKS: dict[str, Callable[[Entry], Iterator[tuple[str, Callable[[], None]]]]] = {
    "attack": attacks.checks,
    "attack library": datasets_and_suites.library_checks,
    "defense": defenses.checks,
    "loss": losses.checks,
    "dataset": datasets_and_suites.dataset_checks,
    "suite": datasets_and_suites.suite_checks,
    "threat model": threats.checks,
    "criterion": criteria.checks,
}


class CheckResult(NamedTuple):
    """What came of one check: `detail` is empty where it passed."""

    kind: str
    name: str
    check: str
    passed: bool
    detail: str = ""


def find(what: str) -> list[tuple[str, Entry]]:
    """List what a pack registers, with its kind.

    Args:
        what: a Python file, an installed distribution with an entry point in the group
            `robustkit.packs`, or an importable module or package.

    Raises:
        UsageError: when there is no such thing, it fails when it is imported, or it registers
            nothing.
    """
    registry.load_packs()
    if Path(what).expanduser().is_dir() and not what.isidentifier():
        raise UsageError(
            f"{what} is a folder: expected a Python file, or the name of a package that is "
            "installed (pip install -e FOLDER)."
        )
    if what.endswith(".py"):
        # A file of a pack that is installed has run already, and would clash with itself.
        modules = {entry.target.__module__ for _, entry in _registered()}
        homes = [m for m in modules if _is_file(m, what)] or [load_file(what).__name__]
    else:
        homes = registry.pack_modules(what)
    found = [
        (kind, entry)
        for kind, entry in _registered()
        if any(f"{entry.target.__module__}.".startswith(f"{home}.") for home in homes)
    ]
    if not found:
        raise UsageError(
            f"{what} registers nothing: expected a class decorated with @attacks.register(...), "
            "@defenses.register(...), @losses.register(...), @datasets.register(...), "
            "@suites.register(...), @threats.register(...) or @criteria.register(...)."
        )
    return found


def _registered() -> list[tuple[str, Entry]]:
    return [(kind, entry) for kind, names in _KINDS.items() for entry in names.entries()]


def _is_file(module: str, path: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.startswith(USER):  # these are run anew whenever they have changed
        return False
    return Path(file).resolve() == Path(path).expanduser().resolve()


def validate(entries: Sequence[tuple[str, Entry]]) -> Iterator[CheckResult]:
    """Run every check of its kind on each entry; what a check raises is its result."""
    for kind, entry in entries:
        first: tuple[str, Callable[[], None]] = ("is documented", partial(documented, entry))
        for check, run in [first, *_CHECKS[kind](entry)]:
            yield CheckResult(kind, entry.name, check, *_outcome(run))


def _outcome(run: Callable[[], Any]) -> tuple[bool, str]:
    try:
        run()
    except Unmet as unmet:
        return False, str(unmet)
    except (Exception, SystemExit) as error:
        return False, failure(error)
    return True, ""
