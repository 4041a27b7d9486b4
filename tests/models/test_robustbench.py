"""RobustBench beside torchattacks and pyautoattack: its models, its faults, its weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PathDistribution
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.core.packages import altered, installed
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.checkpoints import digest
from robustkit.models.load import load_model
from robustkit.models.zoo import robustbench

LACKING = [name for name in ("robustbench", "pyautoattack") if installed(name) is None]
DIST = installed("robustbench")
CLOBBERED = DIST is not None and any(f.startswith("robustbench/") for f in altered(DIST))
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
    pytest.mark.skipif(CLOBBERED, reason="torchattacks has overwritten robustbench: doctor --fix"),
]


@pytest.fixture(scope="module")
def photos() -> Dataset:
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return from_arrays("photos", x, np.arange(4), classes=10)


@pytest.fixture
def x(photos: Dataset) -> Tensor:
    return photos.fetch(range(4))[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "robustkit" / "robustbench" / "cifar10" / "Linf"


def tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


Downloads = list[str]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Downloads]:
    """Add a tiny model to the zoo, and answer its downloads with a file of one's own."""
    zoo = robustbench._zoo()
    names = zoo.models[zoo.enums.BenchmarkDataset.cifar_10][zoo.enums.ThreatModel.Linf]
    monkeypatch.setitem(names, "Made2026Up", {"model": tiny, "gdrive_id": "none"})
    utils = sys.modules["robustbench.utils"]

    def serve(content: Any) -> Downloads:
        requests: Downloads = []

        def download(id: str, path: Path) -> None:
            requests.append(id)
            if isinstance(content, bytes):
                Path(path).write_bytes(content)
            elif isinstance(content, Exception):
                raise content
            else:
                torch.save(content, path)

        monkeypatch.setattr(utils, "download_gdrive_new", download)
        return requests

    return serve


class TestModels:
    @pytest.mark.slow
    def test_a_model_of_the_zoo_with_weights_of_a_file(
        self, photos: Dataset, x: Tensor, tmp_path: Path
    ) -> None:
        zoo = robustbench._zoo()
        models = zoo.models[zoo.enums.BenchmarkDataset.cifar_10][zoo.enums.ThreatModel.Linf]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = models["Carmon2019Unlabeled"]["model"]().eval()
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / "w.pt")
        name = "robustbench:cifar10/Linf/Carmon2019Unlabeled"
        found = load_model(name, data=photos, weights=tmp_path / "w.pt")
        assert found.name == name
        assert not found.model.training
        with torch.no_grad():
            torch.testing.assert_close(found.model(x[:2]), model(x[:2]))
        assert "RobustBench 1.1.1" in found.notes[0]
        with pytest.raises(UsageError, match="brings its own preprocessing"):
            load_model(name, data=photos, weights=tmp_path / "w.pt", mean=(0.5,))

    def test_weights_are_downloaded_once_and_watched(
        self, photos: Dataset, x: Tensor, cache: Path, served: Callable[[Any], Downloads]
    ) -> None:
        model = tiny()
        requests = served(model.state_dict())
        for _ in range(2):
            found = load_model("robustbench:Made2026Up", data=photos)
            torch.testing.assert_close(found.model(x), model(x))
        assert requests == ["none"]
        note = (cache / "Made2026Up.pt.sha256").read_text()
        assert note.split() == [digest(cache / "Made2026Up.pt"), "Made2026Up.pt"]
        torch.save(tiny().state_dict(), cache / "Made2026Up.pt")
        with pytest.raises(UsageError, match="has changed since it was downloaded"):
            load_model("robustbench:Made2026Up", data=photos)

    def test_an_error_page_in_place_of_weights_is_not_kept(
        self, photos: Dataset, cache: Path, served: Callable[[Any], Downloads]
    ) -> None:
        served(b"<!DOCTYPE html><title>Quota exceeded</title>")
        with pytest.raises(UsageError, match=r"an error page.*--weights FILE"):
            load_model("robustbench:Made2026Up", data=photos)
        assert list(cache.iterdir()) == []

    def test_without_a_network_it_says_where_weights_may_be_put(
        self, photos: Dataset, cache: Path, served: Callable[[Any], Downloads]
    ) -> None:
        served(OSError("Name or service not known"))
        with pytest.raises(UsageError, match="Name or service not known") as caught:
            load_model("robustbench:Made2026Up", data=photos)
        assert str(cache) in str(caught.value)

    def test_pickled_objects_are_refused(
        self, photos: Dataset, cache: Path, served: Callable[[Any], Downloads]
    ) -> None:
        served({"state_dict": tiny().state_dict(), "optimizer": nn.Linear(1, 1)})
        with pytest.raises(UsageError, match="pickled objects"):
            load_model("robustbench:Made2026Up", data=photos)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("cifar10/Linf/Carmon2019Unlabelled", "Did you mean 'Carmon2019Unlabeled'"),
            ("cifar11/Linf/Carmon2019Unlabeled", "Did you mean 'cifar10'"),
            ("cifar10/L1/Carmon2019Unlabeled", "Unknown RobustBench threat model 'L1'"),
            ("cifar10/Linf", "expected robustbench:DATASET/THREAT/NAME"),
            ("cifar10/Linf/Carmon2019Unlabeled(a=1)", "has no option 'a'"),
        ],
    )
    def test_names_that_are_not_there(self, name: str, message: str, photos: Dataset) -> None:
        with pytest.raises(UsageError, match=message):
            load_model(f"robustbench:{name}", data=photos)

    def test_an_ensemble_takes_no_single_file(self, photos: Dataset, tmp_path: Path) -> None:
        (tmp_path / "w.pt").touch()
        with pytest.raises(UsageError, match="is an ensemble of 3 files"):
            load_model("robustbench:Chen2020Adversarial", data=photos, weights=tmp_path / "w.pt")


def run_alone(processes: BaseContext, code: str) -> None:
    """Run code in a process that has imported PyTorch alone, and raise its error."""
    with ProcessPoolExecutor(1, mp_context=processes) as process:
        process.submit(exec, code, {"__name__": "alone"}).result()


class TestFaults:
    def test_overwritten_files_are_found_before_they_run(
        self, photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "robustbench-1.1.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\nVersion: 1.1.1")
        (folder / "RECORD").write_text("robustbench/eval.py,sha256=AAAA,1\n")
        monkeypatch.setattr(robustbench, "installed", lambda name: PathDistribution(folder))
        with pytest.raises(UsageError, match=r"torchattacks overwrites.*robustkit doctor --fix"):
            load_model("robustbench:Standard", data=photos)

    def test_absence_is_told_from_the_copy_inside_torchattacks(
        self, photos: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(robustbench, "installed", lambda name: None)
        with pytest.raises(UsageError, match=r"robustkit-eval\[robustbench\].*brings an old copy"):
            load_model("robustbench:Standard", data=photos)

    @pytest.mark.slow
    @pytest.mark.parametrize("hide", [True, False])
    def test_it_is_imported_with_and_without_pkg_resources(
        self, hide: bool, processes: BaseContext
    ) -> None:
        """In a process of its own: modules stay imported. The shim leaves no trace."""
        code = (
            "import sys, importlib.util as u\n"
            "assert 'pkg_resources' not in sys.modules\n"
            "real = u.find_spec\n"
            f"gone = ['pkg_resources'] * {hide}\n"
            "u.find_spec = lambda n, *a: None if n in gone else real(n, *a)\n"
            "from robustkit.models.zoo import robustbench\n"
            "zoo = robustbench._zoo()\n"
            "import robustbench.loaders as loaders\n"
            "path = loaders.pkg_resources.resource_filename('robustbench.loaders', 'x.txt')\n"
            "assert path.endswith('robustbench/x.txt') and len(zoo.models) == 3\n"
            f"assert not ({hide} and 'pkg_resources' in sys.modules)\n"
        )
        run_alone(processes, code)

    @pytest.mark.slow
    @pytest.mark.skipif(
        importlib.util.find_spec("torchattacks") is None, reason="not installed: torchattacks"
    )
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_the_three_work_in_one_process_in_any_order(
        self, order: tuple[int, ...], processes: BaseContext
    ) -> None:
        steps = [
            "from robustkit.models.zoo import robustbench as r; assert len(r._zoo().models) == 3",
            "import torchattacks; assert len(torchattacks.PGD(m, steps=1)(x, y)) == 2",
            "import pyautoattack as p; a = p.AutoAttack(m, eps=0.1, seed=0, version='custom', "
            "attacks=['apgd-ce']); a.apgd.n_iter = 2; "
            "assert len(a.run_standard_evaluation(x, y)[0]) == 2",
        ]
        code = "import sys, torch, warnings; warnings.simplefilter('ignore')\n"
        code += "brought = {'robustbench', 'torchattacks', 'pyautoattack', 'autoattack'}\n"
        code += "assert not brought & set(sys.modules)\n"
        code += "m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()\n"
        code += "x = torch.rand(2, 3, 2, 2); y = m(x).argmax(1)\n"
        code += "\n".join(steps[i] for i in order)
        run_alone(processes, code)
