"""Values of more than one spelling: each is read as it was meant, or refused with words for the operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authz.config.fields import (
    MAX_DURATION_DIGITS,
    Choice,
    parse_choice,
    parse_claim_place,
    parse_duration,
    parse_names,
    parse_place,
    parse_roles,
    parse_scalars,
)
from authz.config.listeners import check_address
from authz.model import CredentialPlace, PlaceKind


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.25, 0.25),
        ("0s", 0.0),
        ("1ms", 0.001),
        ("30s", 30.0),
        ("5m", 300.0),
        ("24h", 86_400.0),
        ("7d", 604_800.0),
        ("9" * MAX_DURATION_DIGITS + "s", float("9" * MAX_DURATION_DIGITS)),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.1, True, None, [], {}, "", "s", "1", "1 s", " 1s", "1s ", "1s\n", "-1s", "+1s", "1.5s", "1S", "1w"),
        *("1s1s", "0x1s", "\u0661s", "1e3s", "1_0s", "9" * (MAX_DURATION_DIGITS + 1) + "s", "9" * 5_000 + "d"),
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match=r"(is no duration|is negative): write seconds, or a text such as `30s`"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("a", Choice(("a",))),
        ({"any": ["a", "b"]}, Choice(("a", "b"))),
        ({"all": ["a", "b"]}, Choice(("a", "b"), every=True)),
        ({"any": ["a"]}, Choice(("a",))),
        ({"other": 1}, Choice(({"other": 1},))),
        ({"any": [1, True, 1.5]}, Choice((1, True, 1.5))),
    ],
)
def test_choices(value: object, choice: Choice) -> None:
    assert parse_choice(value) == choice


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a"], "`[a]` does not say what a second one would mean: write `a` alone"),
        (["a", "b"], "a list does not say whether any or all are needed: write `{any: [a, b]}` or `{all: …}`"),
        ([], "a list does not say whether any or all are needed"),
        ({"any": ["a"], "all": ["b"]}, "takes one of `any` and `all`, and nothing beside it"),
        ({"any": ["a"], "x": 1}, "takes one of `any` and `all`, and nothing beside it"),
        ({"any": "a"}, "`any` needs a list: write `{any: [a]}`"),
        ({"all": []}, "`all` names nothing"),
        ({"any": ["a", "b", "a"]}, "`a` stands twice"),
        ({"any": [1, 2, 1]}, "`1` stands twice"),
    ],
)
def test_what_is_no_choice(value: object, words: str) -> None:
    for parse in (parse_choice, parse_names, parse_scalars, parse_roles):
        with pytest.raises(ValueError, match=re.escape(words)):
            parse(value)


@pytest.mark.parametrize(
    ("value", "roles"),
    [
        ("reader", [("", "reader")]),
        ("orders:reader", [("orders", "reader")]),
        ({"client": "a:b", "role": "c:d"}, [("a:b", "c:d")]),
        ({"any": ["x", "c:y", {"client": "c", "role": "z"}]}, [("", "x"), ("c", "y"), ("c", "z")]),
    ],
)
def test_roles(value: object, roles: list[tuple[str, str]]) -> None:
    assert list(parse_roles(value).items) == roles


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "names no role"),
        (":", "names no client"),
        (":x", "names no client"),
        ("c:", "names no role"),
        ("a:b:c", "more than one `:`"),
        (7, "`7` is no role: write a text"),
        (True, "is no role: write a text"),
        ({"any": ["x", 7]}, "`7` is no role"),
        ({"client": "c"}, "a role is `role`, `client:role` or"),
        ({"client": "c", "role": 1}, "a role is `role`, `client:role` or"),
        ({"client": "c", "role": "r", "x": "y"}, "a role is `role`, `client:role` or"),
        ({"client": "", "role": "r"}, "names no role"),
        ({"client": "c", "role": ""}, "names no role"),
    ],
)
def test_what_is_no_role(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_roles(value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("roles", ("roles",)),
        ("realm_access.roles", ("realm_access", "roles")),
        ('["https://a.example/roles"]', ("https://a.example/roles",)),
        ('["a.b"].c', ('["a', 'b"]', "c")),
    ],
)
def test_places_of_claims(text: str, names: tuple[str, ...]) -> None:
    assert parse_claim_place(text) == names


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", '[""]', '["]'])
def test_what_is_no_place_of_a_claim(text: str) -> None:
    with pytest.raises(ValueError, match="is no place of a claim"):
        parse_claim_place(text)


@pytest.mark.parametrize(
    ("value", "kind", "name"),
    [
        ("authorization", PlaceKind.AUTHORIZATION, ""),
        ({"header": "X-Token"}, PlaceKind.HEADER, "x-token"),
        ({"cookie": "__Host-token"}, PlaceKind.COOKIE, "__Host-token"),
        ({"query": "access_token"}, PlaceKind.QUERY, "access_token"),
    ],
)
def test_places(value: object, kind: PlaceKind, name: str) -> None:
    assert parse_place(value) == CredentialPlace(kind=kind, name=name)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Authorization", "a place is `authorization`"),
        ("header", "a place is `authorization`"),
        (None, "a place is `authorization`"),
        ([], "a place is `authorization`"),
        ({}, "a place is `authorization`"),
        ({"header": "x", "cookie": "y"}, "a place is `authorization`"),
        ({"headers": "x"}, "unknown place `headers`: did you mean `header`?"),
        ({"header": 1}, "`1` is no name"),
        ({"query": None}, "is no name"),
        ({"header": ""}, "is not a header name"),
        ({"header": "a b"}, "is not a header name"),
        ({"header": "Authorization"}, "is a place of its own"),
        ({"header": "X_Forwarded_For"}, "means something else to proxies"),
        ({"cookie": "a=b"}, "is not safe as the name of a cookie"),
        ({"cookie": ""}, "is not safe as the name of a cookie"),
        ({"query": "a b"}, "is not safe as the name of a query"),
        ({"query": "a%20b"}, "is not safe as the name of a query"),
    ],
)
def test_what_is_no_place(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_place(value)


WORDS = st.sampled_from(
    [
        *("any", "all", "client", "role", "header", "cookie", "query", "authorization", "a:b", ":x", "x:", "30s", "1h"),
        *('["a.b"]', "a.b", "", ".", "\ud800", "\0", "everywhere", "9" * 400 + "s", "unix:/x", "[::1]:80", "a:1"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ANY_VALUE: list[Callable[[Any], object]] = [
    parse_duration, parse_choice, parse_names, parse_scalars, parse_roles, parse_place,
]  # fmt: skip


def refusal(parse: Callable[[Any], object], value: object) -> ValueError | None:
    """Return the one kind of error that may escape, or None."""
    try:
        parse(value)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("parse", ANY_VALUE, ids=lambda its: its.__name__)
@given(value=VALUES)
@example(value="9" * 400 + "s")
@example(value={"any": [[{"any": "\ud800"}]]})
def test_only_a_value_error_escapes_and_says_something(parse: Callable[[Any], object], value: object) -> None:
    error = refusal(parse, value)
    assert error is None or (str(error) and type(error) is ValueError)


def check_any_address(text: str) -> None:
    check_address(text, unix=True)


def check_host_and_port(text: str) -> None:
    check_address(text, unix=False)


@pytest.mark.parametrize("parse", [parse_claim_place, check_any_address, check_host_and_port])
@given(text=WORDS | st.text(max_size=30))
@example(text="0.0.0.0:" + "9" * 5_000)
@example(text="unix:/\ud800")
def test_only_a_value_error_escapes_from_texts(parse: Callable[[str], object], text: str) -> None:
    error = refusal(parse, text)
    assert error is None or ("`" in str(error) and type(error) is ValueError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:9001", ""),
        ("0.0.0.0:0", ""),
        ("0.0.0.0:65535", ""),
        ("0.0.0.0:65536", "is no address"),
        ("0.0.0.0:" + "9" * 5_000, "is no address"),
        ("localhost:1", ""),
        ("[::]:9001", ""),
        ("[::1]:80", ""),
        ("::1:80", "write an ip address"),
        ("[127.0.0.1]:80", "write an ip address"),
        ("shop.example.com:80", "write an ip address"),
        (":80", "write an ip address"),
        ("0.0.0.0", "is no address"),
        ("0.0.0.0:", "is no address"),
        ("0.0.0.0:-1", "is no address"),
        ("0.0.0.0:\u0661", "is no address"),
        ("unix:/" + "x" * 106, ""),
        ("unix:/" + "x" * 107, "of at most 107 bytes"),
        ("unix:/" + "\u00e4" * 53, ""),
        ("unix:/" + "\u00e4" * 53 + "x", "of at most 107 bytes"),
        ("unix:relative", "write `unix:/path`"),
    ],
)
def test_addresses(text: str, words: str) -> None:
    if not words:
        check_address(text, unix=True)
        return
    with pytest.raises(ValueError, match=words):
        check_address(text, unix=True)
