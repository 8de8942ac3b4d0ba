"""Every Reason is earned by one small request, which goes the whole way: from Envoy's bytes to Envoy's bytes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm

from authz.clients.authenticate import Authenticator
from authz.clients.evidence import EvidenceCache
from authz.config import load_text
from authz.config.settings import ServerSettings
from authz.core.headers import MAX_IDENTITY_BYTES
from authz.core.jwt import MAX_HEADER_BYTES, MAX_TOKEN_BYTES
from authz.core.path import MAX_TARGET_CHARS
from authz.gate import Gate, Snapshot
from authz.model import REASONS, Decision, Reason, Request, Unread
from authz.observe import Observer, Timing
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.check import CheckHandler
from tests.fakes import HANG, Answer, Events, FakeClock, FakeProvider, Signer, fake_provider, http, json_answer

RULES = """
version: 1
providers:
  shop:
    preset: keycloak
    issuer: https://sso.example.com
    audiences: [a]
    algorithms: [ES256, RS256]
    clients: [web, cli]
    max_lifetime: 1h
    keys: {jwks_url: IDP/jwks}
  opaque:
    issuer: https://opaque.example.com
    audiences: [a]
    introspection: {client_id: c, client_secret: "${env:S}", endpoint: IDP/introspect, tokens: all}
  dark:
    issuer: https://dark.example.com
    audiences: [a]
    keys: {jwks_url: IDP/nowhere}
identity_headers: {x-big: "{provider} {claims.big}"}
cors: [{hosts: [a.example], origins: ["https://app.example"], methods: [GET]}]
rules:
  - {name: public, hosts: [a.example], paths: [/public], methods: [GET], allow: anyone}
  - {name: closed, hosts: [a.example], paths: [/closed], allow: nobody}
  - {name: any, hosts: [a.example], paths: [/any], tokens_from: shop, require: any_token}
  - {name: role, hosts: [a.example], paths: [/role], tokens_from: shop, require: {roles: reader}}
  - {name: group, hosts: [a.example], paths: [/group], tokens_from: shop, require: {groups: staff}}
  - {name: scope, hosts: [a.example], paths: [/scope], tokens_from: shop, require: {scopes: read}}
  - {name: client, hosts: [a.example], paths: [/client], tokens_from: shop, require: {client_ids: web}}
  - {name: claim, hosts: [a.example], paths: [/claim], tokens_from: shop, require: {claims: {tier: gold}}}
  - {name: network, hosts: [a.example], paths: [/network], tokens_from: shop, require: {networks: 192.0.2.0/24}}
  - {name: elsewhere, hosts: [a.example], paths: [/elsewhere], tokens_from: shop, require: {networks: 10.0.0.0/8}}
  - {name: when, hosts: [a.example], paths: [/when], tokens_from: shop, require: {when: "claims.n == 1"}}
  - {name: query, hosts: [a.example], paths: [/query], tokens_from: shop, token_in: [{query: t}], require: any_token}
  - {name: opaque, hosts: [a.example], paths: [/opaque], tokens_from: opaque, require: any_token}
  - {name: dark, hosts: [a.example], paths: [/dark], tokens_from: dark, require: any_token}
"""
GOOD: dict[str, Any] = {
    "iss": "https://sso.example.com", "aud": "a", "sub": "alice", "typ": "Bearer", "azp": "web", "tier": "gold", "n": 1,
    "realm_access": {"roles": ["reader"]}, "groups": ["/staff"], "scope": "read",
}  # fmt: skip
RSA = generate_private_key(65_537, 2_048)


class Nobody:
    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        del request, decision, timing


class Broken:
    """Somebody's log that fails: a stand-in for any bug of ours."""

    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        del request, decision, timing
        raise RuntimeError("a bug")


class World:
    """The whole service but for its sockets, over a provider in bytes."""

    def __init__(self, idp: FakeProvider) -> None:
        self.idp = idp
        self.clock = FakeClock()
        self.signer = Signer()
        rsa = RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True) | {"kid": "rsa", "alg": "RS256"}
        idp.answers["/jwks"] = json_answer({"keys": [self.signer.jwk(), rsa]})
        idp.answers["/introspect"] = json_answer({"active": False})
        configuration = load_text(RULES.replace("IDP", idp.url), path=Path("rules.yaml"), environ={"S": "s"})
        cache = EvidenceCache(max_bytes=1 << 20, clock=self.clock.monotonic_s)
        self.authenticators = {
            name: Authenticator(provider, cache=cache, clock=self.clock, events=Events())
            for name, provider in configuration.providers.items()
        }
        self.gate = Gate(
            Snapshot(policy=configuration.policy, authenticators=self.authenticators, generation=1),
            clock=self.clock,
            recorder=Nobody(),
        )
        self.handler = self.handler_of(self.gate)

    def handler_of(self, gate: Gate, **settings: Any) -> CheckHandler:
        return CheckHandler(
            gate,
            ServerSettings(**{"max_request_bytes": 100_000, "deadline_ms": 1_000} | settings),
            Observer(stream=io.StringIO()),
        )

    async def send(self, raw: bytes, handler: CheckHandler | None = None) -> CheckResponse:
        return CheckResponse.FromString(await (handler or self.handler).check(raw, None))

    def claims(self, **changes: Any) -> dict[str, Any]:
        claims = GOOD | {"exp": self.clock.wall_s + 60, "iat": self.clock.wall_s} | changes
        return {name: value for name, value in claims.items() if value is not None}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_provider() as idp:
        made = World(idp)
        yield made
        for its in made.authenticators.values():
            await its.close()


Case = Callable[[World], Awaitable[CheckResponse]]


def message(path: str = "/public", *, method: str = "GET", host: str = "a.example", **headers: str) -> bytes:
    found = CheckRequest()
    http = found.attributes.request.http
    http.method, http.host, http.path = method, host, path
    for name, value in headers.items():
        http.headers[name.replace("_", "-")] = value
    found.attributes.source.address.socket_address.address = "192.0.2.1"
    return found.SerializeToString()


def ask(path: str = "/public", **request: str) -> Case:
    return lambda world: world.send(message(path, **request))


def show(token: str, path: str = "/any") -> Case:
    return ask(path, authorization=f"Bearer {token}")


def claim(path: str = "/any", **changes: Any) -> Case:
    """Show a token whose claims differ from the good one's; None leaves one out."""
    return lambda world: show(world.signer.sign(world.claims(**changes)), path)(world)


def sign(*, signer: Callable[[World], Signer] = lambda world: world.signer, **header: Any) -> Case:
    """Show a token with good claims and another header, or another's signature."""
    return lambda world: show(signer(world).sign(world.claims(), **header))(world)


def forge(header: object, payload: bytes = b"{}") -> str:
    parts = (json.dumps(header).encode(), payload, b"signature")
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def introspect(answer: Answer, **settings: Any) -> Case:
    """Show an opaque token, about which the provider answers so."""

    async def run(world: World) -> CheckResponse:
        world.idp.answers["/introspect"] = answer
        raw = message("/opaque", authorization="Bearer opaque")
        return await world.send(raw, world.handler_of(world.gate, **settings))

    return run


async def overload(world: World) -> CheckResponse:
    world.idp.answers["/introspect"] = HANG
    handler = world.handler_of(world.gate, max_inflight=1, deadline_ms=100)
    first = asyncio.create_task(world.send(message("/opaque", authorization="Bearer opaque"), handler))
    await asyncio.sleep(0)
    found = await world.send(message(), handler)
    await first
    return found


async def ask_for_an_unknown_key_twice(world: World) -> CheckResponse:
    unknown = sign(signer=lambda _: Signer("unknown"))
    await unknown(world)
    return await unknown(world)


async def ask_too_early(world: World) -> CheckResponse:
    return await world.send(message(), world.handler_of(Gate(None, clock=world.clock, recorder=Nobody())))


async def meet_a_bug(world: World) -> CheckResponse:
    return await world.send(
        message(), world.handler_of(Gate(world.gate.snapshot, clock=world.clock, recorder=Broken()))
    )


PREFLIGHT = {"method": "OPTIONS", "access_control_request_method": "GET"}

CASES: dict[Reason, Case] = {
    Reason.NOT_HTTP: lambda world: world.send(b""),
    Reason.BAD_HOST: ask(host="a..example"),
    Reason.BAD_METHOD: ask(method="GE T"),
    Reason.BAD_HEADER: ask(**{":path": "/other"}),
    Reason.PATH_FORM: ask("public"),
    Reason.PATH_TOO_LONG: ask("/" + "a" * MAX_TARGET_CHARS),
    Reason.PATH_CONTROL: ask("/public\t"),
    Reason.PATH_FRAGMENT: ask("/public#"),
    Reason.PATH_BACKSLASH: ask("/public\\"),
    Reason.PATH_BAD_ESCAPE: ask("/public%"),
    Reason.PATH_BAD_UTF8: ask("/public%ff"),
    Reason.PATH_DOT_SEGMENT: ask("/./public"),
    Reason.PATH_ENCODED_SLASH: ask("/public%2f"),
    Reason.PATH_PERCENT: ask("/public%2541"),
    Reason.PATH_SEMICOLON: ask("/public;"),
    Reason.PATH_EMPTY_SEGMENT: ask("//public"),
    Reason.REQUEST_TOO_LARGE: ask(x="a" * 100_000),
    Reason.CREDENTIAL_MALFORMED: show("a b"),
    Reason.CREDENTIAL_TOO_LARGE: show("a" * (MAX_TOKEN_BYTES + 1)),
    Reason.CREDENTIAL_TWICE: show("a, Bearer b"),
    Reason.QUERY_AMBIGUOUS: ask("/query?%74=a"),
    Reason.NO_CREDENTIAL: ask("/any"),
    Reason.OTHER_SCHEME: ask("/any", authorization="Basic YQ=="),
    Reason.JWT_MALFORMED: show("a.b.c"),
    Reason.JWT_TOO_LARGE: show(forge({"alg": "ES256", "x": "a" * MAX_HEADER_BYTES})),
    Reason.JWT_ENCRYPTED: show("a.b.c.d.e"),
    Reason.JWT_HEADER: show(forge({})),
    Reason.JWT_CRIT: sign(crit=["x"]),
    Reason.JWT_TYPE: sign(typ="id+jwt"),
    Reason.JWT_ALGORITHM: show(forge({"alg": "none", "typ": "JWT"}, json.dumps(GOOD).encode())),
    Reason.JWT_PAYLOAD: show(forge({"alg": "ES256"}, b"[]")),
    Reason.JWT_UNKNOWN_KEY: sign(signer=lambda _: Signer("unknown")),
    Reason.JWT_KEY_MISMATCH: sign(kid="rsa"),
    Reason.JWT_SIGNATURE: sign(signer=lambda world: Signer(world.signer.kid)),
    Reason.ISSUER_MISSING: claim(iss=None),
    Reason.ISSUER_MISMATCH: claim(iss="https://sso.example.com/"),
    Reason.AUDIENCE_MISSING: claim(aud=None),
    Reason.AUDIENCE_MISMATCH: claim(aud="b"),
    Reason.EXPIRY_MISSING: claim(exp=None),
    Reason.EXPIRY_INVALID: claim(exp="9999999999"),
    Reason.EXPIRED: claim(exp=1),
    Reason.NOT_BEFORE_INVALID: claim(nbf=-1),
    Reason.NOT_YET_VALID: claim(nbf=1_900_000_000),
    Reason.ISSUED_AT_MISSING: claim(iat=None),
    Reason.ISSUED_AT_INVALID: claim(iat=True),
    Reason.ISSUED_IN_FUTURE: claim(iat=1_900_000_000),
    Reason.LIFETIME_TOO_LONG: claim(exp=1_900_000_000),
    Reason.TOKEN_TYPE: claim(typ="ID"),
    Reason.CLIENT_REFUSED: claim(azp="other"),
    Reason.CLAIM_INVALID: claim(sub=7),
    Reason.PROOF_MISSING: claim(cnf={"jkt": "x"}),
    Reason.TOKEN_INACTIVE: introspect(json_answer({"active": False})),
    Reason.OPAQUE_REFUSED: show("opaque"),
    Reason.NO_RULE: ask("/nowhere"),
    Reason.METHOD_NOT_COVERED: ask(method="POST"),
    Reason.NOBODY: ask("/closed"),
    Reason.ROLE_MISSING: claim("/role", realm_access={"roles": ["Reader"]}),
    Reason.GROUP_MISSING: claim("/group", groups=["/staff/x"]),
    Reason.SCOPE_MISSING: claim("/scope", scope="reader"),
    Reason.CLIENT_NOT_LISTED: claim("/client", azp="cli"),
    Reason.CLAIM_MISMATCH: claim("/claim", tier="Gold"),
    Reason.NETWORK_REFUSED: claim("/elsewhere"),
    Reason.CONDITION_FALSE: claim("/when", n=2),
    Reason.CONDITION_ERROR: claim("/when", n=None),
    Reason.ORIGIN_REFUSED: ask(**PREFLIGHT, origin="https://evil.example"),
    Reason.PREFLIGHT: ask(**PREFLIGHT, origin="https://app.example"),
    Reason.KEYS_UNAVAILABLE: show(forge({"alg": "ES256"}, b'{"iss": "https://dark.example.com"}'), "/dark"),
    Reason.KEY_REFETCH_HELD_BACK: ask_for_an_unknown_key_twice,
    Reason.PROVIDER_UNAVAILABLE: introspect(http(500)),
    Reason.PROVIDER_ANSWER: introspect(http(200, b"{}")),
    Reason.OVERLOADED: overload,
    Reason.DEADLINE: introspect(HANG, deadline_ms=50),
    Reason.NOT_READY: ask_too_early,
    Reason.HEADER_BUDGET: claim(big="a" * MAX_IDENTITY_BYTES),
    Reason.INTERNAL: meet_a_bug,
}


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_reason_is_earned(reason: Reason, world: World) -> None:
    response = await CASES[reason](world)
    assert response.status.message == reason.value
    assert response.status.code != 0
    assert response.denied_response.status.code == REASONS[reason].status
    headers = {option.header.key: option.header.value for option in response.denied_response.headers}
    error = REASONS[reason].error
    assert ("www-authenticate" in headers) is (error is not None or REASONS[reason].status == 401)
    assert error is None or f'error="{error}"' in headers["www-authenticate"]


def test_the_table_has_every_reason() -> None:
    assert CASES.keys() == set(Reason)


@pytest.mark.parametrize(
    "case",
    [
        ask(),
        *(claim(f"/{name}") for name in ("any", "role", "group", "scope", "client", "claim", "network", "when")),
        claim(azp="cli"),
        claim(big="a" * 8_000),
        claim(exp=1_800_003_600),
        sign(typ="at+jwt"),
        ask(host="a.example", origin="https://evil.example"),
        ask("/public?a=%2f;b"),
        introspect(
            json_answer({"active": True, "iss": "https://opaque.example.com", "aud": "a", "exp": 1_900_000_000})
        ),
    ],
)
async def test_their_twins_pass(case: Case, world: World) -> None:
    response = await case(world)
    assert (response.status.code, response.status.message) == (0, "")
    assert response.WhichOneof("http_response") == "ok_response"
