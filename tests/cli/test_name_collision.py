"""Another package named robustkit beside ours, in each way it can lie there, and the cure."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from robustkit.cli import name_collision
from robustkit.cli.doctor_finding import Finding
from robustkit.core import packages
from robustkit.core.packages import not_installed, recorded

OURS = {
    "robustkit/__init__.py": "ours = True\n",
    "robustkit/core/__init__.py": "ours = True\n",
    "robustkit/cli/__init__.py": "def main(): ...\n",
    "INFO/entry_points.txt": "[console_scripts]\nrobustkit = robustkit.cli:main\n",
}
THEIRS = {
    "robustkit/__init__.py": "from .core.trend import fit\n",
    "robustkit/core/__init__.py": "",
    "robustkit/core/trend.py": "def fit(): ...\n",
}
CHECKOUT = {"__editable__.robustkit_eval-0.1.0.pth": "/checkout\n"}
UNINSTALL = ("uninstall", "--yes", "robustkit")
REINSTALL = ("install", "--force-reinstall", "--no-deps")
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, write_wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Put:
    """Unpack a wheel into a folder of the search path, over what is there, as pip does."""
    places: list[Path] = []
    for home in (packages, name_collision):
        monkeypatch.setattr(
            home, "recorded", lambda name: _recorded(name, [str(place) for place in places])
        )

    def unpack(name: str, version: str, files: dict[str, str], folder: str = "site") -> Path:
        site = tmp_path / folder
        if site not in places:
            site.mkdir()
            places.append(site)
        with zipfile.ZipFile(write_wheel(tmp_path, name, version, files)) as archive:
            archive.extractall(site)
        return site

    return unpack


def _recorded(name: str, path: list[str]) -> Distribution | None:
    return next(iter(distributions(name=name, path=path)), None)


def found() -> list[Finding]:
    return list(name_collision.own_files())


class TestOtherProject:
    def test_ours_alone_needs_no_word(self, put: Put) -> None:
        put("robustkit-eval", "0.1.0", OURS)
        assert found() == []

    def test_it_wrote_over_ours(self, put: Put) -> None:
        put("robustkit-eval", "0.1.0", OURS)
        site = put("robustkit", "0.6.0", THEIRS)
        other, mine = found()
        assert other == Finding(
            "other robustkit",
            "broken",
            "robustkit 0.6.0, a package of another project, wrote over files of robustkit-eval "
            f"in {site / 'robustkit'}",
            "pip uninstall --yes robustkit",
            UNINSTALL,
        )
        assert mine == Finding(
            "robustkit-eval",
            "broken",
            "2 installed files are not its own, first robustkit/__init__.py",
            "pip install --force-reinstall --no-deps robustkit-eval==0.1.0",
            (*REINSTALL, "robustkit-eval==0.1.0"),
        )

    def test_ours_wrote_over_it(self, put: Put) -> None:
        put("robustkit", "0.6.0", THEIRS)
        site = put("robustkit-eval", "0.1.0", OURS)
        other, mine = found()
        assert (other.state, other.fix) == ("warning", UNINSTALL)
        assert other.detail.endswith("is installed beside robustkit-eval")
        assert (mine.state, mine.fix) == ("warning", (*REINSTALL, "robustkit-eval==0.1.0"))
        assert mine.detail == (
            "the other robustkit takes 2 of its files along, "
            f"first {site / 'robustkit' / '__init__.py'}"
        )

    @pytest.mark.parametrize("files", [OURS, CHECKOUT])
    def test_it_lies_elsewhere_in_the_search_path(self, put: Put, files: dict[str, str]) -> None:
        put("robustkit-eval", "0.1.0", files)
        site = put("robustkit", "0.6.0", THEIRS, folder="user")
        (other,) = found()  # no file is in both: ours need not be installed again
        assert (other.state, other.fix) == ("broken", UNINSTALL)
        assert f"lies in {site / 'robustkit'}, which may be imported in place of" in other.detail

    def test_it_hides_a_checkout_in_the_same_folder(self, put: Put) -> None:
        put("robustkit-eval", "0.1.0", CHECKOUT)
        put("robustkit", "0.6.0", THEIRS)
        (other,) = found()
        assert (other.state, other.fix) == ("broken", UNINSTALL)

    def test_ours_is_not_installed_at_all(self, put: Put) -> None:
        put("robustkit", "0.6.0", THEIRS)
        (other,) = found()
        assert (other.state, other.fix) == ("broken", UNINSTALL)
        assert not_installed() == (
            "robustkit-eval is not installed, and the distribution `robustkit` 0.6.0 that is "
            "installed is of another project. Run `pip uninstall robustkit`, then "
            "`pip install -e .` in the checkout."
        )


class TestOldName:
    def test_an_old_install_beside_the_new_one(self, put: Put) -> None:
        put("robustkit", "0.1.0", OURS)
        put("robustkit-eval", "0.1.0", OURS)
        other, mine = found()
        assert (other.state, mine.state) == ("warning", "warning")
        assert other.detail.startswith("robustkit 0.1.0, this package under its old name, is")

    def test_an_old_install_alone(self, put: Put) -> None:
        entry = "INFO/entry_points.txt"
        put("robustkit", "0.1.0", {**CHECKOUT, entry: OURS[entry]})
        assert "`robustkit` 0.1.0 that is installed is this package under its old name" in (
            not_installed()
        )

    def test_what_a_build_leaves_in_the_folder_is_no_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info = tmp_path / "robustkit_thing.egg-info"
        info.mkdir()
        (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: robustkit-thing\nVersion: 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert packages.installed("robustkit-thing") is not None
        assert recorded("robustkit-thing") is None


class TestSource:
    """What pip is told to install again is what was installed."""

    @pytest.mark.parametrize(
        ("origin", "wanted"),
        [
            (None, ("robustkit-eval==0.1.0",)),
            ({"url": "file://HERE/a%20b", "dir_info": {"editable": True}}, ("-e", "HERE/a b")),
            ({"url": "file://HERE/a%20b", "archive_info": {}}, ("HERE/a b",)),
            ({"url": "file://HERE/gone.whl", "archive_info": {}}, ("robustkit-eval==0.1.0",)),
            ({"url": "https://host/x.whl", "archive_info": {}}, ("https://host/x.whl",)),
            (
                {"url": "https://host/it.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
                ("git+https://host/it.git@abc",),
            ),
        ],
    )
    def test_its_origin(
        self,
        put: Put,
        tmp_path: Path,
        origin: dict[str, object] | None,
        wanted: tuple[str, ...],
    ) -> None:
        here = tmp_path.as_posix()
        (tmp_path / "a b").touch()
        text = json.dumps(origin).replace("HERE", here)
        more = {"INFO/direct_url.json": text} if origin else {}
        site = put("robustkit-eval", "0.1.0", {**OURS, **more})
        (site / "robustkit" / "core" / "__init__.py").unlink()
        (mine,) = found()
        assert mine.detail == "1 installed files are not its own, first robustkit/core/__init__.py"
        assert mine.fix == (*REINSTALL, *(word.replace("HERE", here) for word in wanted))
