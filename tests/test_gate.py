"""The one orchestrator: every exit but an allow is a deny, and nothing it waits for outlasts the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authz.clients.authenticate import Authenticator
from authz.clients.evidence import EvidenceCache
from authz.config import load_text
from authz.gate import Gate, Snapshot
from authz.model import Allow, Decision, Deny, Reason, Request, Unread
from authz.observe import Timing
from tests.core.build import request
from tests.fakes import HANG, Events, FakeClock, FakeProvider, Signer, fake_provider, http, json_answer, jwks

SHOP, ACME = "https://sso.example.com", "https://acme.example.com"
RULES = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com
    audiences: [a]
    keys: {jwks_url: IDP/shop}
  acme:
    issuer: https://acme.example.com
    audiences: [a]
    keys: {jwks_url: IDP/acme}
    introspection: {client_id: c, client_secret: "${env:S}", endpoint: IDP/introspect}
identity_headers: {x-user: "{provider}:{sub}"}
cors: [{hosts: [cors.example], origins: ["https://app.example"], methods: [GET]}]
rules:
  - {name: public, hosts: [a.example], paths: [/public], allow: anyone}
  - {name: closed, hosts: [a.example], paths: [/closed], allow: nobody}
  - {name: maybe, hosts: [a.example], paths: [/maybe], allow: optional, tokens_from: shop}
  - {name: shop, hosts: [a.example, cors.example], paths: [/shop], tokens_from: shop, require: any_token}
  - {name: acme, hosts: [a.example], paths: [/acme], tokens_from: acme, require: any_token}
  - name: both
    hosts: [a.example]
    paths: [/both]
    any_of:
      - {tokens_from: shop, require: {claims: {tier: gold}}}
      - {tokens_from: acme, require: any_token}
  - name: jwt only
    hosts: [a.example]
    paths: [/jwt]
    any_of:
      - {tokens_from: shop, require: any_token}
      - {tokens_from: other, require: any_token}
  - {name: data, hosts: [a.example], paths: ["/data/{x}"], allow: anyone, accept: [encoded_slash]}
"""
OTHER = "  other: {issuer: 'https://other.example.com', audiences: [a], keys: {jwks_url: IDP/other}}\n"


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[Request | Unread | None, Decision, Timing]] = []

    def record(self, request: Request | Unread | None, decision: Decision, timing: Timing) -> None:
        self.seen.append((request, decision, timing))


class World:
    """A gate over two providers in bytes."""

    def __init__(self, idp: FakeProvider, *, introspection: str = "") -> None:
        self.idp = idp
        self.clock = FakeClock()
        self.recorder = Recorder()
        self.shop, self.acme = Signer("shop"), Signer("acme")
        idp.answers |= {"/shop": jwks(self.shop), "/acme": jwks(self.acme), "/other": jwks(self.shop)}
        idp.answers["/introspect"] = json_answer({"active": True} | self.claims(ACME))
        rules = RULES.replace("IDP/introspect}", f"IDP/introspect{introspection}}}")
        text = rules.replace("identity_headers:", OTHER + "identity_headers:").replace("IDP", idp.url)
        self.configuration = load_text(text, path=Path("rules.yaml"), environ={"S": "s"})
        cache = EvidenceCache(max_bytes=1 << 20, clock=self.clock.monotonic_s)
        self.authenticators = {
            name: Authenticator(provider, cache=cache, clock=self.clock, events=Events())
            for name, provider in self.configuration.providers.items()
        }
        self.snapshot = Snapshot(policy=self.configuration.policy, authenticators=self.authenticators, generation=3)
        self.gate = Gate(self.snapshot, clock=self.clock, recorder=self.recorder)

    def claims(self, issuer: str, **changes: Any) -> dict[str, Any]:
        return {"iss": issuer, "aud": "a", "sub": "alice", "exp": self.clock.wall_s + 60} | changes

    async def ask(self, url: str, token: str = "", **kwargs: Any) -> Decision:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        asked = replace(request("GET", f"a.example{url}"), headers=headers)
        return await self.gate.check(asked, **kwargs)

    @property
    def timing(self) -> Timing:
        return self.recorder.seen[-1][2]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_provider() as idp:
        made = World(idp)
        yield made
        for its in made.authenticators.values():
            await its.close()


def why(decision: Decision) -> Reason | None:
    return decision.reason if isinstance(decision, Deny) else None


async def test_a_token_is_proved_once_and_then_known(world: World) -> None:
    token = world.shop.sign(world.claims(SHOP))
    first = await world.ask("/shop", token, received_ns=time.perf_counter_ns())
    assert isinstance(first, Allow)
    assert world.timing.cache == "miss"
    second = await world.ask("/shop", token)
    assert second == first
    assert (world.timing.cache, world.timing.generation) == ("hit", 3)
    stages = world.timing.stages_us
    assert min(stages) >= 0
    assert world.timing.total_us == pytest.approx(sum(stages))


Tokens = Callable[[World], str]


@pytest.mark.parametrize(
    ("url", "token", "reason"),
    [
        ("/public", lambda _: "", None),
        ("/public", lambda _: "not a token", None),
        ("/closed", lambda w: w.shop.sign(w.claims(SHOP)), Reason.NOBODY),
        ("/maybe", lambda _: "", None),
        ("/maybe", lambda w: w.shop.sign(w.claims(SHOP)), None),
        ("/maybe", lambda w: w.shop.sign(w.claims(SHOP, exp=1)), Reason.EXPIRED),
        ("/shop", lambda _: "", Reason.NO_CREDENTIAL),
        ("/shop", lambda _: "a b", Reason.CREDENTIAL_MALFORMED),
        ("/shop", lambda _: "opaque", Reason.OPAQUE_REFUSED),
        ("/shop", lambda w: w.acme.sign(w.claims(SHOP)), Reason.JWT_UNKNOWN_KEY),
        ("/shop", lambda w: w.acme.sign(w.claims(ACME)), Reason.ISSUER_MISMATCH),
        ("/both", lambda w: w.shop.sign(w.claims(SHOP, tier="gold")), None),
        ("/both", lambda w: w.shop.sign(w.claims(SHOP)), Reason.CLAIM_MISMATCH),
        ("/both", lambda w: w.acme.sign(w.claims(ACME)), None),
        ("/both", lambda _: "opaque", None),
        ("/both", lambda w: w.acme.sign(w.claims("https://evil.example.com")), Reason.ISSUER_MISMATCH),
        ("/both", lambda w: w.acme.sign({"aud": "a"}), Reason.ISSUER_MISSING),
        ("/both", lambda w: w.acme.sign(w.claims(SHOP)), Reason.JWT_UNKNOWN_KEY),
        ("/jwt", lambda _: "opaque", Reason.OPAQUE_REFUSED),
        ("/nowhere", lambda _: "", Reason.NO_RULE),
        ("/data/a%2fb", lambda _: "", None),
        ("/data/a;b", lambda _: "", Reason.PATH_SEMICOLON),
        ("/nowhere;a", lambda _: "", Reason.PATH_SEMICOLON),
    ],
)
async def test_the_way_of_a_request(url: str, token: Tokens, reason: Reason | None, world: World) -> None:
    assert why(await world.ask(url, token(world))) is reason
    # The same again, from the cache: evidence is kept, and the verdict is made anew.
    if reason is not Reason.JWT_UNKNOWN_KEY:
        assert why(await world.ask(url, token(world))) is reason


async def test_evidence_of_one_rule_is_judged_by_another(world: World) -> None:
    token = world.shop.sign(world.claims(SHOP))
    assert why(await world.ask("/shop", token)) is None
    assert why(await world.ask("/both", token)) is Reason.CLAIM_MISMATCH
    assert world.timing.cache == "hit"


async def test_a_preflight_needs_no_token(world: World) -> None:
    asked = request("OPTIONS", "cors.example/shop", origin="https://app.example", access_control_request_method="GET")
    decision = await world.gate.check(asked)
    assert (why(decision), decision.rule) == (Reason.PREFLIGHT, "shop")
    assert why(await world.gate.check(replace(asked, method="GET"))) is Reason.NO_CREDENTIAL


async def test_a_provider_that_is_down_fails_only_the_rules_that_need_it(world: World) -> None:
    world.idp.answers["/shop"] = http(500)
    assert why(await world.ask("/shop", world.shop.sign(world.claims(SHOP)))) is Reason.KEYS_UNAVAILABLE
    assert why(await world.ask("/acme", world.acme.sign(world.claims(ACME)))) is None
    assert why(await world.ask("/public")) is None


async def test_the_deadline_is_an_answer_and_the_fetch_goes_on(world: World) -> None:
    world.idp.delay_s = 0.15
    soon = asyncio.get_running_loop().time() + 0.05
    decision = await world.ask("/acme", "opaque", deadline_s=soon)
    assert (why(decision), decision.rule) == (Reason.DEADLINE, "acme")
    assert isinstance(decision, Deny)
    assert decision.status == 503
    await asyncio.sleep(0.2)
    world.idp.answers["/introspect"] = HANG
    assert why(await world.ask("/acme", "opaque")) is None


async def test_cancellation_is_no_verdict(world: World) -> None:
    world.idp.answers["/introspect"] = HANG
    task = asyncio.create_task(world.ask("/acme", "opaque"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.recorder.seen == []


async def test_a_gate_without_a_policy_lets_nobody_in(world: World) -> None:
    gate = Gate(None, clock=world.clock, recorder=world.recorder)
    assert why(await gate.check(request("GET", "a.example/public"))) is Reason.NOT_READY
    assert why(gate.refuse(Reason.OVERLOADED)) is Reason.OVERLOADED
    assert world.timing.generation == 0
    gate.swap(world.snapshot)
    assert gate.snapshot is world.snapshot
    assert why(await gate.check(request("GET", "a.example/public"))) is None
    assert why(gate.refuse(Reason.REQUEST_TOO_LARGE, received_ns=time.perf_counter_ns())) is Reason.REQUEST_TOO_LARGE
    assert world.timing.generation == 3


async def test_a_check_keeps_the_policy_that_it_began_with(world: World) -> None:
    world.idp.delay_s = 0.1
    task = asyncio.create_task(world.ask("/acme", "opaque"))
    await asyncio.sleep(0.02)
    closed = load_text(
        "version: 1\nrules: [{name: none, hosts: everywhere, paths: ['/**'], allow: nobody}]\n",
        path=Path("rules.yaml"),
        environ={},
    )
    world.gate.swap(Snapshot(policy=closed.policy, authenticators={}, generation=4))
    assert why(await task) is None
    assert world.timing.generation == 3
    assert why(await world.ask("/acme", "opaque")) is Reason.NOBODY
    assert world.timing.generation == 4


async def test_each_stage_is_told_its_own_time(world: World) -> None:
    world.idp.delay_s = 0.1
    world.idp.answers["/introspect"] = http(500)
    assert why(await world.ask("/acme", "opaque")) is Reason.PROVIDER_UNAVAILABLE
    parse_us, match_us, authenticate_us, authorize_us = world.timing.stages_us
    assert authenticate_us > 90_000
    assert max(parse_us, match_us, authorize_us) < 50_000
    assert world.timing.total_us == pytest.approx(parse_us + match_us + authenticate_us + authorize_us)
    assert why(await world.ask("/nowhere")) is Reason.NO_RULE
    assert world.timing.stages_us[2:] == (0, 0)


@pytest.mark.parametrize(("stale", "reason"), [("0", Reason.DEADLINE), ("60s", None)])
async def test_a_provider_that_hangs_is_an_outage_too(stale: str, reason: Reason | None) -> None:
    async with fake_provider() as idp:
        world = World(idp, introspection=f", stale_if_error: {stale}")
        assert why(await world.ask("/acme", "opaque")) is None
        idp.answers["/introspect"] = HANG
        world.clock.advance(31)
        soon = asyncio.get_running_loop().time() + 0.05
        assert why(await world.ask("/acme", "opaque", deadline_s=soon)) is reason
        # Never past exp, and never by a key that has left.
        world.clock.advance(30)
        soon = asyncio.get_running_loop().time() + 0.05
        assert why(await world.ask("/acme", "opaque", deadline_s=soon)) is Reason.DEADLINE
        for its in world.authenticators.values():
            await its.close()
