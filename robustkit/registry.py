"""What can be asked for by name: attacks, defenses, losses, data, suites, threats, criteria.

A pack file registers a frozen dataclass with a decorator; its fields are the options. Packs are
entry points of the group `robustkit.packs`, those of this distribution too, and load on first use.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from robustkit.core.arguments import refused
from robustkit.core.imports import failure, load_module
from robustkit.core.packages import install_command
from robustkit.core.spec import Spec
from robustkit.errors import RobustkitError, UsageError, unknown

if TYPE_CHECKING:
    from robustkit.core.criterion import Criterion
    from robustkit.core.threat import Threat

T = TypeVar("T")
GROUP = "robustkit.packs"


class Entry(NamedTuple):
    """A registered class with the facts that stand beside its code."""

    name: str
    target: type[Any]
    facts: dict[str, Any]
    origin: str

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.target) or "").split("\n", 1)[0]

    @property
    def options(self) -> dict[str, Any]:
        """Option name to default value."""
        return {
            field.name: None if field.default is dataclasses.MISSING else field.default
            for field in dataclasses.fields(self.target)
            if field.init
        }


class Registry(Generic[T]):
    """Names of one kind. A clash is an error that names both files; a miss says what was meant."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(self, name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
        """Register a frozen dataclass under `name`, with `facts` such as `cites`.

        Raises:
            RobustkitError: when the name is taken by another file, or the class is no dataclass.
        """

        def decorate(target: type[T]) -> type[T]:
            origin = _origin(target)
            taken = self._entries.get(name)
            if taken is not None and _place(taken.target) != _place(target):
                raise RobustkitError(
                    f"{self.kind.capitalize()} {name!r} is already registered by {taken.origin}; "
                    f"{origin} must choose another name."
                )
            if not dataclasses.is_dataclass(target):
                raise RobustkitError(f"{origin}: {self.kind} {name!r} must be a frozen dataclass.")
            self._entries[name] = Entry(name, target, facts, origin)
            return target

        return decorate

    def entries(self) -> list[Entry]:
        """List everything registered, sorted by name."""
        load_packs()
        return sorted(self._entries.values())

    def __iter__(self) -> Iterator[str]:
        return iter(entry.name for entry in self.entries())

    def __contains__(self, name: object) -> bool:
        load_packs()
        return name in self._entries

    def entry(self, name: str) -> Entry:
        """Look up one entry.

        Raises:
            UsageError: for an unknown name, with the closest known one.
        """
        load_packs()
        if name not in self._entries:
            raise unknown(self.kind, name, self._entries)
        return self._entries[name]

    def build(self, spec: Spec | str) -> T:
        """Make the object that `spec` names, with its options checked.

        Raises:
            UsageError: for an unknown name, an unknown option or a value of the wrong type.
        """
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        entry = self.entry(spec.name)
        for option, _ in spec.options:
            if option not in entry.options:
                known = ", ".join(sorted(entry.options)) or "none"
                raise UsageError(
                    f"{self.kind.capitalize()} {spec.name!r} has no option {option!r}. "
                    f"Its options: {known}."
                )
        given = {key: str(v) if isinstance(v, Spec) else v for key, v in spec.options}
        target: Any = entry.target
        try:
            built: T = _options_of(target).validate_python(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its options"
            raise UsageError(
                f"{self.kind.capitalize()} {str(spec)!r}, option {where}: {first['msg']}, "
                f"got {first['input']!r}."
            ) from None
        return built


@functools.cache  # 2 ms each, and a run builds some thirty attacks
def _options_of(target: Any) -> TypeAdapter[Any]:
    return TypeAdapter(target)


class _Attacks(Registry[Any]):
    """Attacks by name, and those of other libraries as `library:Name`."""

    def entry(self, name: str) -> Entry:
        """Look up an attack, or the library of `library:Name`."""
        library, colon, _ = name.partition(":")
        return libraries.entry(library) if colon else super().entry(name)

    def build(self, spec: Spec | str) -> Any:
        """Make the attack; of another library: what stands for it there."""
        spec = Spec.parse(spec) if isinstance(spec, str) else spec
        library, colon, name = spec.name.partition(":")
        if not colon:
            return super().build(spec)
        options = dict(spec.options)
        size = options.pop("batch_size", 100)
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"{spec}: expected batch_size as a positive whole number.")
        return libraries.entry(library).target(name, tuple(options.items()), size)


attacks: Registry[Any] = _Attacks("attack")
libraries: Registry[Any] = Registry("attack library")
defenses: Registry[Any] = Registry("defense")
losses: Registry[Any] = Registry("loss")  # to train with; those of attacks: robustkit.core.losses
datasets: Registry[Any] = Registry("dataset")
suites: Registry[Any] = Registry("suite")
threats: Registry[Any] = Registry("threat model")  # those that are no norm, by what precedes ":"
criteria: Registry[Any] = Registry("criterion")  # what breaks a point, by what precedes ":" or "5"

_loaded: list[str] = []


def load_packs() -> None:
    """Import every pack once: the built-in ones, then third parties'.

    Raises:
        RobustkitError: for a pack that cannot be imported, and where the built-in ones are missing.
    """
    if _loaded:
        return
    _loaded.append("loading")
    try:
        points = list(entry_points(group=GROUP))
        if not any(map(_ours, points)):
            raise _not_installed(f"the entry points {GROUP} of robustkit itself are missing")
        for point in sorted(points, key=_ours, reverse=True):
            _load_point(point)
    except BaseException:
        _loaded.clear()
        raise


def read_threat(text: Threat | str) -> Threat:
    """Read a threat model: a norm with its eps (`linf:8/255`), or one of a pack (`corruption:all`).

    Several joined by + are a union; a criterion may follow (`linf:8/255 targeted:3`).
    A UsageError for another form, or a name that is not known.
    """
    from robustkit.core.threat import NORMS, Threat

    if isinstance(text, Threat):
        return text
    if not isinstance(text, str):
        raise refused("threat", "a robustkit.Threat or a text such as 'linf:8/255'", text)
    plain, _, goal = text.strip().rpartition(" ")
    if plain and re.split(r"[^a-z_]", goal)[0] in criteria:
        return dataclasses.replace(read_threat(plain), criterion=read_criterion(goal))
    kind, _, what = text.partition(":")
    kind = kind.strip().lower()
    # Corruptions are joined by + too, without a colon.
    following = {name.lower() for name in re.findall(r"\+\s*(\w+):", text)}
    if kind != "union" and following & {*NORMS, *threats}:
        kind, what = "union", text
    if kind in NORMS or kind not in threats:
        return Threat.parse(text)
    if not what.strip():
        known = threats.entry(kind).facts.get("examples", ())
        forms = " or ".join(f"{kind}:{example}" for example in known) or f"{kind}:WHAT"
        raise UsageError(f"expected a threat model such as {forms}, got {text!r}.")
    read: Threat = threats.entry(kind).target.read(what.strip())
    return read


def read_criterion(text: Criterion | str) -> Criterion:
    """Read what breaks a point, such as `targeted:3`; see `robustkit.core.criterion.parse`."""
    from robustkit.core.criterion import parse

    return parse(text, criteria)


def import_folder(package: str, path: Iterable[str]) -> None:
    """Import every module of a pack that is a folder: its `__init__.py` gives its own names."""
    for info in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{info.name}")


def pack_modules(what: str) -> list[str]:
    """Name the modules of a pack: of a distribution's entry points, or a module itself.

    Raises:
        UsageError: when there is neither, or it fails when it is imported.
    """
    wanted = re.sub(r"[-_.]+", "-", what).lower()
    named = [(point, point.dist.name if point.dist else "") for point in entry_points(group=GROUP)]
    points = [point for point, dist in named if re.sub(r"[-_.]+", "-", dist).lower() == wanted]
    for point in points:
        _load_point(point)
    if points:
        return [point.module for point in points]
    try:
        return [load_module(what).__name__]
    except UsageError as error:
        raise UsageError(
            f"{what} is no installed distribution with an entry point in the group {GROUP}, and "
            f"no module: {error}"
        ) from None


def _load_point(point: EntryPoint) -> None:
    try:
        point.load()
    except RobustkitError:
        raise
    except (Exception, SystemExit) as error:
        if _ours(point) and isinstance(error, ModuleNotFoundError) and error.name == point.module:
            raise _not_installed(f"{point.module} is not importable") from None
        whose = point.dist.name if point.dist else "an installed distribution"
        raise RobustkitError(
            f"the pack {point.value} of {whose} fails when it is imported: {failure(error)}. "
            f"Mend it, or `pip uninstall {whose}`."
        ) from error


def _place(target: type[Any]) -> tuple[str, str]:
    return target.__module__, target.__qualname__


def _origin(target: type[Any]) -> str:
    try:
        return f"{target.__module__}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):  # typed at a prompt: there is no file
        return f"{target.__module__}.{target.__qualname__}"


def _ours(point: EntryPoint) -> bool:
    return point.module.partition(".")[0] == "robustkit"


def _not_installed(why: str) -> RobustkitError:
    return RobustkitError(
        f"{why}: robustkit was taken from the checkout in {Path(__file__).parents[1]}, which is "
        f"not installed, or was before it had them. Run `{install_command(checkout=True)}` in it, "
        "or work in another folder to use the robustkit that is installed."
    )
