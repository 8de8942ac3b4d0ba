"""What is shown of what a condition looked at: the value itself, bounded, and never a token."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core import condition
from authz.core.condition import MEMBERS, Facts, parse_condition
from authz.core.require import ClaimTest, ClientTest, GroupTest, NetworkTest, RoleTest, ScopeTest, Test, WhenTest
from authz.found import _VARIABLES, HIDDEN, MAX_ITEMS, MAX_TEXT_CHARS, hide_tokens, match_found, show_text, show_value
from authz.model import Role
from tests.core.build import principal, request

TOKEN = "tok-1234567"
JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2ln"
ASKED = replace(
    request("POST", "blue.example/a%20b", x_one="1", authorization=f"Bearer {TOKEN}", x_api_key="k"),
    scheme="https",
    protocol="HTTP/2",
    source_principal="spiffe://x",
    context={"tier": "gold"},
)
WHO = principal(
    claims={"sub": "alice", "n": 3, "no": None, "nested": {"x": [True]}, "copy": TOKEN, "jwt": f"see {JWT}"},
    roles=frozenset({Role("reader"), Role("admin", "orders")}),
    groups=frozenset({"staff", "a/b"}),
    scopes=frozenset({"read"}),
    email="a@example.com",
)
FACTS = Facts(request=ASKED, principal=WHO, host={"tenant": "blue"}, path={"user": "alice"}, address="192.0.2.1")


def when(text: str) -> WhenTest:
    return WhenTest(condition=parse_condition(text))


@pytest.mark.parametrize(
    ("test", "values", "missing"),
    [
        (RoleTest(roles=frozenset({Role("x")})), {"roles": ["admin", "reader"]}, ()),
        (GroupTest(exact=frozenset({"x"})), {"groups": ["a/b", "staff"]}, ()),
        (ScopeTest(scopes=frozenset({"x"})), {"scopes": ["read"]}, ()),
        (ClientTest(client_ids=frozenset({"x"})), {"client": "web"}, ()),
        (ClaimTest(place=("nested", "x"), values=(True,)), {"claims.nested.x": [True]}, ()),
        (ClaimTest(place=("tier",), values=("gold",)), {}, ("claims.tier",)),
        (NetworkTest(networks=(ip_network("10.0.0.0/8"),)), {"address": "192.0.2.1"}, ()),
        (when("claims.n == 3 && claims.tier == 'x'"), {"claims.n": 3}, ("claims.tier",)),
        (when("claims.sub == path.user && host.tenant == 'x'"),
         {"claims.sub": "alice", "host.tenant": "blue", "path.user": "alice"}, ()),
        (when("size(claims) > 2"), {"claims": ["copy", "jwt", "n", "nested", "no", "sub"]}, ()),
        (when("claims.copy == 'x' || claims.jwt == 'x'"), {"claims.copy": HIDDEN, "claims.jwt": f"see {HIDDEN}"}, ()),
        (when("request.headers['x-one'] == '1' && request.method == 'GET'"),
         {"request.headers": {"x-one": "1"}, "request.method": "POST"}, ()),
        (when("request.headers['authorization'] == 'x' || request.headers['x-api-key'] == 'k'"),
         {"request.headers": {"authorization": HIDDEN, "x-api-key": HIDDEN}}, ()),
        (when("'reader' in principal.roles && context.tier == 'x' && context.other == 'y'"),
         {"context.tier": "gold", "principal.roles": ["reader"]}, ("context.other",)),
        (when("true"), {}, ()),
    ],
)  # fmt: skip
def test_each_requirement_shows_what_it_looked_at(test: Test, values: dict[str, Any], missing: tuple[str, ...]) -> None:
    found = match_found(test, FACTS, token=TOKEN)
    if isinstance(test, RoleTest):
        values = {"roles": ["orders:admin", "reader"]}
    assert found.values == values
    assert found.missing == missing
    assert TOKEN not in json.dumps(dict(found.values))


@pytest.mark.parametrize("test", [RoleTest(roles=frozenset({Role("x")})), ClientTest(client_ids=frozenset({"x"})),
                                  ClaimTest(place=("x",), values=(1,))])  # fmt: skip
def test_where_nobody_asks_that_is_what_is_missing(test: Test) -> None:
    found = match_found(test, replace(FACTS, principal=None))
    assert (found.values, found.missing) == ({}, ("principal",))


def test_an_unknown_address_is_missing() -> None:
    found = match_found(NetworkTest(networks=(ip_network("10.0.0.0/8"),)), replace(FACTS, address=None))
    assert (found.values, found.missing) == ({}, ("address",))


def test_what_is_shown_of_a_condition_is_what_it_is_handed() -> None:
    for name, members in MEMBERS.items():
        handed = condition._render_variable(name, None, FACTS)
        shown = {member: value for member, value in _VARIABLES[name](FACTS).items() if value is not None}
        assert shown == handed
        assert members == shown.keys()
    for name in condition._VARIABLES:
        assert {**_VARIABLES[name](FACTS)} == {**condition._render_variable(name, None, FACTS)}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice", "alice"),
        ("https://keycloak.production.example/realms/shop", "https://keycloak.production.example/realms/shop"),
        (JWT, HIDDEN),
        (f"Bearer {JWT}", HIDDEN),
        ("bearer short", HIDDEN),
        ("a" * 39, "a" * 39),
        ("a" * 40, HIDDEN),
        (TOKEN, HIDDEN),
        (f"x{TOKEN}x", HIDDEN),
    ],
)
def test_tokens_are_hidden(text: str, shown: str) -> None:
    assert hide_tokens(text, token=TOKEN) == shown


def test_a_short_token_hides_no_more_than_itself() -> None:
    assert hide_tokens("alice", token="a") == "alice"
    assert hide_tokens("a", token="a") == HIDDEN


def test_long_values_are_cut() -> None:
    blanks = "x " * MAX_TEXT_CHARS
    assert show_text(blanks[:MAX_TEXT_CHARS]) == blanks[:MAX_TEXT_CHARS]
    assert show_text(blanks) == blanks[:MAX_TEXT_CHARS] + "…"
    whole: Any = show_value(list(range(MAX_ITEMS)))
    assert whole == list(range(MAX_ITEMS))
    cut: Any = show_value(list(range(MAX_ITEMS + 2)))
    assert cut[-1] == "… 2 more"
    assert len(cut) == MAX_ITEMS + 1
    members: Any = show_value({str(number): number for number in range(MAX_ITEMS + 1)})
    assert members["…"] == "1 more"
    deep: Any = show_value([[[[["x"]]]]])
    assert deep == [[[["…"]]]]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.just(f"a {TOKEN} b"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_value_shows_the_token(value: Any) -> None:
    assert TOKEN not in json.dumps(show_value(value, token=TOKEN))
