"""YAML as no two readers read it differently, and nothing but ConfigError for what is none."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.config.document import MAX_BYTES, MAX_DEPTH, Allowance, parse_document, parse_documents
from authz.model import ConfigError


def value_of(text: str) -> Any:
    return parse_document(text, file="f").value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: '1'", {"a": "1"}),
        ("a: 0o17", {"a": 15}),
        ("a: 0x1f", {"a": 31}),
        ("a: 017", {"a": 17}),
        ("a: 1.5e3", {"a": 1500.0}),
        ("a: .5", {"a": 0.5}),
        ("a: yes", {"a": "yes"}),
        ("a: True", {"a": True}),
        ("a: ~", {"a": None}),
        ("a: ''", {"a": ""}),
        ("a: 12:30:00", {"a": "12:30:00"}),
        ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
        ("- &x [1]\n- *x\n", [[1], [1]]),
        ("1: a", {"1": "a"}),
        ("", None),
    ],
)
def test_values(text: str, value: object) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: .inf", "is no number"),
        ("a: .nan", "is no number"),
        ("a: 1e999", "is no number"),
        ("? [a]\n: b", "a key that is no text"),
        ("a: *x", "has no anchor before it"),
        ("a: !!str b", "write the value without a tag"),
        ("a: \x01", "cannot be printed"),
        ("[" * (MAX_DEPTH + 5), "nested more than"),
        ("a: " + "x" * MAX_BYTES, "larger than"),
        ("\ud800", "surrogate"),
        ("a: b: c", "not valid yaml"),
        ("\t- a", "not valid yaml"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        value_of(text)


def test_lines_are_those_of_the_keys() -> None:
    document = parse_document("a:\n  b:\n    - c\n    - d: 1\n", file="f")
    assert document.line(("a", "b", 1, "d")) == 4
    assert document.line(("a", "b", 0)) == 3
    assert document.line(("a", "missing")) == 1
    assert document.line(("nothing",)) == 1


@given(st.text(max_size=60))
def test_only_config_errors_escape(text: str) -> None:
    with contextlib.suppress(ConfigError):
        value_of(text)


def test_several_documents_have_the_lines_of_the_whole_text() -> None:
    """Also the problems; an empty document is none."""
    text = "# first\na: 1\n---\n---\n# second\nb:\n  - c\nb: 2\n...\n---\n- d\n"
    first, second, third = parse_documents(text, file="f")
    assert (first.value, first.line(()), first.line(("a",))) == ({"a": 1}, 2, 2)
    assert (second.value, second.line(("b",)), second.problems[0].line) == ({"b": 2}, 6, 8)
    assert (third.value, third.line((0,)), third.problems) == (["d"], 11, ())
    assert parse_documents("---\n---\n", file="f") == []


@pytest.mark.parametrize(
    ("text", "kubernetes", "rules"),
    [
        ("yes", True, "yes"),
        ("ON", True, "ON"),
        ("y", True, "y"),
        ("Off", False, "Off"),
        ("n", False, "n"),
        ("'yes'", "yes", "yes"),
        ("yEs", "yEs", "yEs"),
        ("true", True, True),
    ],
)
def test_only_files_of_kubernetes_have_the_booleans_of_yaml_1_1(text: str, kubernetes: object, rules: object) -> None:
    assert parse_documents(f"a: {text}\n", file="f")[0].value == {"a": kubernetes}
    assert parse_document(f"a: {text}\n", file="f").value == {"a": rules}


def test_texts_that_are_read_together_share_what_aliases_may_make() -> None:
    text = "a: &x [1, 2]\nb: [*x, *x]\n"  # each alias makes two values
    for values, good in ((11, False), (12, True)):
        allowance = Allowance(values)
        parse_documents(text, file="f", allowance=allowance)
        parse_documents(text, file="f", allowance=allowance)
        if good:
            parse_documents(text, file="f", allowance=allowance)
            continue
        with pytest.raises(ConfigError, match="write fewer aliases"):
            parse_documents(text, file="f", allowance=allowance)


def test_an_anchor_ends_with_its_document() -> None:
    assert parse_documents("a: &x 1\nb: *x\n", file="f")[0].value == {"a": 1, "b": 1}
    with pytest.raises(ConfigError, match="f:3: an alias has no anchor before it"):
        parse_documents("a: &x 1\n---\nb: *x\n", file="f")
