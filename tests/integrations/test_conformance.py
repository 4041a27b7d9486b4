"""`robustkit validate`: passes what comes in the box and a real package, and sees what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkit import registry
from robustkit.cli.program import program as main
from robustkit.errors import RobustkitError, UsageError
from robustkit.integrations.conformance import CheckResult, find, validate

PACK = Path(__file__).parents[1] / "example_pack"
DRIFT = (PACK / "robustkit_example" / "drift.py").read_text()
LINEAR = (PACK / "robustkit_example" / "linear.py").read_text()

HINGE = '''
from dataclasses import dataclass

import torch

from robustkit.registry import losses


def score(logits, y):
    """The logit of y minus the mean of all."""
    return logits.gather(1, y[:, None])[:, 0] - logits.mean(1)


@losses.register("example_lead", cites="")
@dataclass(frozen=True)
class Lead:
    """Minus the lead over the mean."""

    def __call__(self, logits, y, step):
        return -score(logits, y)

    def search(self, logits, y):
        return -score(logits, y)  # up
'''


MIRROR = '''"""A threat model of one variant."""

from dataclasses import dataclass

from robustkit.core.finite import FiniteThreat, Variant
from robustkit.registry import threats


@threats.register("mirror", cites="", examples=("all",))
@dataclass(frozen=True)
class Mirror(FiniteThreat):
    """Left and right change places."""

    @classmethod
    def read(cls, text):
        return cls("mirror:all", 1.0)

    @property
    def variants(self):
        return [Variant("mirrored", 1)]

    def images(self, x, points, variant):
        return x.flip(3)

    def check(self, shape, labels):
        pass
'''


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten afterwards."""
    registry.load_packs()
    kinds = registry.attacks, registry.defenses, registry.losses, registry.datasets
    for names in (*kinds, registry.suites, registry.threats, registry.criteria):
        monkeypatch.setattr(names, "_entries", dict(names._entries))
    yield


def check(folder: Path, source: str) -> dict[str, CheckResult]:
    """Validate a file; return what did not pass, by check without the norm."""
    path = folder / "pack.py"
    path.write_text(source)
    found = [v for v in validate(find(str(path))) if not v.passed]
    return {v.check.partition(" (")[0].partition(",")[0]: v for v in found}


class TestTheBox:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "pack", ["robustkit.attacks", "robustkit.defenses", "robustkit.data.builtin"]
    )
    def test_everything_that_comes_in_the_box_passes(self, pack: str) -> None:
        failed = [verdict for verdict in validate(find(pack)) if not verdict.passed]
        assert failed == []


@pytest.mark.usefixtures("own_registry")
class TestFaults:
    def test_a_sound_file_passes(self, tmp_path: Path) -> None:
        assert check(tmp_path, DRIFT) == {}
        assert check(tmp_path, LINEAR) == {}

    @pytest.mark.parametrize("axis, sound", [(3, True), (0, False)])
    def test_a_threat_model_is_checked_too(self, axis: int, sound: bool, tmp_path: Path) -> None:
        failed = check(tmp_path, MIRROR.replace("x.flip(3)", f"x.flip({axis})"))
        assert sound == (not failed)
        assert sound or "depends on the batch" in failed["makes the same images again"].detail

    @pytest.mark.parametrize(
        ("was", "now", "what", "told"),
        [
            ("@dataclass(frozen=True)\nclass Drift", "@dataclass\nclass Drift",
             "is documented", "expected a frozen dataclass"),
            ("steps: int = 10", "steps: int", "is documented", "a default for every option"),
            ('white_box=True, cites=""', 'white_box=True', "is documented", "expected cites"),
            ("white_box=True, ", "", "says whether it needs gradients", "white_box"),
            ("query=threat.project(ahead, state.x)", "query=ahead + 9 * threat.eps",
             "stays inside the threat model", "lie outside"),
            ("threat.steepest(reply.gradient)", "0 * reply.gradient",
             "breaks most points at a larger radius", "still robust"),
            ("threat.sample(tasks.x, tasks.keys)", "tasks.x + 1e-3 * torch.rand_like(tasks.x)",
             "follows its seed", "two different starts"),
            ("threat.steepest(reply.gradient)", "threat.steepest(reply.gradient.mean(0, True))",
             "does not depend on slots and order", "with 1 slots other"),
            ("return [Job()]", "return [Job(rank=classes - 1), Job(rank=3)]",
             "is defined for two and three classes", "the target of rank 3"),
            ('"example_drift(steps=5)"', '"example_drift(stepz=5)"',
             "lists attacks that support linf", "has no option 'stepz'"),
        ],
    )  # fmt: skip
    @pytest.mark.slow
    def test_what_an_attack_does_wrong_is_named(
        self, was: str, now: str, what: str, told: str, tmp_path: Path
    ) -> None:
        assert was in DRIFT
        failed = check(tmp_path, DRIFT.replace(was, now))
        assert told in failed[what].detail

    @pytest.mark.parametrize(
        ("was", "now", "what", "told"),
        [
            ("nn.Flatten(), ",
             "nn.BatchNorm2d(channels, track_running_stats=False), nn.Flatten(), ",
             "answers for each input alone", "in a batch"),
            ("cross_entropy(model(x), y)", "cross_entropy(model(x), y, reduction='none')",
             "can be trained on inputs 1x8x8", "expected a finite scalar"),
            ("model(x), y)", "model(x + __import__('torch').rand_like(x)), y)",
             "can be trained on inputs 1x8x8", "draw from step.generator"),
            ("epochs=1", "epochs=0", "can be trained on inputs 1x8x8", "at least one epoch"),
            ('        return nn.Sequential(',
             "        class Claims(nn.Sequential):\n            randomized = True\n"
             "        return Claims(",
             "answers for each input alone", "two passes agree, yet the model says randomized"),
        ],
    )  # fmt: skip
    def test_what_a_defense_does_wrong_is_named(
        self, was: str, now: str, what: str, told: str, tmp_path: Path
    ) -> None:
        assert was in LINEAR
        failed = check(tmp_path, LINEAR.replace(was, now))
        assert told in failed[what].detail

    @pytest.mark.parametrize(
        ("was", "now", "what", "told"),
        [
            ("", "", "", ""),
            (", cites=\"\"", "", "is documented", "expected cites"),
            ("return -score(logits, y)\n", "return -score(logits, y).mean()\n",
             "judges each point", "expected a value a point, got []"),
            ("return -score(logits, y)\n", "return -score(logits, y) * torch.rand(len(y))\n",
             "judges each point", "draw from step.generator"),
            ("return -score(logits, y)\n", "return (-score(logits, y)).exp()\n",
             "stays finite", "not finite for logits up to"),
            ("return -score(logits, y)\n", "return score(logits, y)\n",
             "is lowered by learning the labels", "after 100 steps 0 of 6 points are right"),
            ("return -score(logits, y)  # up", "return score(logits, y)",
             "gives the inner search a way up", "0 of 6 points are wrong"),
        ],
    )  # fmt: skip
    def test_what_a_loss_does_wrong_is_named(
        self, was: str, now: str, what: str, told: str, tmp_path: Path
    ) -> None:
        assert was in HINGE
        failed = check(tmp_path, HINGE.replace(was, now) if was else HINGE)
        assert list(failed) == ([what] if what else [])
        assert not what or told in failed[what].detail

    def test_a_file_without_a_pack_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="registers nothing"):
            check(tmp_path, "x = 1\n")
        with pytest.raises(UsageError, match="fails when it is run: ZeroDivisionError"):
            check(tmp_path, "x = 1 / 0\n")

    def test_a_file_of_an_installed_pack_is_checked_too(self) -> None:
        file = sys.modules[registry.attacks.entry("fgsm").target.__module__].__file__
        ((kind, entry),) = find(str(file))
        assert (kind, entry.name) == ("attack", "fgsm")

    def test_a_file_that_was_changed_is_read_anew(self, tmp_path: Path) -> None:
        file = tmp_path / "pack.py"
        for name in ("first-try", "second"):
            text = DRIFT.replace('"example_drift"', f'"{name}"')
            file.write_text(text.replace('"example_look"', f'"{name}-look"'))
            names = {entry.name for _, entry in find(str(file))}
            assert names & {"first-try", "second"} == {name}

    def test_a_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mypack").mkdir()
        monkeypatch.chdir(tmp_path)
        for text in (str(tmp_path), "./mypack", "mypack/", "."):
            with pytest.raises(UsageError, match="is a folder: expected a Python file, or the"):
                find(text)

    def test_a_package_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"no installed distribution.*robustkit\.packs"):
            find("no-such-package-anywhere")


@pytest.mark.usefixtures("own_registry")
class TestCommand:
    @pytest.mark.slow
    @pytest.mark.parametrize(("fault", "code"), [("", 0), ("x", 1)])
    def test_exit_codes(self, fault: str, code: int, tmp_path: Path) -> None:
        path = tmp_path / "pack.py"
        path.write_text(DRIFT.replace('cites=""', 'source=""') if fault else DRIFT)
        result = CliRunner().invoke(main, ["validate", str(path)])
        assert result.exit_code == code, result.output
        assert ("failed" in result.stdout) == bool(fault)
        answer = CliRunner().invoke(main, ["validate", str(path), "--json"])
        told = json.loads(answer.stdout)
        assert told["sound"] is not bool(fault)
        assert {"kind", "name", "check", "passed", "detail"} == set(told["checks"][0])

    def test_nothing_to_check_is_a_usage_error(self) -> None:
        result = CliRunner().invoke(main, ["validate", "no_such_file.py"])
        assert result.exit_code == 2
        assert "does not exist" in result.stderr


@pytest.mark.slow
class TestInstalled:
    """The example package, built and installed by pip into a folder of its own."""

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        room = tmp_path_factory.mktemp("pack")
        shutil.copytree(PACK, room / "source")
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation",
                   "--no-index", "--target", str(room / "there"), str(room / "source")]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return room / "there"

    def run(self, place: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": str(place)},
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip

    def test_it_is_found_validated_and_used(self, place: Path, tmp_path: Path) -> None:
        commands = (
            ["validate", "robustkit-example", "--json"],
            ["list", "attacks", "--json"],
            ["evaluate", "undefended", "--suite", "example_look", "--n", "20", "--json"],
        )
        code = (  # PyTorch is imported once for all three
            "import sys\nfrom robustkit.cli.program import program\n"
            f"for words in {commands!r}:\n"
            "    assert not program(words, 'robustkit', standalone_mode=False)\n"
            "    print('end of the answer')"
        )
        done = self.run(place, tmp_path, "-c", code)
        assert done.returncode == 0, done.stdout + done.stderr
        answers = [json.loads(text) for text in done.stdout.split("end of the answer\n")[:3]]
        checks = answers[0]["checks"]
        assert {row["name"] for row in checks} == {
            "example_drift", "example_linear", "example_look"
        }  # fmt: skip
        assert "example_drift" in [entry["name"] for entry in answers[1]["entries"]]
        (row,) = answers[2]["rows"]
        assert row["strongest_attack"] == "example_drift(steps=5)"

    def test_a_pack_that_fails_when_imported_is_named(self, place: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(place, broken)
        (broken / "robustkit_example" / "__init__.py").write_text("import nothing_of_the_kind\n")
        done = self.run(broken, tmp_path, "-m", "robustkit", "list", "attacks")
        assert done.returncode == RobustkitError.exit_code
        assert "robustkit-example fails when it is imported: ModuleNotFoundError" in done.stderr
        assert "pip uninstall robustkit-example" in done.stderr
