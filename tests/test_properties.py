"""What holds of every answer on the wire, whatever the policy and the request: identity is ours, and a Deny denies.

Policies, requests and tokens are made at random; the way is the real one, from Envoy's bytes to Envoy's bytes. The one
token that is proved was proved before, so that nobody is asked.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from authz.clients.authenticate import Authenticator, token_digest
from authz.clients.evidence import Evidence, EvidenceCache
from authz.config import load_text
from authz.gate import Gate, Snapshot
from authz.model import Allow, Decision, Deny, Principal, Rejected, Request, Role, Unread
from authz.observe import Timing
from authz.pb.envoy.config.core.v3.base_pb2 import HeaderValueOption
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.envoy import describe_check, parse_check, render_check
from tests.fakes import Events, FakeClock

ISSUER = "https://sso.example.com"
TOKEN = "known-token"
FORGED = "forged"
"""Stands in the value of every header that a client forges, and in nothing that is ours."""

IDENTITY = ["x-user", "x_roles", "x.mail", "x-a_b.c", "uid", "X-Tenant-Id"]
TEMPLATES = ["{sub}", "{provider}:{sub}", "{email}", "{roles}", "{claims.n}", "{claims.missing}", "fixed", "{{{sub}}}"]
OTHER_HEADERS = ["accept", "x-request-id", "x-userid", "user", "content-type", "x--user"]

Headers = list[tuple[str, bytes]]


class Nobody:
    """Is told of decisions."""

    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        del request, decision, timing


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as Envoy tells of it."""

    method: str
    path: str
    headers: Headers

    def message(self, *, raw: bool) -> bytes:
        """Write it with ``header_map``, or with ``headers``, in which Envoy joins what comes twice."""
        found = CheckRequest()
        http = found.attributes.request.http
        http.method, http.host, http.path, http.id = self.method, "a.example", self.path, "7"
        found.attributes.source.address.socket_address.address = "192.0.2.1"
        for name, value in self.headers:
            if raw:
                http.header_map.headers.add(key=name, raw_value=value)
                continue
            key, text = name.lower(), value.decode("utf-8", "replace").replace("\ufffd", "!")
            if key in http.headers:
                http.headers[key] += ("; " if key == "cookie" else ",") + text
            else:
                http.headers[key] = text
        return found.SerializeToString()


def decide(rules: dict[str, Any], raw: bytes) -> Decision:
    """Take a request the whole way, as the server does."""
    configuration = load_text(json.dumps(rules), path=Path("rules.yaml"), environ={"S": "s"})
    clock = FakeClock()
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    (provider,) = configuration.providers.values()
    expires_at_s = clock.wall_s + 60
    claims = {"iss": ISSUER, "sub": "alice", "n": 7, "exp": expires_at_s}
    principal = Principal(
        provider="shop", issuer=ISSUER, subject="alice", client_id="web", claims=claims, expires_at_s=expires_at_s,
        roles=frozenset({Role("reader")}),
    )  # fmt: skip
    evidence = Evidence(
        claims=claims, principal=principal, key=None, asked_s=clock.monotonic_s(), expires_at_s=expires_at_s
    )
    cache.keep(token_digest(provider, TOKEN), evidence, keep_s=60)
    snapshot = Snapshot(
        policy=configuration.policy,
        authenticators={"shop": Authenticator(provider, cache=cache, clock=clock, events=Events())},
        generation=1,
    )
    gate = Gate(snapshot, clock=clock, recorder=Nobody())
    try:
        request = parse_check(raw)
    except Rejected as rejected:
        return gate.refuse(rejected.reason, request=describe_check(raw))
    return asyncio.run(gate.check(request))


# --- policies and requests --------------------------------------------------------------------------------------------

ANSWERS: list[dict[str, Any]] = [
    {"status": 302, "location": "https://login.example/?from=a"},
    {"status": 307, "location": "/"},
    {"status": 404},
    {"status": 429, "body": "no"},
    {"status": 503},
    {"body": "<p>no</p>", "content_type": "text/html"},
    {"headers": {"www-authenticate": "Basic", "cache-control": "private", "x-new": "1"}},
]
PLACES: list[Any] = ["authorization", {"header": "x-token"}, {"cookie": "t"}, {"query": "t"}]


@st.composite
def rules_of(draw: st.DrawFn, number: int, names: list[str]) -> dict[str, Any]:
    rule: dict[str, Any] = {"name": f"r{number}", "hosts": ["a.example"], "paths": [f"/r{number}"]}
    access = draw(st.sampled_from(["anyone", "optional", "nobody", *["proved"] * 4]))
    if access != "proved":
        rule["allow"] = access
    if access in {"optional", "proved"}:
        rule["tokens_from"] = "shop"
        if draw(st.booleans()):
            rule["token_in"] = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4, unique_by=str))
    if access == "proved":
        rule["require"] = draw(st.sampled_from(["any_token", "any_token", {"roles": "reader"}, {"scopes": "none"}]))
    choices = [
        "keep",
        "remove",
        *([{"replace": "Bearer {sub}"}, {"replace": "{email}"}] if "tokens_from" in rule else []),
    ]
    if draw(st.booleans()):
        rule["authorization"] = draw(st.sampled_from(choices))
    if bool(names) and draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
        rule["identity_headers"] = {name: draw(st.sampled_from(TEMPLATES)) for name in chosen}
    statuses = draw(st.lists(st.sampled_from(["400", "401", "403", "503"]), unique=True, max_size=4))
    rule["answers"] = {status: draw(st.sampled_from(ANSWERS)) for status in statuses}
    if draw(st.booleans()):
        rule["response_headers"] = {"x-served-by": "us"}
    return rule


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(IDENTITY), unique=True, min_size=1))
    policy: dict[str, Any] = {
        "version": 1,
        "providers": {
            "shop": {
                "issuer": ISSUER,
                "audiences": ["a"],
                "introspection": {
                    "client_id": "c",
                    "client_secret": "${env:S}",
                    "tokens": "all",
                    "endpoint": "https://sso.example.com/introspect",
                },
            }
        },
        "identity_headers": {name: draw(st.sampled_from(TEMPLATES)) for name in names},
        "rules": [draw(rules_of(number, names)) for number in range(2)],
    }
    if draw(st.booleans()):
        policy["cors"] = [
            {
                "hosts": ["a.example"],
                "origins": ["https://app.example"],
                "methods": ["GET", "POST"],
                "credentials": draw(st.booleans()),
                "preflight": draw(st.sampled_from(["pass", "pass", "answer"])),
            }
        ]
    if draw(st.integers(0, 3)) == 0:
        require = draw(st.sampled_from([{"networks": "192.0.2.0/24"}, {"networks": "10.0.0.0/8"}, {"roles": "reader"}]))
        policy["guards"] = [{"name": "g", "hosts": "everywhere", "paths": ["/r1"], "require": require}]
    return policy


def spellings_of(name: str) -> st.SearchStrategy[str]:
    """Return every way to write a name that some upstream folds into it: separators and case."""
    return st.tuples(
        *(st.sampled_from("-_.") if char in "-_." else st.sampled_from([char.lower(), char.upper()]) for char in name)
    ).map("".join)


CREDENTIALS: list[tuple[str, bytes]] = [
    ("authorization", f"Bearer {TOKEN}".encode()),
    ("authorization", b"Basic Zm9v"),
    ("authorization", b"Bearer"),
    ("x-token", TOKEN.encode()),
    ("x-token", b"\xff"),
    ("cookie", f"a=b; t={TOKEN}".encode()),
    ("cookie", f"t={TOKEN}; \xe9=1".encode("latin-1")),
    ("cookie", b"a=b"),
]
GOOD: dict[str, tuple[str, bytes]] = {
    "authorization": CREDENTIALS[0],
    "{'header': 'x-token'}": CREDENTIALS[3],
    "{'cookie': 't'}": CREDENTIALS[5],
}
BROWSERS: list[tuple[str, bytes]] = [
    ("origin", b"https://app.example"),
    ("origin", b"https://evil.example"),
    ("accept", b"text/html"),
    ("content-type", b"application/grpc"),
]
PREFLIGHT: Headers = [("origin", b"https://app.example"), ("access-control-request-method", b"GET")]


@st.composite
def requests_to(draw: st.DrawFn, rules: dict[str, Any]) -> Asked:
    """Make a request to one of the rules, which often has all that the rule asks for, and forges some headers."""
    number = draw(st.integers(0, 1))
    path, method = f"/r{number}", draw(st.sampled_from(["GET", "GET", "POST"]))
    headers: Headers = []
    kind = draw(st.sampled_from(["good", "good", "good", "preflight", "any", "odd path"]))
    if kind == "good":
        place = draw(st.sampled_from(rules["rules"][number].get("token_in", ["authorization"])))
        path += "" if str(place) in GOOD else f"?t={TOKEN}"
        headers += [GOOD[str(place)]] if str(place) in GOOD else []
    elif kind == "preflight":
        method, headers = "OPTIONS", [*PREFLIGHT]
    elif kind == "odd path":
        path = draw(st.sampled_from(["/none", "/r0/../x", "/r1?a=b", "/r0;x", "/r0/"]))
    if kind != "good" or draw(st.integers(0, 4)) == 0:
        headers += draw(st.lists(st.sampled_from([*CREDENTIALS, *BROWSERS]), max_size=2))
    names = st.sampled_from([*rules["identity_headers"], *rules["identity_headers"], *OTHER_HEADERS])
    headers += [(name, FORGED.encode()) for name in draw(st.lists(names.flatmap(spellings_of), max_size=6))]
    return Asked(method=method, path=path, headers=headers)


CASES = policies().flatmap(lambda rules: st.tuples(st.just(rules), requests_to(rules)))


def fold(name: str) -> str:
    """Return what CGI and WSGI make of a name: written again here, so that ours is not judged by itself."""
    return re.sub("[-_.]", "_", name.lower())


# --- the properties ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(case=CASES, raw=st.booleans())
def test_every_answer(case: tuple[dict[str, Any], Asked], *, raw: bool) -> None:
    """Invariants IDENTITY-HEADERS-ARE-OURS, ONE-CONSTRUCTOR and, on the wire, NO-RAW-TOKENS."""
    rules, asked = case
    decision = decide(rules, asked.message(raw=raw))
    response = CheckResponse.FromString(render_check(decision))
    if isinstance(decision, Deny):
        check_deny(response)
    else:
        check_identity(rules, asked, decision, response)
        check_tokens(rules, asked, decision, response)


def check_deny(response: CheckResponse) -> None:
    assert response.status.code != 0
    assert response.WhichOneof("http_response") == "denied_response"
    denied = response.denied_response
    assert denied.status.code == 204 or 300 <= denied.status.code <= 599
    for option in denied.headers:
        assert option.HasField("append")
        assert not option.append.value, "what is appended to a denied answer is lost up to Envoy 1.36"
    assert len({option.header.key for option in denied.headers}) == len(denied.headers) or any(
        option.header.key == "vary" for option in denied.headers
    )
    assert TOKEN not in str(response)


def check_identity(rules: dict[str, Any], asked: Asked, allow: Allow, response: CheckResponse) -> None:
    assert response.status.code == 0
    assert response.WhichOneof("http_response") == "ok_response"
    ok = response.ok_response
    put = {option.header.key: option for option in ok.headers}
    removed = list(ok.headers_to_remove)
    assert len(put) == len(ok.headers), "a name is set twice"
    assert len(set(removed)) == len(removed), "a name is removed twice"
    assert not put.keys() & set(removed), "a name is both set and removed: which comes first is Envoy's affair"
    ours = {name.lower() for name in rules["identity_headers"]}
    for name in ours:
        assert (name in put) is not (name in removed), f"{name} is neither ours nor gone"
        assert name not in put or allow.principal is not None, f"{name} is set though nobody was proved"
    for option in ok.headers:
        assert option.HasField("append")
        assert not option.append.value
        assert option.append_action == HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        assert FORGED not in option.header.value
    for name in ours:
        for mark in "-_.":
            hidden = re.sub("[-_.]", mark, name)
            assert hidden in (*put, *removed), f"{hidden} would reach the upstream if Envoy did not show it to us"
    folded = {fold(name) for name in ours}
    for name, _ in asked.headers:
        if fold(name) in folded and name.lower() not in put:
            assert name.lower() in removed, f"{name} is read as ours by some upstream"
    assert not {fold(name) for name in OTHER_HEADERS} & {fold(name) for name in (*put, *removed)}


def check_tokens(rules: dict[str, Any], asked: Asked, allow: Allow, response: CheckResponse) -> None:
    ok = response.ok_response
    put = {option.header.key: option.header.value for option in ok.headers}
    (rule,) = [its for its in rules["rules"] if its["name"] == allow.rule]
    choice = rule.get("authorization", "remove" if rule.get("allow") == "anyone" else "proved")
    is_preflight = asked.method == "OPTIONS" and any(its["preflight"] == "pass" for its in rules.get("cors", ())) and {
        "origin", "access-control-request-method"
    } <= {name for name, _ in asked.headers}  # fmt: skip
    places = rule.get("token_in", ["authorization"])
    proved_there = allow.principal is not None and "authorization" in places and any(
        name == "authorization" for name, _ in asked.headers
    )  # fmt: skip
    if is_preflight:
        assert allow.principal is None
        assert "authorization" in ok.headers_to_remove
    elif choice == "keep" or (choice == "proved" and proved_there):
        assert "authorization" not in (*put, *ok.headers_to_remove)
    elif choice == {"replace": "Bearer {sub}"} and allow.principal is not None:
        assert put["authorization"] == "Bearer alice"
    else:
        assert "authorization" in ok.headers_to_remove
    if {"header": "x-token"} in places and "tokens_from" in rule:
        assert "x-token" in ok.headers_to_remove
    cookies = any({"cookie": "t"} in its.get("token_in", []) for its in rules["rules"])
    if cookies and any(name == "cookie" and TOKEN.encode() in value for name, value in asked.headers):
        assert TOKEN not in put.get("cookie", "")
        assert "cookie" in (*put, *ok.headers_to_remove)
    if any({"query": "t"} in its.get("token_in", []) for its in rules["rules"]) and "?t=" in asked.path:
        assert list(ok.query_parameters_to_remove) == ["t"]
    assert TOKEN not in str(response)


@settings(deadline=None, max_examples=300)
@given(case=CASES)
def test_header_map_decides_as_headers_do_and_only_ever_more_strictly(case: tuple[dict[str, Any], Asked]) -> None:
    """What comes twice, or is not UTF-8, is seen in ``header_map`` only: it may refuse there, and never let in."""
    rules, asked = case
    by_map, by_text = decide(rules, asked.message(raw=True)), decide(rules, asked.message(raw=False))
    names = [name.lower() for name, _ in asked.headers]
    if len(set(names)) == len(names) and all(is_utf8(value) for _, value in asked.headers):
        assert in_order(by_map) == in_order(by_text)
    elif isinstance(by_map, Allow):
        assert isinstance(by_text, Allow)
        assert by_map.principal == by_text.principal


def in_order(decision: Decision) -> Decision:
    """Sort what an allow removes by name: the ``headers`` of a message come in any order."""
    if isinstance(decision, Deny):
        return decision
    return replace(decision, upstream=tuple(sorted(decision.upstream, key=lambda edit: (edit.name, edit.action))))


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
