"""What a token may say of itself: each claim both sides of every edge, and the Reason of each refusal."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.claims import MAX_TIME, check_claims, check_times, expires_at, read_principal
from authz.model import ClaimPlaces, Expectation, Provider, Reason, Rejected, Role

NOW = 1_800_000_000.0
ISSUER = "https://sso.example.com/realms/shop"
EXPECTATION = Expectation(issuer=ISSUER, audiences=frozenset({"orders", "billing"}), algorithms=frozenset({"ES256"}))
KEYCLOAK = replace(EXPECTATION, claim_types=frozenset({"Bearer"}))
GOOD: dict[str, Any] = {"iss": ISSUER, "aud": "orders", "sub": "alice", "exp": NOW + 60, "azp": "web"}
PLACES = ClaimPlaces(
    roles=(("realm_access", "roles"),),
    client_roles=("resource_access",),
    groups=(("groups",),),
    scopes=(("scope",), ("scp",)),
)
SHOP = Provider(name="shop", issuer=ISSUER, expectation=EXPECTATION, keys=None, places=PLACES)
ODD_TIMES: list[object] = [
    None,
    True,
    False,
    "1800000060",
    math.nan,
    math.inf,
    -math.inf,
    -1,
    MAX_TIME,
    2.0**53,
    10**30,
    [],
    {},
]


def refusal(
    claims: dict[str, Any], expectation: Expectation = EXPECTATION, *, introspected: bool = False
) -> Reason | None:
    try:
        if introspected:
            check_claims(claims, expectation, now_s=NOW, introspected=True)
        else:
            check_claims(claims, expectation, now_s=NOW)  # a caller that says nothing gets the strict reading
    except Rejected as rejected:
        return rejected.reason
    return None


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in names}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"iss": ISSUER + "/"}, Reason.ISSUER_MISMATCH),
        ({"iss": ISSUER.upper()}, Reason.ISSUER_MISMATCH),
        ({"iss": [ISSUER]}, Reason.ISSUER_MISMATCH),
        ({"iss": None}, Reason.ISSUER_MISMATCH),
        ({"aud": ["x", "orders"]}, None),
        ({"aud": ["billing"]}, None),
        ({"aud": []}, Reason.AUDIENCE_MISSING),
        ({"aud": ""}, Reason.CLAIM_INVALID),
        ({"aud": "Orders"}, Reason.AUDIENCE_MISMATCH),
        ({"aud": ["x"]}, Reason.AUDIENCE_MISMATCH),
        ({"aud": ["orders", 7]}, Reason.CLAIM_INVALID),
        ({"aud": {"orders": 1}}, Reason.CLAIM_INVALID),
        ({"aud": None}, Reason.CLAIM_INVALID),
        ({"exp": NOW - 29}, None),
        ({"exp": NOW - 30}, Reason.EXPIRED),
        ({"exp": 0}, Reason.EXPIRED),
        ({"nbf": NOW + 30}, None),
        ({"nbf": NOW + 31}, Reason.NOT_YET_VALID),
        ({"iat": NOW + 30}, None),
        ({"iat": NOW + 31}, Reason.ISSUED_IN_FUTURE),
        ({"cnf": {"jkt": "x"}}, Reason.PROOF_MISSING),
        ({"cnf": None}, Reason.PROOF_MISSING),
        ({"sub": ""}, Reason.CLAIM_INVALID),
        ({"sub": 7}, Reason.CLAIM_INVALID),
        *(({"exp": odd}, Reason.EXPIRY_INVALID) for odd in ODD_TIMES),
        *(({"nbf": odd}, Reason.NOT_BEFORE_INVALID) for odd in ODD_TIMES),
        *(({"iat": odd}, Reason.ISSUED_AT_INVALID) for odd in ODD_TIMES),
    ],
)
def test_each_claim(changes: dict[str, Any], reason: Reason | None) -> None:
    assert refusal(GOOD | changes) is reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("iss", Reason.ISSUER_MISSING),
        ("aud", Reason.AUDIENCE_MISSING),
        ("exp", Reason.EXPIRY_MISSING),
        ("sub", None),
        ("azp", None),
    ],
)
def test_what_is_missing(name: str, reason: Reason | None) -> None:
    assert refusal(without(name)) is reason
    lenient = replace(EXPECTATION, introspection_may_lack=frozenset({"iss", "aud", "exp"}))
    assert refusal(without(name), lenient) is reason, "only an introspection answer may lack a member"
    assert refusal(without(name), lenient, introspected=True) is None


def test_an_operator_may_opt_out_of_audiences_only() -> None:
    loud = replace(EXPECTATION, audiences=None)
    assert refusal(GOOD | {"aud": "other"}, loud) is None
    assert refusal(without("aud"), loud) is None
    assert refusal(GOOD | {"iss": "other"}, loud) is Reason.ISSUER_MISMATCH


@pytest.mark.parametrize(
    ("leeway", "expired_s", "reason"),
    [(0, 0, Reason.EXPIRED), (0, -1, None), (300, 299, None), (300, 300, Reason.EXPIRED)],
)
def test_leeway(leeway: int, expired_s: int, reason: Reason | None) -> None:
    assert refusal(GOOD | {"exp": NOW - expired_s}, replace(EXPECTATION, leeway_s=leeway)) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iat": NOW - 40, "exp": NOW + 60}, None),
        ({"iat": NOW - 41, "exp": NOW + 60}, Reason.LIFETIME_TOO_LONG),
        ({}, Reason.ISSUED_AT_MISSING),
    ],
)
def test_maximum_lifetime(changes: dict[str, Any], reason: Reason | None) -> None:
    assert refusal(GOOD | changes, replace(EXPECTATION, max_lifetime_s=100)) is reason


def test_a_maximum_lifetime_needs_an_end() -> None:
    strict = replace(EXPECTATION, max_lifetime_s=100, introspection_may_lack=frozenset({"exp"}))
    assert refusal(without("exp") | {"iat": NOW}, strict, introspected=True) is Reason.EXPIRY_MISSING


@pytest.mark.parametrize(
    ("claims", "introspected", "reason"),
    [
        (GOOD | {"typ": "Bearer"}, False, None),
        (GOOD | {"typ": "bearer"}, False, Reason.TOKEN_TYPE),
        (GOOD | {"typ": "ID"}, False, Reason.TOKEN_TYPE),
        (GOOD | {"typ": "Refresh"}, False, Reason.TOKEN_TYPE),
        (GOOD | {"typ": ["Bearer"]}, False, Reason.TOKEN_TYPE),
        (GOOD, False, Reason.TOKEN_TYPE),
        (GOOD | {"token_type": "Bearer"}, False, Reason.TOKEN_TYPE),
        (GOOD | {"token_type": "bearer"}, True, None),
        (GOOD | {"token_type": "mac"}, True, Reason.TOKEN_TYPE),
        (GOOD | {"typ": "Refresh", "token_type": "Bearer"}, True, Reason.TOKEN_TYPE),
        (GOOD, True, Reason.TOKEN_TYPE),
    ],
)
def test_the_type_of_a_keycloak_token(claims: dict[str, Any], *, introspected: bool, reason: Reason | None) -> None:
    assert refusal(claims, KEYCLOAK, introspected=introspected) is reason


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (GOOD, None),
        (without("azp") | {"client_id": "web"}, None),
        (GOOD | {"client_id": "web"}, None),
        (without("azp"), Reason.CLIENT_REFUSED),
        (GOOD | {"azp": "other"}, Reason.CLIENT_REFUSED),
        (GOOD | {"client_id": "other"}, Reason.CLIENT_REFUSED),
        (GOOD | {"azp": ""}, Reason.CLAIM_INVALID),
        (GOOD | {"azp": None}, Reason.CLAIM_INVALID),
        (GOOD | {"azp": ["web"]}, Reason.CLAIM_INVALID),
    ],
)
def test_the_clients_that_tokens_may_be_of(claims: dict[str, Any], reason: Reason | None) -> None:
    assert refusal(claims, replace(EXPECTATION, clients=frozenset({"web", "app"}))) is reason


def test_times_alone_are_judged_again() -> None:
    check_times(GOOD, EXPECTATION, now_s=NOW)
    for claims, now_s, reason in (
        (GOOD, NOW + 90, Reason.EXPIRED),
        (GOOD | {"nbf": NOW + 31}, NOW, Reason.NOT_YET_VALID),
        (without("exp"), NOW, Reason.EXPIRY_MISSING),
    ):
        with pytest.raises(Rejected) as caught:
            check_times(claims, EXPECTATION, now_s=now_s)
        assert caught.value.reason is reason
    check_times(without("exp"), replace(EXPECTATION, introspection_may_lack=frozenset({"exp"})), now_s=NOW)
    assert expires_at(without("exp")) is None


def test_a_principal_is_read_from_the_providers_places() -> None:
    claims = GOOD | {
        "realm_access": {"roles": ["admin"]},
        "resource_access": {"orders": {"roles": ["admin", "reader"]}, "empty": {"roles": []}, "none": {}},
        "groups": ["/staff/ops", "guests"],
        "scope": "a  b",
        "scp": ["c"],
        "email": "a@example.com",
        "email_verified": True,
    }
    principal = read_principal(SHOP, claims)
    assert principal.roles == {Role("admin"), Role("admin", "orders"), Role("reader", "orders")}
    assert principal.groups == {"staff/ops", "guests"}
    assert principal.scopes == {"a", "b"}
    assert (principal.email, principal.subject, principal.client_id) == ("a@example.com", "alice", "web")
    assert principal.expires_at_s == NOW + 60
    assert (principal.provider, principal.issuer, principal.claims) == ("shop", ISSUER, claims)
    assert read_principal(SHOP, without("azp")).client_id is None
    assert read_principal(SHOP, GOOD | {"scope": "a\tb"}).scopes == {"a\tb"}
    assert read_principal(SHOP, without("exp")).expires_at_s == math.inf
    bare = read_principal(replace(SHOP, places=ClaimPlaces()), GOOD | {"roles": "a b", "scp": ["c"]})
    assert bare.roles == {Role("a"), Role("b")}
    assert bare.scopes == {"c"}
    assert bare.groups == frozenset()
    two = replace(SHOP, places=ClaimPlaces(groups=(("realm", "groups"), ("groups",))))
    assert read_principal(two, GOOD | {"groups": ["staff"]}).groups == {"staff"}, "each place is looked at"


@pytest.mark.parametrize(
    ("found", "quoted"),
    [
        ("ID", "`ID`"),
        ("a\n\u20ac\x1b[2J", "`a\\n\\u20ac\\x1b[2J`"),
        ("x" * 40, f"`{'x' * 32}`"),
        (None, "missing or no text"),
        (["ID"], "missing or no text"),
    ],
)
def test_what_is_quoted_of_a_token_is_short_and_harmless(found: object, quoted: str) -> None:
    with pytest.raises(Rejected) as rejected:
        check_claims(GOOD | {"typ": found}, KEYCLOAK, now_s=NOW)
    assert rejected.value.reason is Reason.TOKEN_TYPE
    assert rejected.value.detail == f"the payload's type is {quoted}"


@pytest.mark.parametrize(
    "changes",
    [
        {"realm_access": []},
        {"realm_access": None},
        {"realm_access": {"roles": None}},
        {"realm_access": {"roles": "admin"} | {"roles": {"admin": True}}},
        {"realm_access": {"roles": ["admin", 7]}},
        {"realm_access": {"roles": [""]}},
        {"resource_access": []},
        {"resource_access": {"": {"roles": ["admin"]}}},
        {"resource_access": {"orders": []}},
        {"resource_access": {"orders": {"roles": [None]}}},
        {"groups": "staff"},
        {"groups": ["/"]},
        {"groups": [""]},
        {"groups": {"staff": 1}},
        {"scope": 7},
        {"azp": "a", "client_id": "b"},
        {"client_id": ""},
    ],
)
def test_half_read_identity_is_nobodys(changes: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        read_principal(SHOP, GOOD | changes)
    assert caught.value.reason is Reason.CLAIM_INVALID


@pytest.mark.parametrize(
    ("email", "verified", "read"),
    [
        ("a@example.com", True, "a@example.com"),
        ("a@example.com", False, None),
        ("a@example.com", "true", None),
        ("a@example.com", 1, None),
        ("a@b@example.com", True, None),
        ("@example.com", True, None),
        ("a@", True, None),
        ("a b@example.com", True, None),
        ("a\n@example.com", True, None),
        (7, True, None),
        ("", True, None),
    ],
)
def test_only_a_verified_and_plain_address_counts(email: object, verified: object, read: str | None) -> None:
    assert read_principal(SHOP, GOOD | {"email": email, "email_verified": verified}).email == read
    assert read_principal(SHOP, GOOD | {"email": email}).email is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "iss",
        "aud",
        "exp",
        "nbf",
        "iat",
        "sub",
        "azp",
        "typ",
        "cnf",
        "scope",
        "groups",
        "realm_access",
        "resource_access",
    ]
)


@given(st.dictionaries(NAMES, JSON))
def test_only_rejected_escapes(changes: dict[str, Any]) -> None:
    for introspected in (False, True):
        refusal(GOOD | changes, KEYCLOAK, introspected=introspected)
    with contextlib.suppress(Rejected):
        read_principal(SHOP, GOOD | changes)
