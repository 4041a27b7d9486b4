"""The house stands: imports run one way, packs are leaves, files and functions stay small."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The line, from left to right: a station imports only stations to its left.
STATIONS = (
    "errors",
    "core",
    "registry",
    "data",
    "models",
    "certify",
    "search",
    "verify",
    "record",
    "evaluation",
    "leaderboard",
    "gate",
    "integrations",
    "cli",
)
PACKS = {"attacks": "search", "defenses": "certify"}  # the last station that each pack may import
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 80, 8
# Their keywords are typed by users; they build a `Settings` at once.
MANY_KEYWORDS = {
    "evaluate",
    "evaluate_grid",
    "assert_robust",
    "assert_not_regressed",
    "benchmark",  # the signature of RobustBench's
}
MARKER = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + "X|HA" + r"CK)\b")
UNSAFE = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


LIBRARY = files("robustkit", *PACKS)
CODE = [*LIBRARY, *files("benchmarks")]


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


@functools.cache
def called(path: Path) -> list[tuple[ast.Call, str]]:
    """Every call of a file, and what is called."""
    return [(node, ast.unparse(node.func)) for node in nodes(path) if isinstance(node, ast.Call)]


def at(path: Path, node: ast.expr | ast.stmt) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imported(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Every imported module, also inside functions and by `import_module("...")`.

    Names taken from a bare package (`from robustkit import data`, `from . import _steps`) count as
    modules of it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base == "robustkit" or not node.module:
                joint = "" if base.endswith(".") else "."
                yield from ((node, f"{base}{joint}{alias.name}") for alias in node.names)
            else:
                yield node, base
        elif isinstance(node, ast.Call) and _name(node.func).endswith("import_module"):
            named = (given.value for given in node.args[:1] if isinstance(given, ast.Constant))
            yield from ((node, str(module)) for module in named)


def _name(function: ast.expr) -> str:
    """The last part of what is called."""
    return str(getattr(function, "attr", getattr(function, "id", "")))


def objection(home: str, module: str) -> str | None:
    """Say why code in `home`, a room or a pack, must not import `module`; None if it may."""
    if module.startswith("."):
        if home in PACKS and re.match(r"\._\w", module):
            return None
        return "only a pack file may import relatively, and only its pack's _private helpers"
    top, *inside = module.split(".")
    if top in PACKS or (top == "robustkit" and inside and inside[0] in PACKS):
        return "packs are leaves: ask robustkit.registry for an attack or a defense"
    if top != "robustkit" or (inside and inside[0] == home):
        return None
    if not inside or inside[0] not in STATIONS:
        return f"that is no station; import from the one that defines it: {' '.join(STATIONS)}"
    there = STATIONS.index(inside[0])
    if home in PACKS:
        last = PACKS[home]
        return (
            None if there <= STATIONS.index(last) else f"a pack file there goes up to {last} only"
        )
    left = home in STATIONS and there < STATIONS.index(home)
    return None if left else f"imports run only to the left in: {' '.join(STATIONS)}"


def default_folder_of(path: Path) -> str:
    folder, inside = path.relative_to(ROOT).parts[:2]
    return folder if folder in PACKS else inside.removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def deferred(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: not the inside of functions, nor what types need."""
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, ast.FunctionDef) and not typing:
            yield node
            yield from deferred(node)


def arrows() -> dict[str, set[str]]:
    """Module -> the modules that it imports at once."""
    known = {module_of(path) for path in files("robustkit")}
    found: dict[str, set[str]] = {}
    for path in files("robustkit"):
        outward = found.setdefault(module_of(path), set())
        for node in deferred(tree_of(path)):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            outward |= (inner or {node.module}) & known
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return a path that ends where it begins; empty: there is none."""
    done: set[str] = set()

    def walk(at: str, trail: list[str]) -> list[str]:
        if at in trail:
            return [*trail[trail.index(at) :], at]
        if at in done:
            return []
        found = next((way for to in sorted(graph[at]) if (way := walk(to, [*trail, at]))), [])
        done.add(at)
        return found

    return next((way for start in sorted(graph) if (way := walk(start, []))), [])


class TestTheOrder:
    def test_lists_exactly_the_stations_there_are(self) -> None:
        rooms = {default_folder_of(path) for path in files("robustkit")} - {"__init__", "__main__"}
        assert rooms == set(STATIONS)
        assert len(list((ROOT / "robustkit").glob("[!_]*"))) <= 16

    def test_holds_no_circle(self) -> None:
        assert not (found := circle(arrows())), " → ".join(found)
        assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]

    def test_every_room_says_what_enters_what_leaves_and_where_to_begin(self) -> None:
        for room in STATIONS:
            if (face := ROOT / "robustkit" / room / "__init__.py").exists():
                told = ast.get_docstring(ast.parse(face.read_text(encoding="utf-8"))) or ""
                lines = [line.split(":")[0] for line in told.splitlines()]
                assert [x for x in lines if x in ("Enters", "Leaves", "Read first")] == [
                    "Enters",
                    "Leaves",
                    "Read first",
                ], room
                read = re.search(r"^Read first: ((?:.|\n)*?)\.(?:\s|$)", told, re.MULTILINE)
                assert read is not None, room
                for name in re.findall(r"\w+\.py|\w+/", read[1]):
                    assert list(face.parent.rglob(name.rstrip("/"))), f"{room} names {name}"

    @pytest.mark.parametrize("room", STATIONS)
    def test_a_room_exports_what_it_names(self, room: str) -> None:
        face = importlib.import_module(f"robustkit.{room}")
        modules = {path.stem for path in (ROOT / "robustkit" / room).glob("*.py")}
        for name in getattr(face, "__all__", ()):
            assert name not in modules, f"robustkit.{room}.{name} would be hidden by the module"
            assert getattr(face, name) is not None
            assert name in dir(face)

    @pytest.mark.parametrize("folder", ["robustkit", *PACKS])
    def test_is_kept(self, folder: str) -> None:
        facade = ROOT / "robustkit" / "__init__.py"
        found = [
            f"{at(path, node)} imports {module}, but {reason}"
            for path in files(folder)
            if path != facade and path.name != "__main__.py"
            for node, module in imported(tree_of(path))
            if (reason := objection(default_folder_of(path), module))
        ]
        assert not found, "\n".join(found)

    def test_tests_and_benchmarks_ask_the_registry_too(self) -> None:
        found = [
            f"{at(path, node)} imports {module}; packs are leaves: ask robustkit.registry"
            for path in files("benchmarks", "tests")
            for node, module in imported(tree_of(path))
            if isinstance(node, ast.stmt)
            and re.match(r"(robustkit\.)?(attacks|defenses)\b", module)
        ]
        assert not found, "\n".join(found)

    @pytest.mark.parametrize(
        ("home", "code", "reason"),
        [
            ("search", "from robustkit.search.protocol import Tasks", None),
            ("search", "from robustkit.evaluation.run import Run", "only to the left"),
            ("search", "from robustkit import evaluation", "only to the left"),
            ("search", "def f():\n    import robustkit.cli.plan", "only to the left"),
            ("registry", "import_module('robustkit.data')", "only to the left"),
            ("evaluation", "from robustkit import Threat", "no station"),
            ("evaluation", "from robustkit.attacks.pgd import PGD", "leaves"),
            ("evaluation", "from attacks import pgd", "leaves"),
            ("evaluation", "from .run import Run", "relatively"),
            ("attacks", "from . import _steps", None),
            ("attacks", "from ._steps import ascend", None),
            ("attacks", "from .pgd import PGD", "_private"),
            ("attacks", "from robustkit.search.protocol import Tasks", None),
            ("attacks", "from robustkit.verify.candidates import verify", "up to search"),
            ("defenses", "from robustkit.models.load import load_model", None),
            ("defenses", "import robustkit.defenses.trades", "leaves"),
        ],
    )
    def test_tells_a_wrong_arrow_from_a_right_one(
        self, home: str, code: str, reason: str | None
    ) -> None:
        ((_, module),) = imported(ast.parse(code))
        told = objection(home, module)
        assert told is None if reason is None else told is not None and reason in told


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return (node for node in nodes(path) if isinstance(node, kinds))


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    return (node for node, name in called(path) if name in names)


def constant(call: ast.Call, keyword: str) -> object:
    for given in call.keywords:
        if given.arg == keyword and isinstance(given.value, ast.Constant):
            return given.value.value
    return None


class TestTheCode:
    def test_files_fit_the_mind(self) -> None:
        sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
        found = [
            f"{path.relative_to(ROOT)} has {size} lines; at most {MAX_FILE}: split it by noun"
            for path, size in sizes.items()
            if size > MAX_FILE
        ]
        assert not found, "\n".join(found)

    def test_functions_fit_a_screen(self) -> None:
        found = [
            f"{at(path, node)} {node.name} has {size} lines; at most {MAX_FUNCTION}"
            for path in CODE
            for node in functions(path)
            if (size := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
        ]
        assert not found, "\n".join(found)

    def test_functions_take_few_parameters(self) -> None:
        found = []
        for path in LIBRARY:
            for node in functions(path):
                given = node.args
                named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                count = sum(argument.arg not in ("self", "cls") for argument in named)
                if count > MAX_PARAMETERS and node.name not in MANY_KEYWORDS:
                    found.append(f"{at(path, node)} {node.name} takes {count} parameters")
        assert not found, "\n".join(found)

    def test_the_library_does_not_print(self) -> None:
        found = [
            f"{at(path, call)} prints; only robustkit.cli speaks, through its consoles"
            for path in LIBRARY
            for call in calls(path, "print", "pprint", "sys.stdout.write", "sys.stderr.write")
        ]
        assert not found, "\n".join(found)

    def test_no_code_unpickles(self) -> None:
        found = [
            f"{at(path, call)} calls {ast.unparse(call.func)}; a pickle can run any code"
            for path in CODE
            for call in calls(path, "pickle.load", "pickle.loads", "pickle.Unpickler")
        ]
        found += [
            f"{at(path, node)} imports {module}, which runs what it loads"
            for path in CODE
            for node, module in imported(tree_of(path))
            if module.split(".")[0] in UNSAFE
        ]
        found += [
            f"{at(path, call)} calls torch.load without weights_only=True"
            for path in CODE
            for call in calls(path, "torch.load")
            if constant(call, "weights_only") is not True
        ]
        found += [
            f"{at(path, call)} allows pickles"
            for path in CODE
            for node in nodes(path)
            if isinstance(call := node, ast.Call) and constant(call, "allow_pickle") is True
        ]
        assert not found, "\n".join(found)

    def test_nothing_is_left_for_later(self) -> None:
        texts = [*CODE, *files("tests"), *ROOT.glob("*.md"), ROOT / "pyproject.toml"]
        found = [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}; finish it, or file an issue"
            for path in texts
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if MARKER.search(line)
        ]
        assert not found, "\n".join(found)
