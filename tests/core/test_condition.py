"""A ``when`` holds only if its whole result is a true bool: an error is never an answer."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authz.core.condition import MAX_EXPRESSION_CHARS, Facts, parse_condition
from authz.model import Reason, Rejected, Role
from tests.core.build import principal, request

ASKED = replace(
    request("POST", "blue.example/a%20b/c", x_one="1"),
    scheme="https",
    protocol="HTTP/2",
    source_principal="spiffe://x",
    context={"tier": "gold"},
)
WHO = principal(
    claims={"sub": "alice", "n": 3, "big": 2**64, "list": ["a"], "nested": {"x": {"y": True}}, "lone": "\ud800"},
    roles=frozenset({Role("reader"), Role("admin", "orders")}),
    groups=frozenset({"staff"}),
    scopes=frozenset({"read"}),
    email="a@example.com",
)
FACTS = Facts(request=ASKED, principal=WHO, host={"tenant": "blue"}, path={"user": "alice"}, address="192.0.2.1")


def outcome(text: str, facts: Facts = FACTS) -> Reason | None:
    try:
        parse_condition(text).check(facts)
    except Rejected as rejected:
        return rejected.reason
    return None


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "claims.sub == path.user && host.tenant == 'blue'",
        "claims['sub'] == 'alice'",
        "claims.n > 2 && 'a' in claims.list && claims.nested.x.y",
        "request.method == 'POST' && request.path == '/a b/c' && request.host == 'blue.example'",
        "request.scheme == 'https' && request.protocol == 'HTTP/2' && request.headers['x-one'] == '1'",
        "principal.provider == 'shop' && principal.issuer.startsWith('https://') && principal.subject == 'alice'",
        "principal.roles == ['reader'] && principal.groups == ['staff'] && principal.scopes == ['read']",
        "principal.client_id == 'web' && principal.email == 'a@example.com'",
        "source.address == '192.0.2.1' && source.principal == 'spiffe://x'",
        "context.tier == 'gold'",
        "claims.list.all(each, each == 'a')",
        "has(claims.sub) && !has(claims.missing)",
        "{'alice': true}[claims.sub]",
        "[claims.sub, 'x'].size() == 2",
        "false || claims.sub == 'alice'",
        "true".ljust(MAX_EXPRESSION_CHARS),
    ],
)
def test_what_holds(text: str) -> None:
    assert outcome(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("false", Reason.CONDITION_FALSE),
        ("claims.sub == 'bob'", Reason.CONDITION_FALSE),
        ("claims.missing == 'x'", Reason.CONDITION_ERROR),
        ("claims.missing", Reason.CONDITION_ERROR),
        ("claims.sub", Reason.CONDITION_ERROR),
        ("claims.n", Reason.CONDITION_ERROR),
        ("claims.list", Reason.CONDITION_ERROR),
        ("claims.nested.x.z", Reason.CONDITION_ERROR),
        ("claims.n / 0 == 1", Reason.CONDITION_ERROR),
        ("!(claims.missing == 'x')", Reason.CONDITION_ERROR),
        ("claims.missing == 'x' || false", Reason.CONDITION_ERROR),
        ("claims.big > 1", Reason.CONDITION_ERROR),
        ("claims.lone == 'x'", Reason.CONDITION_ERROR),
        ("size(claims) > 0", Reason.CONDITION_ERROR),
        ("request.headers['missing'] == ''", Reason.CONDITION_ERROR),
        ("host.missing == ''", Reason.CONDITION_ERROR),
    ],
)
def test_what_does_not(text: str, reason: Reason) -> None:
    assert outcome(text) is reason


def test_nobody_and_nowhere_are_missing_and_not_empty() -> None:
    nobody = replace(FACTS, principal=None, address=None)
    assert outcome("claims.sub == ''", nobody) is Reason.CONDITION_ERROR
    assert outcome("principal.subject == ''", nobody) is Reason.CONDITION_ERROR
    assert outcome("source.address == ''", nobody) is Reason.CONDITION_ERROR
    assert outcome("!has(claims.sub) && !has(principal.subject) && !has(source.address)", nobody) is None
    bare = replace(FACTS, principal=principal(subject=None, client_id=None))
    assert outcome("principal.subject == ''", bare) is Reason.CONDITION_ERROR


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("claims.sub == path.user", {"claims": {"sub"}, "path": {"user"}}),
        ("claims['a'] == 'x' && claims.b == 'y'", {"claims": {"a", "b"}}),
        ("claims[path.user] == 'x'", {"claims": None, "path": {"user"}}),
        ("claims.a == 'x' && size(claims) > 1", {"claims": None}),
        ("size(claims) > 1 && claims.a == 'x'", {"claims": None}),
        ("[1].all(each, each == claims.n)", {"claims": {"n"}}),
        ("true", {}),
    ],
)
def test_only_what_is_named_is_handed_over(text: str, uses: dict[str, set[str] | None]) -> None:
    assert {name: None if its is None else set(its) for name, its in parse_condition(text).uses.items()} == uses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a valid expression"),
        ("claims.", "not a valid expression"),
        ("other.x == third.x", "not a valid expression: 1:6: undeclared reference to 'other.x'"),
        ("1 + 1", "not true or false"),
        ("'a'", "not true or false"),
        ("'\ud800' == 'a'", "an unpaired surrogate"),
        ("true" + " " * MAX_EXPRESSION_CHARS, "longer than 4096"),
    ],
)
def test_what_is_no_condition_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_condition(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ODD = parse_condition("claims.x == 'alice' || claims.x.y == 1")


@given(JSON)
def test_only_rejected_escapes(value: Any) -> None:
    facts = replace(FACTS, principal=principal(claims={"x": value}))
    try:
        ODD.check(facts)
    except Rejected as rejected:
        assert rejected.reason in {Reason.CONDITION_FALSE, Reason.CONDITION_ERROR}  # noqa: PT017 - either is an outcome


CEL_PIECES = st.sampled_from(
    [
        *(
            "claims",
            ".sub",
            "['a']",
            "path",
            "(",
            ")",
            "[",
            "]",
            "{",
            "}",
            " == ",
            " && ",
            " || ",
            "!",
            "-",
            "'a'",
            '"',
            "'",
        ),
        *(
            "1",
            "1.5",
            "9999999999999999999",
            "true",
            "null",
            "has(",
            "size(",
            ".all(x, ",
            "x",
            " in ",
            " ? ",
            " : ",
            ",",
        ),
        *(
            "\n",
            "//",
            "\\",
            "\0",
            "\ud800",
            "\u00e4",
            "dyn(",
            "type(",
            "duration('1s')",
            "google.protobuf.Any{}",
            "r'",
            "b'",
        ),
    ]
)


@settings(deadline=None)
@given(st.text(max_size=20) | st.lists(CEL_PIECES, max_size=8).map("".join))
@example("(" * 300 + ")" * 300)
@example("!" * 4_000 + "true")
@example("a" * MAX_EXPRESSION_CHARS)
@example("[" * 2_000)
@example("claims.x" + ".x" * 2_000 + " == 1")
def test_only_a_value_error_escapes_from_a_text_and_only_rejected_from_what_it_makes(text: str) -> None:
    try:
        condition = parse_condition(text)
    except ValueError as error:
        told = str(error)
    else:
        with contextlib.suppress(Rejected):
            condition.check(FACTS)
        return
    assert told
    assert "\n" not in told


def test_an_expression_that_is_cut_anywhere_is_refused_or_stands_alone() -> None:
    text = "claims.sub == path.user && has(claims.n)"
    read = set()
    for end in range(len(text)):
        with contextlib.suppress(ValueError):
            parse_condition(text[:end])
            read.add(text[:end].rstrip())
    assert read == {
        *("claims.s", "claims.su", "claims.sub", "claims.sub == path"),
        *(f"claims.sub == path.{'user'[:end]}" for end in range(1, 5)),
    }
    for junk in (")", " &&", " true", "'", "]", "\0", " == ", "}", "%"):
        with pytest.raises(ValueError, match="not a valid expression"):
            parse_condition(text + junk)
