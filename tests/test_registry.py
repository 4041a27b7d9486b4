"""The registry: what it refuses, in which words, and how packs are found."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pytest

import robustkit.registry as home
from robustkit.core.spec import Spec
from robustkit.errors import RobustkitError, UsageError
from robustkit.registry import Registry, attacks, defenses


@pytest.fixture
def toys() -> Registry[Any]:
    return Registry("toy")


def make(module: str, name: str = "Toy", *, plain: bool = False) -> type[Any]:
    """A dataclass with two options that claims to live in `module`."""
    fields = {
        "steps": 10,
        "kind": "a",
        "__annotations__": {"steps": int, "kind": Literal["a", "b"]},
    }
    made = type(name, (), {**fields, "__doc__": "A toy.\n\nLonger.", "__module__": module})
    return made if plain else dataclass(frozen=True)(made)


def test_registered_things_are_listed_looked_up_and_built(toys: Registry[Any]) -> None:
    toys.register("zebra", cites="x")(make("one"))
    toys.register("apple")(make("two"))
    assert list(toys) == ["apple", "zebra"]
    assert "zebra" in toys
    assert "lion" not in toys
    entry = toys.entry("zebra")
    assert (entry.facts, entry.summary) == ({"cites": "x"}, "A toy.")
    assert entry.options == {"steps": 10, "kind": "a"}
    built = toys.build("zebra(kind=b)")
    assert (built.steps, built.kind) == (10, "b")
    assert toys.build(Spec("zebra", (("steps", 3),))).steps == 3


def test_a_clash_names_both_files(toys: Registry[Any]) -> None:
    toys.register("pgd")(make("first"))
    with pytest.raises(RobustkitError) as caught:
        toys.register("pgd")(make("second"))
    assert str(caught.value) == (
        "Toy 'pgd' is already registered by first.Toy; second.Toy must choose another name."
    )
    assert toys.entry("pgd").target.__module__ == "first"


def test_a_clash_inside_one_file_is_an_error_too(toys: Registry[Any]) -> None:
    toys.register("pgd")(make("first", "One"))
    with pytest.raises(RobustkitError, match="already registered"):
        toys.register("pgd")(make("first", "Two"))


def test_a_file_that_is_imported_again_replaces_itself(toys: Registry[Any]) -> None:
    toys.register("pgd")(make("first"))
    again = toys.register("pgd")(make("first"))
    assert toys.entry("pgd").target is again


def test_origin_is_file_and_line_where_there_is_a_file(toys: Registry[Any]) -> None:
    @toys.register("here")
    @dataclass(frozen=True)
    class Here:
        """Here."""

    module, _, line = toys.entry("here").origin.rpartition(":")
    assert module == Here.__module__
    assert int(line) > 1


def test_only_dataclasses_register(toys: Registry[Any]) -> None:
    with pytest.raises(RobustkitError) as caught:
        toys.register("pgd")(make("first", plain=True))
    assert str(caught.value) == "first.Toy: toy 'pgd' must be a frozen dataclass."
    assert "pgd" not in toys


def test_a_miss_says_what_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        attacks.build("apdg")
    listing = ", ".join(attacks)
    assert str(caught.value) == f"Unknown attack 'apdg'. Did you mean 'apgd'? Known: {listing}."


def test_a_miss_without_a_likely_name(toys: Registry[Any]) -> None:
    with pytest.raises(UsageError, match=r"^Unknown toy 'xyz'\. Known: none\.$"):
        toys.entry("xyz")
    toys.register("apple")(make("one"))
    with pytest.raises(UsageError, match=r"^Unknown toy 'xyz'\. Known: apple\.$"):
        toys.build("xyz(steps=3)")


def test_an_unknown_option_lists_the_known_ones(toys: Registry[Any]) -> None:
    toys.register("apple")(make("one"))
    with pytest.raises(UsageError) as caught:
        toys.build("apple(step=3)")
    assert str(caught.value) == "Toy 'apple' has no option 'step'. Its options: kind, steps."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "apgd(steps=0)",
            "Attack 'apgd(steps=0)', option steps: "
            "Input should be greater than or equal to 1, got 0.",
        ),
        (
            "apgd(steps=many)",
            "Attack 'apgd(steps=many)', option steps: Input should be a valid integer, "
            "unable to parse string as an integer, got 'many'.",
        ),
        (
            "apgd(loss=drl)",
            "Attack 'apgd(loss=drl)', option loss: Input should be 'ce', 'dlr', 'targeted_dlr', "
            "'margin', 'targeted_margin' or 'probability', got 'drl'.",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_option(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        attacks.build(text)
    assert str(caught.value) == sentence


def test_a_nested_spec_reaches_the_option_as_text(toys: Registry[Any]) -> None:
    @toys.register("wrapper")
    @dataclass(frozen=True)
    class Wrapper:
        inner: str = ""

    assert toys.build("wrapper(inner=pgd(steps=5))").inner == "pgd(steps=5)"
    assert isinstance(toys.build("wrapper"), Wrapper)


def test_every_registered_thing_has_a_summary_and_its_source() -> None:
    for registry in (attacks, defenses, home.losses, home.suites, home.datasets):
        assert list(registry)
        for entry in registry.entries():
            assert entry.summary.endswith(".") or entry.summary
            assert "cites" in entry.facts
    assert all(isinstance(entry.facts["white_box"], bool) for entry in attacks.entries())


class Point:
    """An entry point of another distribution."""

    value = module = "elsewhere"
    dist = None

    def __init__(self, action: Any) -> None:
        self.load = action


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Point]]:
    """The registry before its first use; the test fills the list of entry points."""
    points: list[Point] = []
    attacks.entries()
    own = [point for point in entry_points(group=home.GROUP) if home._ours(point)]
    asked: list[str] = []

    def found(group: str) -> list[Any]:
        asked.append(group)
        return [*points, *own]

    monkeypatch.setattr(home, "_loaded", [])
    monkeypatch.setattr(home, "entry_points", found)
    monkeypatch.setattr(attacks, "_entries", dict(attacks._entries))
    yield points
    assert set(asked) == {"robustkit.packs"}


def test_entry_points_are_loaded_once_on_first_use(unloaded: list[Point]) -> None:
    loads: list[int] = []

    def load() -> types.ModuleType:
        loads.append(1)
        attacks.register("foreign", white_box=True)(make("elsewhere"))
        return sys.modules[__name__]

    unloaded.append(Point(load))
    assert "foreign" in attacks
    assert attacks.build("foreign(steps=4)").steps == 4
    assert loads == [1]


def test_a_pack_that_fails_is_tried_again(unloaded: list[Point]) -> None:
    def fail() -> None:
        raise ImportError("broken pack")

    unloaded.append(Point(fail))
    for _ in range(2):
        with pytest.raises(RobustkitError, match="fails when it is imported: ImportError: broken"):
            attacks.entry("apgd")
    unloaded.clear()
    assert attacks.entry("apgd").name == "apgd"


@pytest.mark.parametrize("found", [[], [EntryPoint("toys", "robustkit.no_such_pack", home.GROUP)]])
def test_a_checkout_that_is_not_installed_says_so(
    found: list[EntryPoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_loaded", [])
    monkeypatch.setattr(home, "entry_points", lambda group: found)
    with pytest.raises(RobustkitError, match=r"not installed.*Run `pip install -e \.` in it"):
        attacks.entries()


@pytest.mark.parametrize("text", ["corruption", " Corruption: "])
def test_a_kind_of_threat_alone_is_answered_with_its_forms(text: str) -> None:
    with pytest.raises(UsageError, match="such as corruption:all or corruption:fog@3 or"):
        home.read_threat(text)
