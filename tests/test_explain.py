"""What is explained is what the gate decides: the same table, asked of both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authz.clients.authenticate import Authenticator
from authz.clients.evidence import EvidenceCache
from authz.config import Configuration, load_text
from authz.core.answers import Refusal
from authz.explain import Explanation, explain, explain_unread
from authz.gate import Gate, Snapshot
from authz.model import Decision, Deny, Reason, Request, TokenUse
from tests import test_gate as of_the_gate
from tests.core.build import request
from tests.fakes import HANG, Events, fake_provider, http, json_answer

World = of_the_gate.World
SHOP, ACME = of_the_gate.SHOP, of_the_gate.ACME
(_TABLE,) = (
    mark.args[1]
    for mark in of_the_gate.test_the_way_of_a_request.pytestmark  # type: ignore[attr-defined]  # pytest sets it
    if mark.name == "parametrize"
)
MORE = [
    ("/both", lambda w: w.shop.sign(w.claims(SHOP, tier="gold", aud="b")), Reason.AUDIENCE_MISMATCH),
    ("/both", lambda _: "a.b.c", Reason.JWT_MALFORMED),
    ("/shop", lambda w: w.shop.sign({"aud": "a"}), Reason.ISSUER_MISSING),
    ("/shop", lambda w: w.shop.sign(w.claims(SHOP, roles=1)), Reason.CLAIM_INVALID),
    ("/maybe", lambda _: "opaque", Reason.OPAQUE_REFUSED),
]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_provider() as idp:
        made = World(idp)
        yield made
        for its in made.authenticators.values():
            await its.close()


async def explained(world: World, asked: Request, *, online: bool = True) -> Explanation:
    return await explain(world.snapshot, asked, now_s=world.clock.now_s(), online_s=5.0 if online else None)


def why(found: Explanation) -> Reason | None:
    return found.decision.reason if isinstance(found.decision, Deny) else None


def ask(url: str, token: str = "", **headers: str) -> Request:
    known = headers | ({"authorization": f"Bearer {token}"} if token else {})
    return replace(request("GET", f"a.example{url}"), headers=known)


@contextlib.asynccontextmanager
async def snapshot_of(world: World, configuration: Configuration) -> AsyncIterator[Snapshot]:
    """Make what a check goes by, with authenticators that know nothing yet."""
    cache = EvidenceCache(max_bytes=1 << 20, clock=world.clock.monotonic_s)
    authenticators = {
        name: Authenticator(provider, cache=cache, clock=world.clock, events=Events())
        for name, provider in configuration.providers.items()
    }
    yield Snapshot(policy=configuration.policy, authenticators=authenticators, generation=1)
    for its in authenticators.values():
        await its.close()


async def judged(world: World, snapshot: Snapshot, asked: Request) -> Decision:
    return await Gate(snapshot, clock=world.clock, recorder=world.recorder).check(asked)


@pytest.mark.parametrize(("url", "token", "reason"), [*_TABLE, *MORE])
async def test_the_gate_and_the_explanation_agree(
    url: str, token: of_the_gate.Tokens, reason: Reason | None, world: World
) -> None:
    asked = ask(url, token(world))
    async with snapshot_of(world, world.configuration) as snapshot:
        decision = await judged(world, snapshot, asked)
    found = await explained(world, asked)
    assert found.decision == decision
    assert of_the_gate.why(decision) is reason
    assert any(step.held is False for step in found.steps) is isinstance(decision, Deny)


@pytest.mark.parametrize(("url", "token", "reason"), [*_TABLE, *MORE])
async def test_offline_the_decision_is_the_gates_or_open(
    url: str, token: of_the_gate.Tokens, reason: Reason | None, world: World
) -> None:
    """With keys that stand in the file only what the provider is asked about stays open."""
    text = of_the_gate.RULES.replace("identity_headers:", of_the_gate.OTHER + "identity_headers:")
    text = text.replace("IDP", world.idp.url)  # before the keys come in: their base64url may hold an IDP too
    for name, signer in (("shop", world.shop), ("acme", world.acme), ("other", world.shop)):
        text = text.replace(f"{{jwks_url: {world.idp.url}/{name}}}", json.dumps({"jwks": {"keys": [signer.jwk()]}}))
    configuration = load_text(text, path=Path("rules.yaml"), environ={"S": "s"})
    asked = ask(url, token(world))
    async with snapshot_of(world, configuration) as snapshot:
        found = await explain(snapshot, asked, now_s=world.clock.now_s())
        assert world.idp.calls == []
        decision = await judged(world, snapshot, asked)
    if world.idp.count("/introspect"):
        assert found.decision is None
        assert found.rule == "both"
        assert "only provider `acme` can tell: ask it with --online" in found.steps[-1].text
    else:
        assert found.decision == decision


async def test_preflights_and_cors_agree(world: World) -> None:
    asks = {"origin": "https://app.example", "access-control-request-method": "GET"}
    asked = replace(request("OPTIONS", "cors.example/shop"), headers=asks)
    others = (
        replace(asked, headers=asks | {"access-control-request-method": "PUT"}),
        replace(asked, headers=asks | {"origin": "https://evil.example"}),
        replace(asked, target=request("GET", "a.example/nowhere").target),
        replace(asked, method="GET"),
    )
    for one in (asked, *others):
        found = await explained(world, one)
        assert found.decision == await world.gate.check(one)
    assert (await explained(world, asked)).rule == "shop"


async def test_a_preflight_that_passes_agrees(world: World) -> None:
    """It is any other request where a rule of its path names OPTIONS."""
    text = (
        "version: 1\ncors: [{hosts: [a.example], origins: ['https://app.example'], methods: [GET], preflight: pass}]\n"
        "rules:\n  - {name: every, hosts: [a.example], paths: [/x], allow: anyone}\n"
        "  - {name: named, hosts: [a.example], paths: [/y], methods: [GET, OPTIONS], allow: nobody}\n"
    )
    configuration = load_text(text, path=Path("rules.yaml"), environ={})
    asks = {"origin": "https://app.example", "access-control-request-method": "GET"}
    reasons = []
    async with snapshot_of(world, configuration) as snapshot:
        for path in ("/x", "/y", "/z"):
            asked = replace(request("OPTIONS", f"a.example{path}"), headers=asks)
            found = await explain(snapshot, asked, now_s=0.0)
            assert found.decision == await judged(world, snapshot, asked)
            reasons.append(why(found))
    assert reasons == [None, Reason.NOBODY, Reason.NO_RULE]


async def test_a_provider_that_is_down_is_told_as_the_gate_tells_it(world: World) -> None:
    world.idp.answers["/shop"] = http(500)
    asked = ask("/shop", world.shop.sign(world.claims(SHOP)))
    found = await explained(world, asked)
    assert why(found) is Reason.KEYS_UNAVAILABLE
    async with snapshot_of(world, world.configuration) as snapshot:
        assert found.decision == await judged(world, snapshot, asked)
    assert found.steps[-1].stage == "provider"


async def test_the_deadline_holds_here_too(world: World) -> None:
    world.idp.answers["/introspect"] = HANG
    found = await explain(world.snapshot, ask("/acme", "opaque"), now_s=world.clock.now_s(), online_s=0.05)
    assert isinstance(found.decision, Deny)
    assert found.decision.reason is Reason.DEADLINE


@pytest.mark.parametrize(
    ("tokens", "keys"),
    [*((tokens, keys) for tokens in TokenUse for keys in ("remote", "inline")), (TokenUse.ALL, "none")],
)
@pytest.mark.parametrize("lightweight", [False, True])
async def test_what_is_left_open_offline_is_what_the_provider_is_asked_about(
    tokens: TokenUse, keys: str, *, lightweight: bool, world: World
) -> None:
    claims = world.claims(ACME)
    token = world.acme.sign({name: claims[name] for name in ("iss", "exp")} if lightweight else claims)
    words = {
        "remote": f"keys: {{jwks_url: {world.idp.url}/acme}}",
        "inline": f"keys: {json.dumps({'jwks': {'keys': [world.acme.jwk()]}})}",
        "none": "leeway: 30",
    }
    how = f"client_id: c, client_secret: '${{env:S}}', endpoint: '{world.idp.url}/introspect', tokens: {tokens}"
    text = (
        "version: 1\nproviders:\n  acme:\n    issuer: https://acme.example.com\n    audiences: [a]\n"
        f"    {words[keys]}\n    introspection: {{{how}}}\n"
        "rules: [{name: r, hosts: everywhere, paths: [/x], tokens_from: acme, require: any_token}]\n"
    )
    world.idp.answers["/introspect"] = json_answer({"active": True} | claims)
    configuration = load_text(text, path=Path("rules.yaml"), environ={"S": "s"})
    asked = ask("/x", token)
    async with snapshot_of(world, configuration) as snapshot:
        found = await explain(snapshot, asked, now_s=world.clock.now_s())
        late = await explain(snapshot, asked, now_s=world.clock.now_s() + 1_000)
        bound = ask("/x", world.acme.sign({**claims, "cnf": {"jkt": "x"}}))
        tied = await explain(snapshot, bound, now_s=world.clock.now_s())
        assert world.idp.calls == []
        assert why(tied) is Reason.PROOF_MISSING
        assert tied.decision == await judged(world, snapshot, bound)
        decision = await judged(world, snapshot, asked)
    # A token that has expired is refused whoever would be asked.
    assert isinstance(late.decision, Deny)
    if world.idp.count("/introspect"):
        assert found.decision is None
        assert "only provider `acme` can tell" in found.steps[-1].text
        assert why(late) is Reason.EXPIRED
    else:
        assert found.decision == decision
    asks = {TokenUse.OPAQUE: False, TokenUse.LIGHTWEIGHT: lightweight, TokenUse.ALL: True}
    assert bool(world.idp.count("/introspect")) is asks[tokens]


def test_an_unread_request_is_a_decision_too() -> None:
    found = explain_unread(Refusal(reason=Reason.PATH_FORM), None)
    assert isinstance(found.decision, Deny)
    assert (found.decision.reason, found.decision.status) == (Reason.PATH_FORM, 400)
    assert found.steps[0].held is False
    assert found.steps[0].text


async def test_a_deny_after_every_condition_still_has_its_step(world: World) -> None:
    """Identity headers that are too long are refused when all conditions hold."""
    token = world.shop.sign(world.claims(SHOP, sub="x" * 9_000))
    found = await explained(world, ask("/shop", token))
    assert why(found) is Reason.HEADER_BUDGET
    assert "identity headers of" in found.steps[-1].text


async def test_no_repr_shows_the_token(world: World) -> None:
    token = world.shop.sign(world.claims(SHOP))
    found: Any = await explained(world, ask("/shop", token))
    assert found.token.reveal() == token
    assert token not in repr(found)
