"""The configuration: what it may say, and errors that name file, line, key and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkit.errors import UsageError
from robustkit.gate.config import CheckTable, Config, find, first, line_of, load

WHOLE = """
data = "npz:points.npz"
threat = "linf:8/255"
suite = "quick"
n = 500
seed = 3
baseline = "kept"

[[models]]
model = "pgd_at"

[[models]]
model = "net.py:make"
weights = "w.pt"
mean = [0.5]
threat = "l2:0.5"

[check]
tolerance = 0.02
metrics = ["robust", "clean=0.05"]
undecided = "pass"
max-time = "5m"
max-forwards = 1_000_000
"""


def write(folder: Path, text: str, name: str = "robustkit.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_whole_one_is_read(tmp_path: Path) -> None:
    config = load(write(tmp_path, WHOLE))
    assert (config.data, config.n, config.seed) == ("npz:points.npz", 500, 3)
    assert [entry.model for entry in config.models] == ["pgd_at", "net.py:make"]
    assert config.models[1].threat == "l2:0.5"
    assert config.check == CheckTable.model_validate(
        {
            "tolerance": 0.02,
            "metrics": ["robust", "clean=0.05"],
            "undecided": "pass",
            "max-time": "5m",
            "max-forwards": 1_000_000,
        }
    )
    assert config.place(config.baseline) == tmp_path / "kept"
    assert config.place("/elsewhere") == Path("/elsewhere")


def test_the_table_of_pyproject_is_the_same(tmp_path: Path) -> None:
    text = WHOLE.replace("[[models]]", "[[tool.robustkit.models]]")
    text = "[tool.robustkit]" + text.replace("[check]", "[tool.robustkit.check]")
    inside = load(write(tmp_path, text, "pyproject.toml"))
    alone = load(write(tmp_path, WHOLE))
    assert inside.model_copy(update={"path": None}) == alone.model_copy(update={"path": None})


def test_without_any_the_defaults_hold(tmp_path: Path) -> None:
    assert load(None) == Config()
    write(tmp_path, "[tool.other]\n", "pyproject.toml")
    found = find(tmp_path)
    assert found is None or tmp_path not in found.parents


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("[tool.robustkit]\n", True),
        ("[[tool.robustkit.models]]\n", True),
        ('tool.robustkit.data = "bundled"\n', True),
        ("# see tool.robustkit in robustkit.toml\n", False),
    ],
)
def test_a_comment_configures_nothing(tmp_path: Path, text: str, sets: bool) -> None:
    path = write(tmp_path, text, "pyproject.toml")
    assert (find(tmp_path) == path) == sets


def test_the_nearest_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    outer = write(tmp_path, "[tool.robustkit]\n", "pyproject.toml")
    assert find(inner) == outer
    own = write(tmp_path / "a", "")
    assert find(inner) == own


@pytest.mark.parametrize("pyproject", [False, True])
def test_the_first_one_is_valid(tmp_path: Path, pyproject: bool) -> None:
    text = first(
        model='odd"name', data="bundled", threat="linf:0.1", suite="quick", pyproject=pyproject
    )
    name = "pyproject.toml" if pyproject else "robustkit.toml"
    config = load(write(tmp_path, text, name))
    assert [entry.model for entry in config.models] == ['odd"name']
    assert config.check.metrics == ["robust", "flags"]


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("seed = 3", "sede = 3", 6, "Unknown key 'sede'. Did you mean 'seed'?"),
        ("tolerance", "tolerence", 19, "Did you mean 'check.tolerance'?"),
        ("mean = [0.5]", "maen = [0.5]", 15, "'models.1.maen'. Did you mean 'models.1.mean'?"),
        ('"linf:8/255"', '"linf:0.1.2"', 3, "or 'l0:10', got 'linf:0.1.2'."),
        ('"linf:8/255"', '"linf:-1"', 3, "threat: eps must be positive"),
        ('"l2:0.5"', '"l9:0.5"', 16, "models.1.threat: Unknown norm 'l9'"),
        ("0.02", "2.0", 19, 'check.tolerance: Input should be less than 1, got 2.0. Write'),
        ("n = 500", 'n = "many"', 5, "n: Input should be a valid integer, got 'many'"),
        ("clean=0.05", "claen", 20, "Unknown metric 'claen'. Did you mean 'clean'?"),
        ("clean=0.05", "clean=much", 20, "could not convert string to float"),
        ('"5m"', '"soon"', 22, "expected a time such as 90, 30s, 5m or 1h, got 'soon'"),
        ('"pass"', '"maybe"', 21, "Write \"error\", \"pass\" or \"fail\"."),
        ('model = "pgd_at"', 'weights = "w"', 9, "models.0.model is missing: write model = ..."),
        ("1_000_000", "0", 23, "check.max-forwards: Input should be greater"),
    ],
)  # fmt: skip
def test_errors_name_line_key_and_cure(
    tmp_path: Path, old: str, new: str, line: int, told: str
) -> None:
    text = WHOLE.replace(old, new, 1)
    assert text != WHOLE
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert told in str(caught.value)


def test_an_unknown_suite_is_refused_and_named_once(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "bundled"\nsuite = "quik"\n')
    with pytest.raises(UsageError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:2: suite: Unknown suite 'quik'. Did you mean")
    assert str(caught.value).count("quik") == 1


def test_no_value_is_told_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(write(tmp_path, 'threat = "linf:0.1.2"\n'))
    assert str(caught.value).count("linf:0.1.2") == 1


def test_nesting_without_end_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "robustkit.toml"
    path.write_text(f"n = {'[' * 1500}{']' * 1500}\n")
    with pytest.raises(UsageError, match=r"robustkit\.toml: .* nested hundreds deep"):
        load(path)


def test_a_sample_is_proportional_or_balanced(tmp_path: Path) -> None:
    path = tmp_path / "robustkit.toml"
    path.write_text('n = 5\nsample = "balanced"\n')
    assert (load(path).sample, Config().sample) == ("balanced", "proportional")
    path.write_text('sample = "some"\n')
    with pytest.raises(UsageError, match=r"robustkit\.toml:1: sample: .*proportional"):
        load(path)


def test_broken_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "a"\nseed == 3\n')
    with pytest.raises(UsageError, match=r"robustkit\.toml: expected TOML, got an error: .*line 2"):
        load(path)
    with pytest.raises(UsageError, match="expected a readable text file"):
        load(tmp_path / "gone.toml")


def test_lines_are_found_in_every_way_of_writing() -> None:
    text = 'a = 1\n[b]\n"c" = 2\n[b.d]\ne = 3\n[[f]]\ng = 1\n[[f]]\n  g = 2\n[h]\ni.j = 1\n'
    text += "k = {l = 1}\n"
    lines = {
        ("a",): 1,
        ("b", "c"): 3,
        ("b", "d", "e"): 5,
        ("f", 0, "g"): 7,
        ("f", 1, "g"): 9,
        ("h", "i", "j"): 11,
        ("h", "k", "l"): 12,
        ("b", "missing"): 2,
        ("nowhere",): 1,
    }
    assert {keys: line_of(text, keys) for keys in lines} == lines
