"""What every data set and every suite must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.data.open import open_dataset
from robustkit.errors import UsageError
from robustkit.integrations.conformance.fixtures import THREATS, need
from robustkit.registry import Entry, attacks, read_threat, suites
from robustkit.search.protocol import needs_no_norm


def suite_checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one suite, by name."""
    yield "supports a norm or says that it does not", partial(_supports, entry)
    for threat in THREATS:
        yield (
            f"lists attacks that support {threat.norm}, or refuses it",
            partial(_line_up, entry, threat),
        )


def dataset_checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one data set, by name."""
    yield "names its usual threat model", partial(_threat, entry)
    yield "opens, or says what to do", partial(_opens, entry)


def library_checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one library of attacks, by name."""
    yield "refuses an attack that it does not have", partial(_refuses, entry)


def _refuses(entry: Entry) -> None:
    try:
        attacks.build(f"{entry.name}:no-such-attack").jobs(THREATS[0], 10)
    except UsageError:
        return
    need(False, "expected a UsageError for an attack of another name, got none")


def _list(entry: Entry, threat: Threat) -> list[Spec] | None:
    """Return what the suite lists, None where it refuses the norm with a `UsageError`."""
    try:
        return list(suites.build(entry.name).attacks(threat))
    except UsageError as error:
        need(threat.norm in str(error), f"expected an error that names the norm, got {error}")
        return None


def _supports(entry: Entry) -> None:
    norms = ", ".join(threat.norm for threat in THREATS)
    supported = needs_no_norm(entry.target) or any(_list(entry, threat) for threat in THREATS)
    need(supported, f"expected at least one of {norms} to be supported, got none")


def _line_up(entry: Entry, threat: Threat) -> None:
    specs = _list(entry, threat)
    if specs is None:
        return
    need(bool(specs), f"expected at least one attack for {threat.norm}, got none")
    need(len(set(specs)) == len(specs), "an attack is listed twice")
    for spec in specs:
        for classes in (10, 2):
            need(bool(attacks.build(spec).jobs(threat, classes)), f"{spec} has no job at {threat}")


def _threat(entry: Entry) -> None:
    text = entry.facts.get("threat")
    need(isinstance(text, str), 'expected threat="linf:8/255" or the like in its registration')
    read_threat(str(text))


def _opens(entry: Entry) -> None:
    with tempfile.TemporaryDirectory() as empty:
        try:
            data = open_dataset(entry.name, root=Path(empty), download=False)
        except UsageError as error:
            need(len(str(error)) > 20, f"expected an error that says what to do, got {error}")
            return
        x, y = data.fetch(range(min(4, len(data))))
    need(tuple(x.shape[1:]) == tuple(data.shape), f"expected {data.shape}, got {x.shape[1:]}")
    need(bool(((x >= 0) & (x <= 1)).all()), "expected inputs in [0, 1]")
    need(bool(((y >= 0) & (y < data.classes)).all()), f"expected labels below {data.classes}")
