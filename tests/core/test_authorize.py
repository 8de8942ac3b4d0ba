"""Who is let in, what the upstream then sees, and that nobody's word but ours stands in identity headers."""

from __future__ import annotations

import string
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.core.authorize import MAX_DERIVED, decide_preflight, match_address, match_asked_method
from authz.core.headers import MAX_IDENTITY_BYTES, fold_name, parse_template
from authz.core.policy import Policy, match_rule
from authz.model import Allow, CredentialPlace, Decision, Deny, HeaderAction, PlaceKind, Reason, Rejected, Request, Role
from tests.core.build import decide, policy_of, principal, request, rule, upstream

WHO = "tokens_from: shop, require: {}"
IDENTITY = "identity_headers: {x-user: '{sub}', x-roles: '{roles}', x-mail: '{email}'}\n"


def asking(require: str, rest: str = "") -> Policy:
    text = f"tokens_from: shop, require: {require}" + (f", {rest}" if rest else "")
    return policy_of(IDENTITY + "rules:\n" + rule("one", "['{tenant}.example']", "/{user}/**", text))


def why(decision: Decision) -> Reason | None:
    return decision.reason if isinstance(decision, Deny) else None


@pytest.mark.parametrize(
    ("require", "changes", "reason"),
    [
        ("any_token", {}, None),
        ("{roles: reader}", {}, None),
        ("{roles: 'orders:reader'}", {}, Reason.ROLE_MISSING),
        ("{roles: 'orders:reader'}", {"roles": frozenset({Role("reader", "orders")})}, None),
        ("{roles: reader}", {"roles": frozenset({Role("reader", "orders")})}, Reason.ROLE_MISSING),
        ("{roles: {client: 'a:b', role: c}}", {"roles": frozenset({Role("c", "a:b")})}, None),
        ("{roles: {any: [admin, reader]}}", {}, None),
        ("{roles: {all: [admin, reader]}}", {}, Reason.ROLE_MISSING),
        ("{roles: {all: [admin, reader]}}", {"roles": frozenset({Role("admin"), Role("reader")})}, None),
        ("{groups: staff}", {"groups": frozenset({"staff"})}, None),
        ("{groups: /staff}", {"groups": frozenset({"staff"})}, None),
        ("{groups: staff}", {"groups": frozenset({"staff/ops"})}, Reason.GROUP_MISSING),
        ("{groups: 'staff/**'}", {"groups": frozenset({"staff"})}, None),
        ("{groups: 'staff/**'}", {"groups": frozenset({"staff/ops/night"})}, None),
        ("{groups: 'staff/**'}", {"groups": frozenset({"staffing"})}, Reason.GROUP_MISSING),
        ("{groups: {all: [a, 'b/**']}}", {"groups": frozenset({"a"})}, Reason.GROUP_MISSING),
        ("{groups: {all: [a, 'b/**']}}", {"groups": frozenset({"a", "b/c"})}, None),
        ("{groups: {any: [a, b]}}", {"groups": frozenset({"b"})}, None),
        ("{scopes: {any: [a, read]}}", {"scopes": frozenset({"read"})}, None),
        ("{scopes: {all: [read, write]}}", {"scopes": frozenset({"read", "write"})}, None),
        ("{claims: {a: {any: [x, y]}}}", {"claims": {"a": ["y"]}}, None),
        ("{claims: {a.b.c: x}}", {"claims": {"a": {"b": "c"}}}, Reason.CLAIM_MISMATCH),
        ('{when: \'request.method == "GET" && request.host == "blue.example"\'}', {}, None),
        ('{when: \'source.address == "192.0.2.1" && principal.provider == "shop"\'}', {}, None),
        ("{scopes: read}", {"scopes": frozenset({"read", "write"})}, None),
        ("{scopes: Read}", {"scopes": frozenset({"read"})}, Reason.SCOPE_MISSING),
        ("{scopes: {all: [read, write]}}", {"scopes": frozenset({"read"})}, Reason.SCOPE_MISSING),
        ("{client_ids: web}", {}, None),
        ("{client_ids: {any: [app, other]}}", {}, Reason.CLIENT_NOT_LISTED),
        ("{client_ids: web}", {"client_id": None}, Reason.CLIENT_NOT_LISTED),
        ("{claims: {a.b: x}}", {"claims": {"a": {"b": "x"}}}, None),
        ("{claims: {a.b: x}}", {"claims": {"a": {"b": ["y", "x"]}}}, None),
        ("{claims: {a.b: x}}", {"claims": {"a": "x"}}, Reason.CLAIM_MISMATCH),
        ("{claims: {a: 1}}", {"claims": {"a": 1}}, None),
        ("{claims: {a: 1}}", {"claims": {"a": "1"}}, Reason.CLAIM_MISMATCH),
        ("{claims: {a: 1}}", {"claims": {"a": True}}, Reason.CLAIM_MISMATCH),
        ("{claims: {a: true}}", {"claims": {"a": 1}}, Reason.CLAIM_MISMATCH),
        ("{claims: {a: {all: [x, y]}}}", {"claims": {"a": ["x", "y", "z"]}}, None),
        ("{claims: {a: {all: [x, y]}}}", {"claims": {"a": ["x"]}}, Reason.CLAIM_MISMATCH),
        ("{networks: 192.0.2.0/24}", {}, None),
        ("{networks: {any: [10.0.0.0/8, 'fd00::/8']}}", {}, Reason.NETWORK_REFUSED),
        ("{when: 'claims.sub == path.user'}", {}, None),
        ("{when: 'claims.sub == host.tenant'}", {}, Reason.CONDITION_FALSE),
        ("{when: 'claims.missing == path.user'}", {}, Reason.CONDITION_ERROR),
        ("{when: 'has(claims.missing) && claims.missing == path.user'}", {}, Reason.CONDITION_FALSE),
        ("{when: 'claims.sub'}", {}, Reason.CONDITION_ERROR),
        ("{roles: reader, scopes: read}", {}, Reason.SCOPE_MISSING),
        ("{roles: reader, scopes: read}", {"scopes": frozenset({"read"})}, None),
    ],
)
def test_what_a_rule_requires(require: str, changes: dict[str, Any], reason: Reason | None) -> None:
    decision = decide(asking(require), request("GET", "blue.example/alice/x"), principal(**changes))
    assert why(decision) is reason
    assert decision.rule == "one"


def test_insufficient_scope_names_the_scopes() -> None:
    decision = decide(asking("{scopes: {any: [read, write]}}"), request("GET", "blue.example/alice/x"), principal())
    assert isinstance(decision, Deny)
    challenge = next(edit.value for edit in decision.headers if edit.name == "www-authenticate")
    assert challenge == 'Bearer realm="blue.example", error="insufficient_scope", scope="read write"'


GUARDED = """
guards:
  - {name: admin, hosts: [a.example], paths: ["/admin/**"], require: {roles: admin}}
rules:
  - {name: narrow, hosts: [a.example], paths: ["/admin/public/one"], allow: anyone}
  - {name: optional, hosts: [a.example], paths: ["/admin/maybe"], allow: optional, tokens_from: shop}
  - {name: data, hosts: [a.example], paths: ["/data/**"], accept: [encoded_slash, empty_segment], allow: anyone}
  - {name: all, hosts: [a.example], paths: ["/**"], tokens_from: shop, require: any_token, accept: [encoded_slash]}
"""


@pytest.mark.parametrize(
    ("url", "roles", "reason"),
    [
        ("a.example/admin/x", {"reader"}, Reason.ROLE_MISSING),
        ("a.example/admin/x", {"admin"}, None),
        ("a.example/admin/public/one", {"admin"}, Reason.ROLE_MISSING),
        ("a.example/admin/maybe", {"admin"}, None),
        ("a.example/admin/maybe", None, Reason.ROLE_MISSING),
        ("a.example/admin%2fx", {"reader"}, Reason.ROLE_MISSING),
        ("a.example/other", {"reader"}, None),
        ("a.example/data/x", None, None),
    ],
)
def test_no_rule_shadows_a_guard(url: str, roles: set[str] | None, reason: Reason | None) -> None:
    who = None if roles is None else principal(roles=frozenset(map(Role, roles)))
    decision = decide(policy_of(GUARDED), request("GET", url), who)
    assert why(decision) is reason
    if isinstance(decision, Deny):
        assert decision.guard == "admin"


GUARD = """
guards: [{name: g, hosts: ["{t}.example"], paths: ["/{area}/**"], require: REQUIRE}]
rules: [{name: all, hosts: everywhere, paths: ["/**"], allow: optional, tokens_from: shop}]
"""


@pytest.mark.parametrize(
    ("require", "known", "reason"),
    [
        ('{when: \'host.t == "a" && path.area == "x"\'}', False, None),
        ("{when: 'host.t == path.area'}", False, Reason.CONDITION_FALSE),
        ("{when: 'request.method == \"GET\"'}", False, None),
        ("{when: 'source.address == \"192.0.2.1\"'}", False, None),
        ("{when: 'principal.subject == \"alice\"'}", True, None),
        ("{when: 'principal.subject == \"alice\"'}", False, Reason.CONDITION_ERROR),
        ("{networks: 192.0.2.0/24}", False, None),
        ("{networks: 198.51.100.0/24}", True, Reason.NETWORK_REFUSED),
        ("{groups: a}", False, Reason.GROUP_MISSING),
        ("{scopes: a}", False, Reason.SCOPE_MISSING),
        ("{claims: {a: b}}", False, Reason.CLAIM_MISMATCH),
        ("{client_ids: web}", False, Reason.CLIENT_NOT_LISTED),
        ("{client_ids: web}", True, None),
    ],
)
def test_a_guard_is_judged_on_all_that_is_known(require: str, *, known: bool, reason: Reason | None) -> None:
    decision = decide(
        policy_of(GUARD.replace("REQUIRE", require)), request("GET", "a.example/x/y"), principal() if known else None
    )
    assert why(decision) is reason
    assert (decision.principal is not None) is known
    if isinstance(decision, Deny):
        assert (decision.guard, decision.rule) == ("g", "all")
        assert decision.detail


def test_a_refusal_by_the_rule_names_no_guard_and_no_scope() -> None:
    rules = GUARD.replace("REQUIRE", "{scopes: one}").replace(
        "allow: optional, tokens_from: shop", "tokens_from: shop, require: {roles: x, scopes: two}"
    )
    cors = 'cors: [{hosts: [a.example], origins: ["https://app.example"], methods: [GET]}]\n'
    policy = policy_of(rules + cors)
    who = principal(scopes=frozenset({"one", "two"}))
    denied = decide(policy, request("GET", "a.example/x/y", origin="https://app.example"), who)
    assert isinstance(denied, Deny)
    assert (denied.reason, denied.guard, denied.principal) == (Reason.ROLE_MISSING, "", who)
    headers = {edit.name: edit.value for edit in denied.headers}
    assert headers["access-control-allow-origin"] == "https://app.example"
    assert "www-authenticate" not in headers
    lacking = decide(policy, request("GET", "a.example/x/y"), replace(who, scopes=frozenset({"one"})))
    assert isinstance(lacking, Deny)
    challenge = {edit.name: edit.value for edit in lacking.headers}["www-authenticate"]
    assert challenge.endswith('error="insufficient_scope", scope="two"')


def test_values_are_ours_and_safe() -> None:
    who = principal(
        subject="\u00e4,b%c\r\nx: y",
        roles=frozenset({Role("x,admin"), Role("a"), Role("r:s", "c,d")}),
        email="a@example.com",
    )
    found = upstream(decide(asking("any_token"), request("GET", "b.example/alice"), who))
    assert found["x-user"] == "%C3%A4%2Cb%25c%0D%0Ax: y"
    assert found["x-roles"] == "a,c%2Cd:r%3As,x%2Cadmin"
    assert found["x-mail"] == "a@example.com"
    assert all(value is None or (value.isascii() and value.isprintable()) for value in found.values())


@pytest.mark.parametrize("changes", [{"subject": None}, {"email": None}, {"subject": "\ud800"}])
def test_a_missing_part_removes_the_header(changes: dict[str, Any]) -> None:
    found = upstream(decide(asking("any_token"), request("GET", "b.example/alice"), principal(**changes)))
    name = "x-mail" if "email" in changes else "x-user"
    assert name in found
    assert found[name] is None


def test_identity_is_never_cut() -> None:
    fits = MAX_IDENTITY_BYTES - len("x-user" + "x-rolesreader")
    for length, reason in ((fits, None), (fits + 1, Reason.HEADER_BUDGET)):
        decision = decide(asking("any_token"), request("GET", "b.example/alice"), principal(subject="a" * length))
        assert why(decision) is reason
        assert not isinstance(decision, Deny) or decision.status == 500


TEMPLATES = """
identity_headers:
  x-all: "{provider} {issuer} {client_id} {groups} {scopes} {{{claims.n}}} {claims.a.b} {claims.[\\"x.y\\"]} {claims.t}"
rules:
"""


def test_every_slot_of_a_template() -> None:
    policy = policy_of(TEMPLATES + rule("one", "[a.example]", "/**", "tokens_from: shop, require: any_token"))
    who = principal(
        groups=frozenset({"g/h", "f"}),
        scopes=frozenset({"s"}),
        claims={"n": 1.5, "a": {"b": [1, "two", True]}, "x.y": " z ", "t": False},
    )
    found = upstream(decide(policy, request("GET", "a.example/"), who))
    assert found["x-all"] == "shop https://sso.example.com web f,g/h s {1.5} 1,two,true %20z%20 false"
    oddities: list[dict[str, Any]] = [{"n": float("nan")}, {"n": None}, {"n": {}}, {"n": []}, {"n": [None]}, {"n": ""}]
    for odd in oddities:
        claims = dict(who.claims) | odd
        assert upstream(decide(policy, request("GET", "a.example/"), replace(who, claims=claims)))["x-all"] is None


FORGED = st.sampled_from(
    ["x-user", "x_user", "x.user", "X-User", "x-u", "x_roles", "x-roles", "x.mail", "other", "x_-user"]
)


@given(
    headers=st.dictionaries(FORGED, st.text(max_size=5)),
    known=st.booleans(),
    subject=st.none() | st.text(max_size=5),
    url=st.sampled_from(["a.example/public", "a.example/private", "a.example/maybe"]),
)
def test_every_allow_sets_or_removes_every_identity_header_and_every_deny_has_a_status(
    headers: dict[str, str], *, known: bool, subject: str | None, url: str
) -> None:
    asked = replace(request("GET", url), headers={name.lower(): value for name, value in headers.items()})
    decision = decide(MANY, asked, principal(subject=subject) if known or "private" in url else None)
    if isinstance(decision, Deny):
        assert decision.status >= 300
        return
    edited = {edit.name for edit in decision.upstream}
    assert {"x-user", "x-roles", "x-mail", "x_user", "x.user", "x_roles", "x.roles"} <= edited
    ours = {"x-user", "x-roles", "x-mail"}
    for name in asked.headers:
        if fold_name(name) in ours:
            assert name in edited
    names = [edit.name for edit in decision.upstream]
    assert len(names) == len(set(names))


MANY = policy_of(
    IDENTITY
    + "rules:\n"
    + rule("public", "[a.example]", "/public")
    + rule("private", "[a.example]", "/private", "tokens_from: shop, require: any_token")
    + rule("maybe", "[a.example]", "/maybe", "allow: optional, tokens_from: shop")
)


def test_mixed_separators_are_removed_when_seen() -> None:
    policy = policy_of(
        "identity_headers: {x-user-id: '{sub}'}\nrules:\n" + rule("one", "[a.example]", "/**", "allow: anyone")
    )
    asked = replace(request("GET", "a.example/"), headers={"x_user-id": "root", "x.user_id": "root", "x_other-id": "1"})
    found = upstream(decide(policy, asked))
    assert {"x-user-id", "x_user_id", "x.user.id", "x_user-id", "x.user_id"} <= found.keys()
    assert "x_other-id" not in found


@pytest.mark.parametrize(("cookie", "left"), [("a=1", "untouched"), ("a=1; session=t", "a=1"), ("session=t", None)])
def test_other_spellings_of_a_token_header_are_removed_too(cookie: str, left: str | None) -> None:
    """Also where a token is taken out of the cookies."""
    rest = "tokens_from: shop, require: any_token, token_in: [{header: x-access-token}, {cookie: session}]"
    policy = policy_of("rules:\n" + rule("one", "[a.example]", "/**", rest))
    headers = {"x-access-token": "t", "x_access_token": "t", "x.access-token": "t", "x-access-tokens": "t"}
    asked = replace(request("GET", "a.example/"), headers=headers | {"cookie": cookie})
    found = upstream(decide(policy, asked, principal()))
    assert {name for name in headers if name in found and found[name] is None} == set(headers) - {"x-access-tokens"}
    assert found.get("cookie", "untouched") == left


@pytest.mark.parametrize(
    ("rest", "place", "expected"),
    [
        ("", PlaceKind.AUTHORIZATION, "untouched"),
        ("", PlaceKind.COOKIE, None),
        ("authorization: keep", PlaceKind.COOKIE, "untouched"),
        ("authorization: remove", PlaceKind.AUTHORIZATION, None),
        ("authorization: {replace: 'Bearer {sub}'}", PlaceKind.AUTHORIZATION, "Bearer alice"),
        ("authorization: {replace: 'Bearer {email}'}", PlaceKind.AUTHORIZATION, None),
    ],
)
def test_what_becomes_of_authorization(rest: str, place: PlaceKind, expected: str | None) -> None:
    policy = asking("any_token", (rest + ", " if rest else "") + "token_in: [authorization, {cookie: c}]")
    decision = decide(policy, request("GET", "b.example/alice"), principal(), CredentialPlace(kind=place, name="c"))
    assert upstream(decision).get("authorization", "untouched") == expected


@pytest.mark.parametrize(("rest", "expected"), [("", None), (", authorization: keep", "untouched")])
def test_nobodys_authorization_is_removed_unless_kept_by_choice(rest: str, expected: str | None) -> None:
    policy = policy_of("rules:\n" + rule("one", "[a.example]", "/**", f"allow: anyone{rest}"))
    assert upstream(decide(policy, request("GET", "a.example/"))).get("authorization", "untouched") == expected


PLACES = """
rules:
  - name: one
    hosts: [a.example]
    paths: [/one]
    tokens_from: shop
    require: any_token
    token_in: [authorization, {header: x-token}, {cookie: session}, {query: token}]
  - {name: public, hosts: [a.example], paths: [/public], allow: anyone, response_headers: {x-a: b}}
"""


def test_own_tokens_never_reach_the_upstream() -> None:
    policy = policy_of(PLACES)
    asked = request("GET", "a.example/one?a=1&token=t", cookie="a=1; session=t", x_token="t")
    decision = decide(policy, asked, principal())
    found = upstream(decision)
    assert found["x-token"] is None
    assert found["cookie"] == "a=1"
    assert isinstance(decision, Allow)
    assert decision.remove_query == ("token",)
    other = decide(policy, request("GET", "a.example/public?token=t", cookie="session=t", x_token="t"))
    assert upstream(other)["cookie"] is None
    assert "x-token" not in upstream(other), "the header is one of another rule's"
    assert isinstance(other, Allow)
    assert other.remove_query == ("token",)
    assert [(edit.name, edit.value) for edit in other.downstream] == [("x-a", "b")]
    plain = decide(policy, request("GET", "a.example/public?a=1", cookie="a=1"))
    assert "cookie" not in upstream(plain)
    assert isinstance(plain, Allow)
    assert plain.remove_query == ()
    twice = replace(request("GET", "a.example/public", cookie="a=1; b=2"), repeated=frozenset({"cookie"}))
    assert upstream(decide(policy, twice))["cookie"] == "a=1; b=2"


@pytest.mark.parametrize(
    ("hops", "source", "forwarded", "address"),
    [
        (0, "192.0.2.1", "10.0.0.1", "192.0.2.1"),
        (0, "", "10.0.0.1", None),
        (0, "::ffff:192.0.2.1", "", "192.0.2.1"),
        (1, "192.0.2.1", "10.0.0.1", "10.0.0.1"),
        (1, "192.0.2.1", "10.0.0.9, 10.0.0.1", "10.0.0.1"),
        (2, "192.0.2.1", "10.0.0.9,\t10.0.0.1", "10.0.0.9"),
        (2, "192.0.2.1", "10.0.0.1", None),
        (1, "192.0.2.1", "", None),
        (1, "192.0.2.1", "unknown", None),
        (1, "192.0.2.1", "10.0.0.1:80", None),
        (1, "192.0.2.1", "2001:DB8::1", "2001:db8::1"),
    ],
)
def test_the_clients_address_is_never_its_own_word(hops: int, source: str, forwarded: str, address: str | None) -> None:
    asked = request("GET", "a.example/", source=source, **({"x_forwarded_for": forwarded} if forwarded else {}))
    assert match_address(asked, hops) == address


def test_an_unknown_address_is_in_no_network() -> None:
    policy = asking("{networks: {any: [0.0.0.0/0, '::/0']}}")
    assert why(decide(policy, request("GET", "b.example/alice"), principal())) is None
    unknown = decide(policy, request("GET", "b.example/alice", source=""), principal())
    assert why(unknown) is Reason.NETWORK_REFUSED


CORS = """
cors:
  - hosts: [a.example]
    origins: ["https://app.example"]
    methods: [GET, PUT]
    headers: [X-One, authorization]
    expose: [x-two, x-three]
    credentials: true
    max_age: 60
  - {hosts: [b.example], origins: ["*"], methods: [GET], preflight: pass}
  - {hosts: [d.example], origins: ["*"], methods: [GET]}
guards:
  - {name: inside, hosts: everywhere, paths: ["/in/**"], require: {networks: 10.0.0.0/8, roles: admin}}
identity_headers: {x-user: '{sub}'}
rules:
  - {name: get, hosts: everywhere, paths: ["/**"], methods: [GET], tokens_from: shop, require: any_token,
     token_in: [authorization, {header: x-token}, {query: token}]}
  - {name: shut, hosts: everywhere, paths: ["/shut"], allow: nobody}
  - {name: data, hosts: everywhere, paths: ["/data/{x}"], allow: anyone}
"""


def preflight(url: str, wanted: str = "GET", origin: str = "https://app.example", **headers: str) -> Decision | Reason:
    policy = policy_of(CORS)
    asked = request("OPTIONS", url, origin=origin, **headers)
    cors = policy.cors.match_first(asked.host.name)
    assert cors is not None
    try:
        return decide_preflight(policy, cors, asked, wanted)
    except Rejected as rejected:
        return rejected.reason


def test_a_preflight_is_answered() -> None:
    decision = preflight("a.example/x", access_control_request_headers="X-One,\tAuthorization")
    assert isinstance(decision, Deny)
    assert (decision.reason, decision.status, decision.rule) == (Reason.PREFLIGHT, 204, "get")
    found = {edit.name: edit.value for edit in decision.headers}
    assert {edit.action for edit in decision.headers if edit.name != "vary"} == {HeaderAction.SET}
    assert found == {
        "access-control-allow-origin": "https://app.example",
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET, PUT",
        "access-control-allow-headers": "x-one, authorization",
        "access-control-expose-headers": "x-two, x-three",
        "access-control-max-age": "60",
        "vary": "origin",
    }


@pytest.mark.parametrize(
    ("url", "wanted", "origin", "headers", "reason"),
    [
        ("a.example/x", "GET", "https://evil.example", {}, Reason.ORIGIN_REFUSED),
        ("a.example/x", "GET", "null", {}, Reason.ORIGIN_REFUSED),
        ("a.example/x", "PUT", "https://app.example", {}, Reason.METHOD_NOT_COVERED),
        ("a.example/data/x", "DELETE", "https://app.example", {}, Reason.ORIGIN_REFUSED),
        ("a.example/x", "GET", "https://app.example", {"access_control_request_headers": "x-other"},
         Reason.ORIGIN_REFUSED),
        ("a.example/x", "GET", "https://app.example", {"access_control_request_headers": "x-one\xa0"},
         Reason.ORIGIN_REFUSED),
        ("a.example/shut", "GET", "https://app.example", {}, Reason.NOBODY),
        ("a.example/data/a%2fb", "GET", "https://app.example", {}, Reason.PATH_ENCODED_SLASH),
        ("a.example/in/x", "GET", "https://app.example", {}, Reason.NETWORK_REFUSED),
    ],
)  # fmt: skip
def test_a_preflight_is_refused(url: str, wanted: str, origin: str, headers: dict[str, str], reason: Reason) -> None:
    assert preflight(url, wanted, origin, **headers) is reason


def test_a_preflight_that_passes_carries_no_token_even_where_tokens_are_kept() -> None:
    policy = policy_of(CORS.replace("{name: data, ", "{name: data, authorization: keep, ").replace("[a.ex", "[c.ex"))
    asked = request("OPTIONS", "b.example/data/1", origin="https://app.example", authorization="Bearer x")
    cors = policy.cors.match_first("b.example")
    assert cors is not None
    assert upstream(decide_preflight(policy, cors, asked, "DELETE"))["authorization"] is None


def test_what_is_kept_with_a_principal_is_bounded_and_right_each_time() -> None:
    shape = "tokens_from: shop, require: any_token, authorization: {replace: '%d-{sub}'}"
    rules = "".join(rule(f"r{n}", "[a.example]", f"/{n}", shape % n) for n in range(3 * MAX_DERIVED))
    policy, who = policy_of(f"rules:\n{rules}"), principal()
    for _ in range(2):
        for n in range(3 * MAX_DERIVED):
            asked = request("GET", f"a.example/{n}", authorization="Bearer t")
            assert upstream(decide(policy, asked, who))["authorization"] == f"{n}-alice"
            assert len(who.derived) <= MAX_DERIVED


def test_a_preflight_that_passes_carries_nothing_of_ours() -> None:
    decision = preflight("b.example/x?token=t", x_token="t")
    found = upstream(decision) if not isinstance(decision, Reason) else {}
    assert {"x-user", "authorization", "x-token"} <= found.keys()
    assert not any(found.values())
    assert isinstance(decision, Allow)
    assert decision.remove_query == ("token",)
    plain = policy_of(CORS.replace("headers: [X-One, authorization]", "headers: []"))
    asked = request("OPTIONS", "a.example/x", origin="https://app.example")
    cors = plain.cors.match_first("a.example")
    assert cors is not None
    answered = decide_preflight(plain, cors, asked, "GET")
    assert isinstance(answered, Deny)
    assert "access-control-allow-headers" not in {edit.name for edit in answered.headers}
    assert isinstance(decision, Allow)
    assert (decision.rule, {edit.action for edit in decision.upstream}) == ("get", {HeaderAction.REMOVE})
    assert len(found) == len(decision.upstream)
    inside = request("OPTIONS", "a.example/in/x", source="10.0.0.1", origin="https://app.example")
    cors = policy_of(CORS).cors.match_first("a.example")
    assert cors is not None
    assert why(decide_preflight(policy_of(CORS), cors, inside, "GET")) is Reason.PREFLIGHT
    assert preflight("b.example/x", origin="") is not Reason.ORIGIN_REFUSED


def test_answers_to_other_origins() -> None:
    policy = policy_of(CORS)
    for host, origin, expected in (
        ("a.example", "https://app.example", "https://app.example"),
        ("a.example", "https://evil.example", None),
        ("b.example", "https://any.example", None),  # the upstream answers for itself
        ("d.example", "https://any.example", "*"),
    ):
        decision = decide(policy, request("GET", f"{host}/data/x", origin=origin))
        assert isinstance(decision, Allow)
        found = {edit.name: edit.value for edit in decision.downstream}
        assert found.get("access-control-allow-origin") == expected
    plain = decide(policy, request("GET", "a.example/data/x"))
    assert isinstance(plain, Allow)
    assert plain.downstream == ()
    twice = replace(request("GET", "a.example/data/x", origin="https://app.example"), repeated=frozenset({"origin"}))
    decision = decide(policy, twice)
    assert isinstance(decision, Allow)
    assert [edit.name for edit in decision.downstream] == ["vary"]


@pytest.mark.parametrize("text", ["{name}", "{claims}", "{claims.}", "{claims.a..b}", "{}", "{sub", "sub}", ""])
def test_what_is_no_template_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no value|has a lone|sets nothing"):
        parse_template(text)


@pytest.mark.parametrize(
    ("require", "text"),
    [
        ("{roles: {all: [b, 'c:a', {client: 'a:b', role: 'c%'}]}}", "roles: all of a%3Ab:c%25, b, c:a"),
        ("{groups: {all: [a, 'b/**']}}", "groups: all of a, b/**"),
        ("{groups: {any: [a, 'b/**']}}", "groups: any of a, b/**"),
        ("{scopes: {all: [s, t]}}", "scopes: all of s, t"),
        ("{client_ids: {any: [app, web]}}", "clients: any of app, web"),
        ("{networks: {any: [10.0.0.0/8, 'fd00::/8']}}", "networks: any of 10.0.0.0/8, fd00::/8"),
        ("{claims: {a.b: x}}", "claim a.b: value 'x'"),
    ],
)
def test_a_requirement_says_whether_it_needs_any_or_all_and_no_two_roles_read_alike(require: str, text: str) -> None:
    assert [str(test) for test in asking(require).rules[0].branches[0].tests] == [text]


def test_requirements_speak_for_themselves() -> None:
    policy = asking(
        "{roles: {any: [b, 'c:a']}, scopes: s, networks: 10.0.0.0/8, when: 'true', claims: {a: {all: [1, x]}}}"
    )
    assert [str(test) for test in policy.rules[0].branches[0].tests] == [
        "network 10.0.0.0/8",
        "scope s",
        "roles: any of b, c:a",
        "claim a: values: all of 1, 'x'",
        "when `true`",
    ]


def test_append_is_used_for_vary_only() -> None:
    decision = preflight("a.example/x")
    assert isinstance(decision, Deny)
    assert [edit.name for edit in decision.headers if edit.action is HeaderAction.APPEND] == ["vary"]


def test_a_rule_is_found_for_a_request_of_each_kind() -> None:
    asked: Request = request("GET", "a.example/data/x")
    assert match_rule(policy_of(CORS), asked.host, asked.target, "GET").rule.name == "data"


PASSED = """
guards:
  - {name: mesh, hosts: [a.example], paths: ["/mesh/**"], require: {when: 'source.principal == "spiffe://x"'}}
  - {name: staff, hosts: [a.example], paths: ["/staff/**"], require: {roles: staff}}
  - {name: sub, hosts: [a.example], paths: ["/sub/**"], require: {when: 'claims.sub == "x"'}}
  - {name: subject, hosts: [a.example], paths: ["/subject/**"], require: {when: 'principal.subject == "x"'}}
  - {name: own, hosts: ["{t}.example"], paths: ["/own/{area}/**"], require: {when: 'host.t == path.area'}}
cors:
  - {hosts: [a.example], origins: ["https://app.example"], methods: [GET], preflight: pass}
  - {hosts: [b.example], origins: ["https://app.example"], methods: [GET]}
rules:
  - {name: get, hosts: [a.example, b.example], paths: ["/**"], methods: [GET], allow: anyone}
  - {name: closed, hosts: [a.example, b.example], paths: ["/closed"], methods: [OPTIONS, GET], allow: nobody}
  - {name: any, hosts: [a.example], paths: ["/any"], allow: anyone}
"""


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("a.example/x", "GET"),
        ("a.example/any", "GET"),
        ("a.example/closed", None),  # a rule names OPTIONS: it judges the request
        ("b.example/closed", "GET"),  # answered here, whatever the rule says: nothing reaches the upstream
        ("c.example/x", None),
    ],
)
def test_a_rule_that_names_options_judges_what_would_pass(url: str, asked: str | None) -> None:
    policy = policy_of(PASSED)
    headers = {"origin": "https://app.example", "access_control_request_method": "GET"}
    found = request("OPTIONS", url, **headers)
    cors = policy.cors.match_first(found.host.name)
    assert match_asked_method(policy, cors, found) == asked
    assert match_asked_method(policy, cors, replace(found, method="GET")) is None


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("/mesh/x", "spiffe://x", None),
        ("/mesh/x", "spiffe://evil", Reason.CONDITION_FALSE),
        ("/staff/x", "", None),  # a preflight has no token to show
        ("/sub/x", "", None),
        ("/subject/x", "", None),
        ("/own/a/x", "", None),
        ("/own/b/x", "", Reason.CONDITION_FALSE),
    ],
)
def test_a_preflight_that_passes_is_held_to_guards_that_need_nobody(
    path: str, source: str, reason: Reason | None
) -> None:
    policy = policy_of(PASSED)
    headers = {"origin": "https://app.example", "access_control_request_method": "GET"}
    asked = replace(request("OPTIONS", f"a.example{path}", **headers), source_principal=source)
    cors = policy.cors.match_first("a.example")
    assert cors is not None
    try:
        decision: Decision | Reason = decide_preflight(policy, cors, asked, "GET")
    except Rejected as rejected:
        decision = rejected.reason
    assert (decision if reason else isinstance(decision, Allow)) == (reason or True)


HOPS = st.sampled_from(
    [
        "10.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "[::1]",
        "10.0.0.1:80",
        "unknown",
        "",
        " ",
        "\t",
        "fe80::1%eth0",
        "1",
        "010.0.0.1",
    ]
)


@given(hops=st.text(max_size=40) | st.lists(HOPS, max_size=5).map(",".join), trusted=st.integers(1, 6))
def test_nothing_escapes_from_forwarded_addresses_and_only_addresses_come_out(hops: str, trusted: int) -> None:
    found = match_address(replace(request(), headers={"x-forwarded-for": hops}), trusted)
    if found is not None:
        assert str(ip_address(found)) == found
        assert len(hops.split(",")) >= trusted


def test_each_trusted_hop_is_counted_from_the_right() -> None:
    """Just enough hops, one too few, and junk in the place that counts."""
    asked = replace(request(), headers={"x-forwarded-for": "192.0.2.1, 10.0.0.2,\t10.0.0.3 "})
    assert [match_address(asked, hops) for hops in range(5)] == ["192.0.2.1", "10.0.0.3", "10.0.0.2", "192.0.2.1", None]
    for end in range(len("10.0.0.3")):
        cut = replace(request(), headers={"x-forwarded-for": f"192.0.2.1,{'10.0.0.3'[:end]}"})
        assert match_address(cut, 1) is None
    for junk in (":80", "%1", "/32", "\x0b", "\u2003", *string.ascii_letters):
        odd = replace(request(), headers={"x-forwarded-for": f"192.0.2.1,10.0.0.3{junk}"})
        assert match_address(odd, 1) is None
