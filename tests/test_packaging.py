"""What is installed is what was meant: sdist, wheel and editable install, used from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
from build import ProjectBuilder
from pyproject_hooks import quiet_subprocess_runner

ROOT = Path(__file__).resolve().parents[1]
CHECKOUT = (
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"),
    *("robustkit", "attacks", "defenses", "leaderboards", "benchmarks", "tests"),
)
PACKS = {"attacks": "robustkit/attacks", "defenses": "robustkit/defenses"}
STRANGER = {  # as the unrelated package of the index: it has two paths with ours in common
    "robustkit/__init__.py": "from .core.trend import fit\n",
    "robustkit/core/__init__.py": "",
    "robustkit/core/trend.py": "def fit(): ...\n",
}
EXTRAS = (
    *("torchvision", "pyautoattack", "torchattacks", "foolbox", "timm", "transformers"),
    *("onnx", "onnx2torch", "matplotlib", "robustbench"),
)
MINE = '''
"""An attack that does nothing, in the one file that adding an attack takes."""
from dataclasses import dataclass
from robustkit.registry import attacks

@attacks.register("mine", white_box=False)
@dataclass(frozen=True)
class Mine:
    """Does nothing."""
    steps: int = 1
'''

Build = Callable[[str, Path], Path]
Robustkit = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def copy_checkout(folder: Path) -> Path:
    """Copy what git would hand over, so that no build leaves a trace in the checkout."""
    folder.mkdir()
    caches = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=caches)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """Build with the setuptools that is installed: nothing is downloaded."""
    builder = ProjectBuilder(source, runner=quiet_subprocess_runner)
    return Path(builder.build(kind, out))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("sdist")
    return build("sdist", copy_checkout(room / "checkout"), room)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist alone."""
    room = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(room, filter="data")
    return build("wheel", room / sdist.name.removesuffix(".tar.gz"), room)


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_sdist_holds_all_that_the_wheel_needs_and_the_texts(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "attacks/__init__.py"} <= names
    assert "robustkit/data/bundled/fashion_mnist_1000.npz" in names


def test_the_wheel_holds_every_module_under_its_name(contents: set[str]) -> None:
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "robustkit").rglob("*.py")}
    for folder, package in PACKS.items():
        wanted |= {f"{package}/{path.name}" for path in (ROOT / folder).glob("*.py")}
    assert wanted <= contents, "list the package in pyproject.toml: [tool.setuptools] packages"


def test_the_wheel_holds_the_images_the_weights_and_the_types(contents: set[str]) -> None:
    wanted = {"robustkit/py.typed"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "robustkit/data/bundled").iterdir()}
    weights = list((ROOT / "defenses/checkpoints").iterdir())
    wanted |= {f"robustkit/defenses/checkpoints/{path.name}" for path in weights}
    assert any(path.suffix == ".safetensors" for path in weights)
    boards = [*(ROOT / "leaderboards/published").glob("*.csv")]
    wanted |= {f"robustkit/leaderboard/board_files/{path.name}" for path in boards}
    wanted.add("robustkit/leaderboard/board_files/ROBUSTBENCH_LICENSE")
    assert wanted <= contents


def test_the_wheel_installs_nothing_but_robustkit(contents: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in contents} == {
        "robustkit",
        "robustkit_eval",
    }
    assert not [name for name in contents if "__pycache__" in name]


def test_the_wheel_is_small_enough_to_ship(wheel: Path) -> None:
    assert wheel.stat().st_size < 16 * 2**20  # weights of gray and of color images, and the code


def test_the_metadata_says_what_a_stranger_needs(wheel: Path, contents: set[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in contents if name.endswith(".dist-info/METADATA"))
        meta = HeaderParser().parsestr(archive.read(name).decode())
    assert meta["Name"] == "robustkit-eval"
    assert meta["License-Expression"] == "MIT"
    assert meta["License-File"] == "LICENSE"
    assert meta["Requires-Python"] == ">=3.10"
    assert name.replace("METADATA", "licenses/LICENSE") in contents
    libraries = {"autoattack", "torchattacks", "foolbox", "robustbench", "ray"}
    sources = {"timm", "torchvision", "hf", "hf-data", "hub", "onnx", "sklearn"}
    training = {"lightning", "tensorboard", "wandb", "mlflow"}
    toolkits = {"art", "maite", "nrtk"}
    extras = {*libraries, *sources, *training, *toolkits, "report", "docs", "test", "all"}
    assert extras == set(meta.get_all("Provides-Extra", []))
    needed = meta.get_all("Requires-Dist", [])
    core = [line for line in needed if "extra ==" not in line and "python_version" not in line]
    assert len(core) <= 10, f"core dependencies stay few: {core}"


def others(folder: Path) -> Path:
    """Link to what is installed here except robustkit and its extras, which doctor would import."""
    folder.mkdir()
    for place in map(Path, sys.path):
        if place.name in ("site-packages", "dist-packages"):
            for path in place.iterdir():
                name = re.split(r"[-.]", path.name.lower())[0]
                known = any(word in name for word in ("robustkit", *EXTRAS))
                if not known and path.suffix != ".pth" and not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path)
    return folder


def pip(scripts: Path, dist: Path) -> None:
    """Let pip install a file into an environment that needs no pip of its own."""
    put = ["--python", str(scripts / "python"), "install", "--no-deps", "--no-index", str(dist)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *put], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def environment(folder: Path, dist: Path) -> Path:
    """Make an environment with `dist` alone in it, and let it see what is installed here."""
    make = ["-m", "venv", "--without-pip", str(folder)]
    subprocess.run([sys.executable, *make], check=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    pip(scripts, dist)
    site = next(folder.rglob("site-packages"))
    (site / "others.pth").write_text(str(others(folder / "others")))
    return scripts


def user(scripts: Path, folder: Path) -> Robustkit:
    """Return a function that runs a program of the environment from `folder`."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
    settings = {key: value for key, value in os.environ.items() if key not in hidden}

    def run(program: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(scripts / program), *arguments],
            cwd=folder,
            env=settings,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Robustkit:
    """The wheel in an environment of its own."""
    room = tmp_path_factory.mktemp("installed")
    return user(environment(room / "venv", wheel), room)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("editable") / "checkout")


@pytest.fixture(scope="module")
def editable(checkout: Path) -> Robustkit:
    """What `pip install -e` makes of a checkout, in an environment of its own."""
    room = checkout.parent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Editable installation")
        dist = build("editable", checkout, room)
    return user(environment(room / "venv", dist), room)


def names(listing: str) -> set[str]:
    entries: list[dict[str, Any]] = json.loads(listing)["entries"]
    return {entry["name"] for entry in entries}


def where(run: Robustkit, modules: Iterable[str]) -> list[Path]:
    code = f"import importlib as i\nfor m in {list(modules)}: print(i.import_module(m).__file__)"
    return [Path(line) for line in run("python", "-c", code).stdout.splitlines()]


class TestWheel:
    def test_the_program_says_which_version_it_is(self, installed: Robustkit, wheel: Path) -> None:
        version = installed("robustkit", "--version").stdout.split()[-1]
        assert wheel.name.startswith(f"robustkit_eval-{version}-")

    @pytest.mark.parametrize("kind", ["attacks", "defenses"])
    def test_it_lists_what_the_checkout_lists(
        self, installed: Robustkit, editable: Robustkit, kind: str
    ) -> None:
        there = names(installed("robustkit", "list", kind, "--json").stdout)
        assert there == names(editable("robustkit", "list", kind, "--json").stdout) != set()

    def test_what_runs_is_the_wheel(self, installed: Robustkit) -> None:
        files = where(installed, ("robustkit", "robustkit.attacks", "robustkit.defenses"))
        assert len(files) == 3
        for file in files:
            assert "site-packages" in file.parts
            assert not file.is_relative_to(ROOT)

    def test_published_boards_are_found(self, installed: Robustkit) -> None:
        shown = installed("robustkit", "leaderboard", "--published", "cifar10-linf")
        assert "not measured here" in shown.stdout

    def test_the_bundled_images_are_found(self, installed: Robustkit) -> None:
        code = "from robustkit import open_dataset as o; d = o('bundled'); print(len(d), d.shape)"
        assert installed("python", "-c", code).stdout == "1000 (1, 28, 28)\n"


class TestEditable:
    def test_what_runs_is_the_checkout(self, editable: Robustkit, checkout: Path) -> None:
        homes = {"robustkit": "robustkit", **{v.replace("/", "."): k for k, v in PACKS.items()}}
        files = [checkout / folder / "__init__.py" for folder in homes.values()]
        assert where(editable, homes) == files

    def test_a_new_file_in_a_pack_is_live_at_once(
        self, editable: Robustkit, checkout: Path
    ) -> None:
        before = names(editable("robustkit", "list", "attacks", "--json").stdout)
        mine = checkout / "attacks" / "mine.py"
        mine.write_text(MINE)
        try:
            after = names(editable("robustkit", "list", "attacks", "--json").stdout)
        finally:
            mine.unlink()
        assert after == before | {"mine"}

    @pytest.mark.usefixtures("editable")
    def test_the_program_starts_in_the_checkout_too(self, checkout: Path) -> None:
        program = next((checkout.parent / "venv").glob("[bS]*/robustkit*")).parent
        inside = user(program, checkout)
        assert names(inside("python", "-m", "robustkit", "list", "defenses", "--json").stdout)


class TestNamesake:
    """The unrelated package `robustkit` of the index, a stand-in of it, installed by mistake."""

    @pytest.fixture
    def stranger(self, tmp_path: Path, write_wheel: Callable[..., Path]) -> Path:
        return write_wheel(tmp_path, "robustkit", "0.6.0", STRANGER)

    def findings(self, run: Robustkit, *program: str) -> dict[str, dict[str, Any]]:
        answer = json.loads(run(*program, "doctor", "--json", code=1).stdout)
        return {found["name"]: found for found in answer["findings"] if found["cure"]}

    def test_doctor_puts_back_what_it_overwrote(
        self, wheel: Path, stranger: Path, tmp_path: Path
    ) -> None:
        scripts = environment(tmp_path / "venv", wheel)
        pip(scripts, stranger)
        run = user(scripts, tmp_path)
        assert "fit" in run("python", "-c", "import robustkit; print(dir(robustkit))").stdout
        found = self.findings(run, "robustkit")
        assert found["other robustkit"]["state"] == found["robustkit-eval"]["state"] == "broken"
        assert found["robustkit-eval"]["detail"].startswith("2 installed files are not its own")
        told = run("robustkit", "doctor", "--fix").stderr
        assert "running pip uninstall --yes robustkit" in told
        assert run("python", "-c", "import robustkit; print(robustkit.Threat)").stdout
        assert names(run("robustkit", "list", "attacks", "--json").stdout)
        assert "other robustkit" not in run("robustkit", "doctor").stdout

    def test_doctor_removes_what_hides_a_checkout(
        self, checkout: Path, stranger: Path, tmp_path: Path
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Editable installation")
            scripts = environment(tmp_path / "venv", build("editable", checkout, tmp_path))
        pip(scripts, stranger)
        outside, inside = user(scripts, tmp_path), user(scripts, checkout)
        assert "robustkit.cli" in outside("robustkit", "--version", code=1).stderr  # it lacks it
        found = self.findings(inside, "python", "-m", "robustkit")
        assert "may be imported in place of robustkit-eval" in found["other robustkit"]["detail"]
        inside("python", "-m", "robustkit", "doctor", "--fix")
        assert names(outside("robustkit", "list", "attacks", "--json").stdout)
