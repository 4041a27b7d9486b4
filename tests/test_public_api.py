"""What `import robustkit` offers, and what it costs."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import robustkit

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [name for name in robustkit.__all__ if name != "__version__"]


def fresh(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, from a folder without robustkit in it."""
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True
    )


def answer(code: str) -> str:
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_and_complete() -> None:
    assert robustkit.__all__ == sorted(set(robustkit.__all__))
    assert set(robustkit.__all__) <= set(dir(robustkit))
    scope: dict[str, object] = {}
    exec("from robustkit import *", scope)
    assert set(robustkit.__all__) <= set(scope)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_documented_and_keeps_its_home(name: str) -> None:
    value = getattr(robustkit, name)
    assert (inspect.getdoc(value) or "").strip()
    assert isinstance(value, ModuleType) or value.__module__.startswith("robustkit.")
    assert getattr(robustkit, name) is value


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'robustkit' has no attribute 'evaluations'"):
        getattr(robustkit, "evaluations")  # noqa: B009  a constant attribute would not type-check


SAY = "\nprint(type(f).__name__, f.__name__)"


@pytest.mark.slow
def test_evaluate_is_the_function_though_its_module_was_imported_before() -> None:
    code = "import robustkit.evaluation.evaluate, robustkit; f = robustkit.evaluate"
    assert answer(code + SAY) == "function evaluate"


@pytest.mark.slow
def test_evaluate_is_the_function_and_imports_no_compiler_to_certify(tmp_path: Path) -> None:
    code = (
        f"from robustkit import evaluate as f{SAY}\n"
        f"f('ibp', 'bundled', 'linf:0.1', n=2, certify='auto', folder={str(tmp_path)!r})\n"
        "import sys; print({'torch._dynamo', 'sympy'} & set(sys.modules))"
    )
    assert answer(code).splitlines() == ["function evaluate", "set()"]


@pytest.mark.parametrize("module", ["robustkit", "robustkit.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    heavy = {"torch", "numpy", "pandas", "scipy", "pydantic", "rich.table"}
    assert heavy.isdisjoint(json.loads(answer(code)))


def test_a_checkout_that_is_not_installed_says_so(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "robustkit", tmp_path / "robustkit")
    done = fresh(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import robustkit", "-S", "-I")
    assert done.returncode == 1
    assert "ImportError: robustkit is not installed" in done.stderr
    assert "pip install -e ." in done.stderr
