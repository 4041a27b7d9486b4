"""The other `robustkit`: another project's package, or this one installed under its old name.

pip lets two distributions write into one folder. Whichever came last has its files there, and
uninstalling either one deletes the files that both list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from robustkit.cli.doctor_finding import Finding, State, curable
from robustkit.core.packages import DISTRIBUTION, altered, is_robustkit, recorded, reinstall

_FACE = "robustkit/__init__.py"


def own_files() -> Iterator[Finding]:
    """Look whether robustkit's files are its own, and whether another package has its name."""
    mine, other = recorded(DISTRIBUTION), recorded("robustkit")
    changed = [file for file in altered(mine) if file.startswith("robustkit/")] if mine else []
    shadowed = other is not None and _shadows(other, mine)
    state: State = "broken" if changed or shadowed else "warning"
    if other:
        fix: tuple[str, ...] = ("uninstall", "--yes", "robustkit")
        yield curable("other robustkit", state, _told(other, bool(changed), shadowed), fix)
    if mine is None:
        return
    shared = sorted(_files(mine) & _files(other)) if other else []
    fix = reinstall(*_source(mine))
    if changed:
        told = f"{len(changed)} installed files are not its own, first {changed[0]}"
        yield curable(DISTRIBUTION, state, told, fix)
    elif shared:
        told = f"the other robustkit takes {len(shared)} of its files along, first {shared[0]}"
        yield curable(DISTRIBUTION, state, told, fix)


def _files(dist: Distribution) -> set[str]:
    """Return where the files of a distribution lie, without those that Python compiles."""
    places = (dist.locate_file(file) for file in dist.files or () if file.suffix != ".pyc")
    return {os.path.normpath(str(place)) for place in places}


def _shadows(other: Distribution, mine: Distribution | None) -> bool:
    """Tell whether `import robustkit` may find a folder of the other one in place of ours."""
    face = os.path.normpath(str(other.locate_file(_FACE)))
    return face in _files(other) and (mine is None or face not in _files(mine))


def _told(other: Distribution, changed: bool, shadowed: bool) -> str:
    old = is_robustkit(other)
    whose = "this package under its old name" if old else "a package of another project"
    folder = Path(str(other.locate_file("robustkit")))
    if changed:
        fault = f"wrote over files of {DISTRIBUTION} in {folder}"
    elif shadowed:
        fault = f"lies in {folder}, which may be imported in place of {DISTRIBUTION}"
    else:
        fault = f"is installed beside {DISTRIBUTION}"
    return f"robustkit {other.version}, {whose}, {fault}"


def _source(mine: Distribution) -> tuple[str, ...]:
    """Return what pip is to be given to install the same again: a release, a file or a checkout."""
    origin = json.loads(mine.read_text("direct_url.json") or '{"url": ""}')
    url = urlsplit(str(origin["url"]))
    path = url2pathname(url.path) if url.scheme == "file" else ""
    if not url.scheme or (path and not Path(path).exists()):  # such as a wheel that was built once
        return (f"{DISTRIBUTION}=={mine.version}",)
    if path:
        return ("-e", path) if origin.get("dir_info", {}).get("editable") else (path,)
    if vcs := origin.get("vcs_info"):
        return (f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}",)
    return (url.geturl(),)
