"""Specs: what is printed is read back, and what cannot be read is said so."""

from __future__ import annotations

import keyword
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.core.spec import Spec, Value
from robustkit.errors import UsageError

names = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(
    lambda name: not keyword.iskeyword(name)
)
leaves: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(["true", "None", "FALSE", "lambda", "inf", "nan", "ce", "a b", "it's", "ﬁ"]),
)


def options(values: st.SearchStrategy[Value], least: int) -> st.SearchStrategy[tuple[object, ...]]:
    found = st.dictionaries(names, values, min_size=least, max_size=3)
    return found.map(lambda chosen: tuple(sorted(chosen.items())))


def extend(values: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    nested = st.builds(Spec, names, options(values, 1))
    return st.one_of(nested, st.lists(values, max_size=3).map(tuple))


specs = st.builds(Spec, names, options(st.recursive(leaves, extend, max_leaves=6), 0))


@given(specs)
def test_what_is_printed_is_read_back(spec: Spec) -> None:
    text = str(spec)
    assert Spec.parse(text) == spec
    assert str(Spec.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("bundled-color", "bundled-color"),
        ("some-pack-name (b=2, a=1)", "some-pack-name(a=1, b=2)"),
        ("apgd", "apgd"),
        (" apgd ( ) ", "apgd"),
        ("apgd(steps=50, loss=dlr)", "apgd(loss=dlr, steps=50)"),
        ("apgd(loss='dlr')", "apgd(loss=dlr)"),
        ("pgd(random_start=false)", "pgd(random_start=False)"),
        ("a(x=none, y=True)", "a(x=None, y=True)"),
        ("a(x='true')", "a(x='true')"),
        ("a(x=8/255)", f"a(x={8 / 255!r})"),
        ("a(x=-3, y=-0.5)", "a(x=-3, y=-0.5)"),
        ("a(x=[1, 2.5], y=(3,))", "a(x=(1, 2.5), y=(3,))"),
        ("eot(inner=pgd(steps=5), samples=3)", "eot(inner=pgd(steps=5), samples=3)"),
        ("eot(inner=pgd())", "eot(inner=pgd)"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(Spec.parse(text)) == canonical


def test_values_have_python_types() -> None:
    spec = Spec.parse("a(b=1/4, c=true, d=none, e=word, f=f(g=2), h=-1)")
    nested = Spec("f", (("g", 2),))
    assert dict(spec.options) == {
        "b": 0.25,
        "c": True,
        "d": None,
        "e": "word",
        "f": nested,
        "h": -1,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "apgd(",
        "apgd(5)",
        "apgd(steps=5, steps=6)",
        "apgd(**more)",
        "apgd(*more)",
        "package.apgd",
        "package.apgd(steps=5)",
        "5",
        "True",
        "a; b",
        "a\nb",
        "a b",
        "a(x=1+1)",
        "a(x=1/0)",
        "a(x=b/2)",
        "a(x=b.c)",
        "a(x=1e999)",
        "a(x=__import__('os'))",
        "a(x=[i for i in y])",
        "a(x=lambda: 1)",
        "a(x=b'bytes')",
        "a(x=3j)",
        "a(x=f'{y}')",
        "a(x={1: 2})",
        "a\0",
        "a(x=" + "-" * 20000 + "1)",
        "a(x=" + "(" * 500 + ")" * 500 + ")",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Spec.parse(text)
    message = str(caught.value)
    assert message.startswith(
        f"expected a name or a call such as 'apgd(loss=dlr, steps=50)', got {text!r} ("
    )
