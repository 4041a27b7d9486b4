"""The house stands: imports run one way, packs are leaves, files and functions stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# data → defense → search → verify → record → leaderboard: a room imports only rooms to its left.
STAGES = {
    "ground": "errors types spec importing blame registry rng threat losses optional files "
    "jsonfile text device distributions stem",
    "data": "npz download points folder sources named data",
    "defense": "nets standins surrogate parts adversary mixing bounds train checkpoints zoo model",
    "search": "tuning audit findings search foreign counting slots passes engine nearest plain "
    "suites",
    "verify": "verify rows ledger carry examples referee auditing",
    "record": "stats flags facts columns portrait record provenance diagnose batches statuses pace "
    "replay watcher display proving bench ground distributed run outcome asked sameness "
    "conduct noise remedies evaluate grid",
    "leaderboard": "tables leaderboard curves published report loggers monitor lightning",
    "gate": "gate config formats history testing pytest_plugin",
    "terminal": "doctor conformance cli __main__",
}
ORDER = [room for rooms in STAGES.values() for room in rooms.split()]
PACKS = {"attacks": "foreign", "defenses": "model"}  # the rightmost room each pack may import
MAX_FILE, MAX_FUNCTION = 300, 80
MARKER = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + "X|HA" + r"CK)\b")
UNSAFE = {"cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


LIBRARY = files("robustkit", *PACKS)
CODE = [*LIBRARY, *files("benchmarks")]


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named = (given.value for given in node.args[:1] if isinstance(given, ast.Constant))
            yield from ((node, str(module)) for module in named)


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
    if not inside or inside[0] not in ORDER:
        return f"that is no room; import from the room that defines it: {' '.join(ORDER)}"
    there = ORDER.index(inside[0])
    if home in PACKS:
        last = PACKS[home]
        return None if there <= ORDER.index(last) else f"a pack file there goes up to {last} only"
    left = home in ORDER and there < ORDER.index(home)
    return None if left else f"imports run only to the left in: {' '.join(ORDER)}"


def home_of(path: Path) -> str:
    folder, inside = path.relative_to(ROOT).parts[:2]
    return folder if folder in PACKS else inside.removesuffix(".py")


class TestTheOrder:
    def test_lists_exactly_the_rooms_there_are(self) -> None:
        rooms = {home_of(path) for path in files("robustkit")} - {"__init__"}
        missing, gone = sorted(rooms - set(ORDER)), sorted(set(ORDER) - rooms)
        assert not missing, f"{missing} stand nowhere in STAGES; say between which rooms they lie"
        assert not gone, f"{gone} stand in STAGES and no longer exist"
        assert len(ORDER) == len(set(ORDER))

    @pytest.mark.parametrize("folder", ["robustkit", *PACKS])
    def test_is_kept(self, folder: str) -> None:
        facade = ROOT / "robustkit" / "__init__.py"
        found = [
            f"{at(path, node)} imports {module}, but {reason}"
            for path in files(folder)
            if path != facade
            for node, module in imported(ast.parse(path.read_text(encoding="utf-8")))
            if (reason := objection(home_of(path), module))
        ]
        assert not found, "\n".join(found)

    def test_tests_and_benchmarks_ask_the_registry_too(self) -> None:
        found = [
            f"{at(path, node)} imports {module}; packs are leaves: ask robustkit.registry"
            for path in files("benchmarks", "tests")
            for node, module in imported(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.stmt)
            and re.match(r"(robustkit\.)?(attacks|defenses)\b", module)
        ]
        assert not found, "\n".join(found)

    @pytest.mark.parametrize(
        ("home", "code", "reason"),
        [
            ("engine", "from robustkit.search import Tasks", None),
            ("engine", "from robustkit.run import Run", "only to the left"),
            ("engine", "from robustkit import evaluate", "only to the left"),
            ("engine", "def f():\n    import robustkit.cli.plan", "only to the left"),
            ("cli", "from robustkit.cli.plan import Plan", None),
            ("registry", "import_module('robustkit.data')", "only to the left"),
            ("registry", "import robustkit.cli", "only to the left"),
            ("evaluate", "from robustkit import Threat", "no room"),
            ("evaluate", "from robustkit.attacks.pgd import PGD", "leaves"),
            ("evaluate", "from attacks import pgd", "leaves"),
            ("evaluate", "from .run import Run", "relatively"),
            ("attacks", "from . import _steps", None),
            ("attacks", "from ._steps import ascend", None),
            ("attacks", "from .pgd import PGD", "_private"),
            ("attacks", "from robustkit.search import Tasks", None),
            ("attacks", "from robustkit.engine import attack", "up to foreign"),
            ("defenses", "from robustkit.model import load_model", None),
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
    for node in nodes(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node


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
            for node, module in imported(ast.parse(path.read_text(encoding="utf-8")))
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
