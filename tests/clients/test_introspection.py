"""Opaque tokens: one question each, believed for a while, and every failure the provider's and not the caller's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.types import Options

from authz.clients.authenticate import Authenticator, token_digest
from authz.clients.evidence import EvidenceCache
from authz.clients.probe import probe
from authz.model import ClientAuth, Provider, ProviderError, Reason, Rejected, Secret, TokenUse
from tests.clients.conftest import ISSUER, SECRET, Make, refused
from tests.fakes import HANG, Events, FakeClock, FakeProvider, Signer, basic_of, fake_provider, http, json_answer, jwks

TOKEN = "opaque-token-of-alice"


@pytest.fixture
def active(claims: dict[str, Any]) -> dict[str, Any]:
    return {"active": True, "client_id": "web", "scope": "a b", "token_type": "Bearer"} | claims


async def test_an_active_token_is_asked_about_once(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    shop = make()
    evidence = await shop.authenticate(TOKEN)
    assert evidence.principal.scopes == {"a", "b"}
    assert shop.match_evidence(token_digest(shop.provider, TOKEN), clock.now_s()) is evidence
    assert await shop.authenticate(TOKEN) is evidence
    assert idp.count("/introspect") == 1
    _, head, body = idp.calls[0]
    assert basic_of(head) == "orders+api:not-to-be-seen%3A%26%3D"
    assert parse_qs(body.decode()) == {"token": [TOKEN]}
    clock.advance(30)
    assert shop.match_evidence(token_digest(shop.provider, TOKEN), clock.now_s()) is None
    await shop.authenticate(TOKEN)
    assert idp.count("/introspect") == 2


async def test_evidence_never_outlives_the_token(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    idp.answers["/introspect"] = json_answer(active | {"exp": clock.wall_s + 10})
    shop = make(introspection={"stale_if_error_s": 3_600.0})
    await shop.authenticate(TOKEN)
    idp.answers["/introspect"] = http(500)
    clock.advance(9)
    assert shop.match_evidence(token_digest(shop.provider, TOKEN), clock.now_s()) is not None
    clock.advance(1)
    assert shop.match_evidence(token_digest(shop.provider, TOKEN), clock.now_s()) is None
    assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.PROVIDER_UNAVAILABLE


async def test_an_inactive_token_is_refused_and_remembered_shortly(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    shop = make()
    for _ in range(3):
        assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.TOKEN_INACTIVE
    assert idp.count("/introspect") == 1
    idp.answers["/introspect"] = json_answer(active)
    clock.advance(5)
    assert (await shop.authenticate(TOKEN)).principal.subject == "alice"


async def test_a_token_that_becomes_inactive_loses_its_evidence(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    shop = make(introspection={"stale_if_error_s": 3_600.0})
    await shop.authenticate(TOKEN)
    clock.advance(31)
    idp.answers["/introspect"] = json_answer({"active": False})
    assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.TOKEN_INACTIVE
    idp.answers["/introspect"] = http(500)
    clock.advance(6)
    assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.PROVIDER_UNAVAILABLE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://other.example.com"}, Reason.ISSUER_MISMATCH),
        ({"iss": None}, Reason.ISSUER_MISMATCH),
        ({"aud": "billing"}, Reason.AUDIENCE_MISMATCH),
        ({"exp": 1}, Reason.EXPIRED),
        ({"exp": "1900000000"}, Reason.EXPIRY_INVALID),
        ({"nbf": 1_900_000_000}, Reason.NOT_YET_VALID),
        ({"cnf": {"jkt": "x"}}, Reason.PROOF_MISSING),
    ],
)
async def test_an_active_token_is_judged_like_any_other(
    changes: dict[str, Any], reason: Reason, make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/introspect"] = json_answer(active | changes)
    assert (await refused(make().authenticate(TOKEN)))[0] is reason


@pytest.mark.parametrize(
    ("member", "reason"),
    [("iss", Reason.ISSUER_MISSING), ("aud", Reason.AUDIENCE_MISSING), ("exp", Reason.EXPIRY_MISSING)],
)
async def test_an_answer_may_lack_only_what_the_operator_names(
    member: str, reason: Reason, make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    del active[member]
    idp.answers["/introspect"] = json_answer(active)
    shop = make()
    assert (await refused(shop.authenticate(TOKEN)))[0] is reason
    lenient = make(
        expectation=replace(shop.provider.expectation, introspection_may_lack=frozenset({member})), digest=b"e" * 32
    )
    assert (await lenient.authenticate(TOKEN)).principal.issuer == ISSUER


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http(500), Reason.PROVIDER_UNAVAILABLE),
        (http(429), Reason.PROVIDER_UNAVAILABLE),
        (http(204), Reason.PROVIDER_ANSWER),
        (http(401, b'{"error":"invalid_client"}'), Reason.PROVIDER_ANSWER),
        (http(302, location="http://evil.example.com/"), Reason.PROVIDER_ANSWER),
        (http(200, b""), Reason.PROVIDER_ANSWER),
        (http(200, b"[]"), Reason.PROVIDER_ANSWER),
        (http(200, b'{"active":"true"}'), Reason.PROVIDER_ANSWER),
        (http(200, b'{"active":1}'), Reason.PROVIDER_ANSWER),
        (http(200, b'{"active":null}'), Reason.PROVIDER_ANSWER),
        (http(200, b"{}"), Reason.PROVIDER_ANSWER),
        (http(200, b'{"active":true,"active":false}'), Reason.PROVIDER_ANSWER),
        (http(200, b"x" * 2_000_000), Reason.PROVIDER_ANSWER),
        (b"", Reason.PROVIDER_UNAVAILABLE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\nconnection: close\r\n\r\n{", Reason.PROVIDER_UNAVAILABLE),
        (HANG, Reason.PROVIDER_UNAVAILABLE),
    ],
)
async def test_only_a_boolean_active_in_a_json_object_with_200_is_an_answer(
    answer: bytes, reason: Reason, make: Make, idp: FakeProvider, events: Events
) -> None:
    idp.answers["/introspect"] = answer
    shop = make(http={"timeout_s": 0.2})
    found, detail = await refused(shop.authenticate(TOKEN))
    assert found is reason
    assert events.count("introspection_failed") == 1
    for text in (detail, repr(shop), repr(shop.provider), repr(events.seen)):
        assert TOKEN not in text
        assert SECRET not in text


async def test_a_thousand_checks_of_one_new_token_ask_once(
    make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    idp.delay_s = 0.05
    shop = make()
    found = await asyncio.gather(*(shop.authenticate(TOKEN) for _ in range(1_000)))
    assert {id(its) for its in found} == {id(found[0])}
    assert idp.count("/introspect") == 1


async def test_a_caller_who_gives_up_does_not_end_the_question(
    make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    idp.delay_s = 0.15
    shop = make()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await shop.authenticate(TOKEN)
    await asyncio.sleep(0.25)
    idp.answers["/introspect"] = http(500)
    assert (await shop.authenticate(TOKEN)).principal.subject == "alice"
    assert idp.count("/introspect") == 1


async def test_the_breaker_opens_probes_once_and_closes(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock, events: Events
) -> None:
    idp.answers["/introspect"] = http(500)
    shop = make(introspection={"breaker_failures": 3})
    for n in range(10):
        assert (await refused(shop.authenticate(f"token-{n}")))[0] is Reason.PROVIDER_UNAVAILABLE
    assert idp.count("/introspect") == 3
    assert (shop.status().breaker, shop.status().healthy) == ("open", False)
    clock.advance(5)
    assert shop.status().breaker == "half_open"
    idp.delay_s = 0.05
    found = await asyncio.gather(*(shop.authenticate(f"more-{n}") for n in range(5)), return_exceptions=True)
    assert all(isinstance(its, ProviderError) for its in found)
    assert idp.count("/introspect") == 4
    clock.advance(5)
    idp.answers["/introspect"] = json_answer(active)
    assert (await shop.authenticate(TOKEN)).principal.subject == "alice"
    assert shop.status().breaker == "closed"
    assert (events.count("breaker_open"), events.count("breaker_closed")) == (1, 1)


async def test_answers_of_the_4xx_kind_do_not_open_the_breaker(
    make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/introspect"] = http(400)
    shop = make(introspection={"breaker_failures": 2})
    for n in range(5):
        assert (await refused(shop.authenticate(f"odd-{n}")))[0] is Reason.PROVIDER_ANSWER
    idp.answers["/introspect"] = json_answer(active)
    assert (await shop.authenticate(TOKEN)).principal.subject == "alice"


async def test_stale_evidence_only_where_the_operator_accepts_it(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock, events: Events
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    strict, lenient = make(), make(introspection={"stale_if_error_s": 60.0}, digest=b"s" * 32)
    for shop in (strict, lenient):
        await shop.authenticate(TOKEN)
    idp.answers["/introspect"] = http(500)
    clock.advance(31)
    assert (await refused(strict.authenticate(TOKEN)))[0] is Reason.PROVIDER_UNAVAILABLE
    assert (await lenient.authenticate(TOKEN)).principal.subject == "alice"
    assert events.count("stale_evidence") == 1
    clock.advance(60)
    assert (await refused(lenient.authenticate(TOKEN)))[0] is Reason.PROVIDER_UNAVAILABLE


@pytest.mark.parametrize("max_concurrent", [1, 2, 5])
async def test_questions_under_way_are_bounded(max_concurrent: int, make: Make, idp: FakeProvider) -> None:
    """As many as are allowed are asked at once, and never one more; so many wait, and the rest is turned away."""
    idp.delay_s = 0.02
    shop = make(introspection={"max_concurrent": max_concurrent})
    taken = max_concurrent * 16
    found = await asyncio.gather(*(shop.authenticate(f"t{n}") for n in range(taken + 3)), return_exceptions=True)
    reasons = Counter(its.reason for its in found if isinstance(its, Rejected | ProviderError))
    assert reasons == {Reason.TOKEN_INACTIVE: taken, Reason.OVERLOADED: 3}
    assert idp.count("/introspect") == taken
    assert idp.most_under_way == max_concurrent


@pytest.mark.parametrize("waiting", [15, 16])
async def test_as_many_may_wait_as_are_allowed_and_no_more(waiting: int, make: Make, idp: FakeProvider) -> None:
    idp.delay_s = 0.005
    shop = make(introspection={"max_concurrent": 1})
    found = await asyncio.gather(*(shop.authenticate(f"t{n}") for n in range(waiting)), return_exceptions=True)
    assert {its.reason for its in found if isinstance(its, Rejected | ProviderError)} == {Reason.TOKEN_INACTIVE}


async def test_a_token_of_three_segments_is_never_opaque(make: Make, idp: FakeProvider) -> None:
    shop = make()
    assert (await refused(shop.authenticate("a.b.c")))[0] is Reason.JWT_MALFORMED
    assert idp.count("/introspect") == 0


async def test_opaque_tokens_need_introspection(make: Make, idp: FakeProvider) -> None:
    assert (await refused(make(introspection=None, digest=b"n" * 32).authenticate(TOKEN)))[0] is Reason.TOKEN_INACTIVE
    shop = make()
    bare = make()
    bare.provider = replace(shop.provider, introspection=None)
    assert (await refused(bare.authenticate("another")))[0] is Reason.OPAQUE_REFUSED


@pytest.mark.parametrize(
    ("tokens", "lightweight", "asked"),
    [
        (TokenUse.OPAQUE, False, False),
        (TokenUse.LIGHTWEIGHT, False, False),
        (TokenUse.LIGHTWEIGHT, True, True),
        (TokenUse.ALL, False, True),
        (TokenUse.ALL, True, True),
    ],
)
async def test_which_jwts_are_asked_about(
    tokens: TokenUse, *, lightweight: bool, asked: bool, make: Make, signer: Signer, claims: dict[str, Any],
    active: dict[str, Any], idp: FakeProvider,
) -> None:  # fmt: skip
    idp.answers["/introspect"] = json_answer(active)
    shop = make(introspection={"tokens": tokens})
    await shop.start()
    small = {name: value for name, value in claims.items() if not lightweight or name not in {"aud", "sub"}}
    evidence = await shop.authenticate(signer.sign(small))
    assert (evidence.asked_s is not None, evidence.principal.subject) == (asked, "alice")
    assert idp.count("/introspect") == (1 if asked else 0)


async def test_a_forged_or_expired_jwt_is_not_shown_to_the_provider(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    shop = make(introspection={"tokens": TokenUse.ALL})
    await shop.start()
    forged = Signer(signer.kid).sign(claims)
    assert (await refused(shop.authenticate(forged)))[0] is Reason.JWT_SIGNATURE
    assert (await refused(shop.authenticate(signer.sign(claims | {"exp": 1}))))[0] is Reason.EXPIRED
    assert idp.count("/introspect") == 0


async def test_inactive_though_valid_is_explained(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, events: Events, clock: FakeClock
) -> None:
    shop = make(introspection={"tokens": TokenUse.ALL})
    await shop.start()
    assert (await refused(shop.authenticate(signer.sign(claims))))[0] is Reason.TOKEN_INACTIVE
    (hint,) = events.details("inactive_but_valid")
    assert "client `orders api` is not in the token's `aud`" in hint
    assert "audience mapper" in hint
    clock.advance(61)
    # Where the client is in the audience that is not the reason.
    await refused(shop.authenticate(signer.sign(claims | {"aud": ["orders", "orders api"]})))
    assert events.count("inactive_but_valid") == 1


async def test_the_ways_to_say_who_asks(
    make: Make, active: dict[str, Any], idp: FakeProvider, tmp_path: Path, clock: FakeClock
) -> None:
    idp.answers["/introspect"] = json_answer(active)

    async def form_of(digest: bytes, **settings: Any) -> dict[str, str]:
        await make(introspection=settings, digest=digest * 32).authenticate(TOKEN)
        return {name: values[0] for name, values in parse_qs(idp.calls[-1][2].decode()).items()}

    form = await form_of(b"1", auth=ClientAuth.POST)
    assert (form["client_id"], form["client_secret"]) == ("orders api", SECRET)
    form = await form_of(b"2", auth=ClientAuth.MTLS, token_type_hint="access_token")
    assert form == {"token": TOKEN, "client_id": "orders api", "token_type_hint": "access_token"}
    file = tmp_path / "token"
    for text in ("first", "second"):
        file.write_text(text + "\n")
        form = await form_of(text.encode()[:1], auth=ClientAuth.ASSERTION_FILE, assertion_file=str(file))
        assert form["client_assertion"] == text
    mine = Signer("mine")
    pem = mine.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    form = await form_of(
        b"4",
        auth=ClientAuth.PRIVATE_KEY_JWT,
        private_key=Secret(pem),
        private_key_id="mine",
        private_key_algorithm="ES256",
    )
    options: Options = {"verify_exp": False, "verify_iat": False}
    said = pyjwt.decode(
        form["client_assertion"], mine.key.public_key(), algorithms=["ES256"], audience=ISSUER, options=options
    )
    assert said["iss"] == said["sub"] == "orders api"
    assert said["exp"] - clock.now_s() == 60
    assert len(said["jti"]) >= 24
    assert pyjwt.get_unverified_header(form["client_assertion"])["kid"] == "mine"


async def test_an_assertion_file_that_is_gone_is_no_verdict_on_the_caller(make: Make, tmp_path: Path) -> None:
    for content in (None, "", "\u00e9"):
        file = tmp_path / "token"
        if content is not None:
            file.write_text(content)
        shop = make(introspection={"auth": ClientAuth.ASSERTION_FILE, "assertion_file": str(file)})
        assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.PROVIDER_UNAVAILABLE


async def test_the_cache_key_is_bound_to_the_provider(make: Make) -> None:
    one, other = make(), make(digest=b"o" * 32)
    assert token_digest(one.provider, TOKEN) != token_digest(other.provider, TOKEN)
    assert TOKEN.encode() not in token_digest(one.provider, TOKEN)


async def test_probing_tells_what_works_and_what_does_not(
    make: Make, signer: Signer, claims: dict[str, Any], active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    shop = make()
    findings = await probe(shop, None, clock=clock)
    assert [its.good for its in findings] == [True, True, True]
    assert "1 keys" in findings[0].text
    assert "compare with a fresh token" in findings[1].text
    token = signer.sign(claims)
    findings = await probe(shop, token, clock=clock)
    assert [its.good for its in findings] == [True, True, True, False]
    assert "issued 0 s ago" in findings[1].text
    assert "audience mapper" in findings[-1].text

    def answer(path: str, head: str, body: bytes) -> bytes:
        del path, head
        return json_answer(active if token.encode() in body else {"active": False})

    idp.answers["/introspect"] = answer
    assert all(its.good for its in await probe(shop, token, clock=clock))
    idp.answers["/introspect"] = json_answer(active | {"aud": "billing"})
    findings = await probe(shop, token, clock=clock)
    assert "nobody issued" in findings[2].text
    assert "audience_mismatch" in findings[3].text
    idp.answers["/introspect"] = http(401, json.dumps({"error": "invalid_client"}).encode())
    findings = await probe(shop, token, clock=clock)
    assert "invalid_client" in findings[2].text


@pytest.mark.parametrize(
    ("date", "issued_s", "good", "words"),
    [
        ("Fri, 15 Jan 2027 08:00:00 GMT", None, True, "0 s behind ours"),
        ("Fri, 15 Jan 2027 08:00:09 GMT", None, False, "9 s ahead of ours"),
        ("Fri, 15 Jan 2027 07:59:50 GMT", None, False, "10 s behind ours"),
        ("", 5, True, "issued -5 s ago"),
        ("", 6, False, "issued -6 s ago"),
    ],
)
async def test_probing_compares_the_clocks(
    date: str, issued_s: int | None, *, good: bool, words: str, make: Make, signer: Signer, idp: FakeProvider,
    claims: dict[str, Any], clock: FakeClock,
) -> None:  # fmt: skip
    headers = {"date": date} if date else {}
    idp.answers["/jwks"] = http(200, json.dumps({"keys": [signer.jwk()]}).encode(), **headers)
    token = None if issued_s is None else signer.sign(claims | {"iat": clock.wall_s + issued_s})
    shop = make(introspection={"tokens": TokenUse.ALL})
    await shop.start()
    findings = await probe(shop, token, clock=clock)
    assert findings[1].good is good, findings[1].text
    assert words in findings[1].text


async def test_a_provider_that_comes_and_goes(
    make: Make, signer: Signer, claims: dict[str, Any], active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    """Good tokens pass whenever an answer is at hand; nobody is refused for the provider's sake."""
    shop = make(introspection={"breaker_failures": 2, "cache_s": 3.0})
    await shop.start()
    passed = 0
    for n in range(24):
        up = n % 3 == 0
        idp.answers["/introspect"] = json_answer(active) if up else http(503)
        idp.answers["/jwks"] = jwks(signer) if up else http(503)
        assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"
        found = (await asyncio.gather(shop.authenticate(TOKEN), return_exceptions=True))[0]
        if isinstance(found, ProviderError):
            assert found.reason is Reason.PROVIDER_UNAVAILABLE
        else:
            assert not isinstance(found, BaseException)
            passed += 1
        clock.advance(2)
    assert 8 <= passed < 24


async def test_a_jwts_own_words_count_whatever_the_answer_leaves_out(
    make: Make, signer: Signer, claims: dict[str, Any], active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    del active["exp"]
    idp.answers["/introspect"] = json_answer(active)
    expectation = replace(make().provider.expectation, introspection_may_lack=frozenset({"exp"}))
    shop = make(introspection={"tokens": TokenUse.ALL, "cache_s": 3_600.0}, expectation=expectation, digest=b"j" * 32)
    await shop.start()
    bound = signer.sign(claims | {"cnf": {"jkt": "x"}})
    assert (await refused(shop.authenticate(bound)))[0] is Reason.PROOF_MISSING
    assert idp.count("/introspect") == 0, "nobody is asked about it"
    token = signer.sign(claims | {"exp": clock.wall_s + 60})
    digest = token_digest(shop.provider, token)
    evidence = await shop.authenticate(token)
    assert evidence.expires_at_s == clock.wall_s + 60
    clock.advance(59)
    assert shop.match_evidence(digest, clock.now_s()) is evidence
    clock.advance(1)
    assert shop.match_evidence(digest, clock.now_s()) is None
    clock.advance(30)
    assert (await refused(shop.authenticate(token)))[0] is Reason.EXPIRED


async def test_a_reload_that_believes_answers_for_less_long_counts_at_once(
    make: Make, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    idp.answers["/introspect"] = json_answer(active)
    before, after = make(introspection={"cache_s": 200.0}), make(introspection={"cache_s": 10.0})
    evidence = await before.authenticate(TOKEN)
    digest = token_digest(after.provider, TOKEN)
    clock.advance(9)
    assert after.match_evidence(digest, clock.now_s()) is evidence
    clock.advance(1)
    assert after.match_evidence(digest, clock.now_s()) is None
    assert before.match_evidence(digest, clock.now_s()) is evidence


async def test_refused_tokens_push_out_no_good_one(
    shop: Provider, active: dict[str, Any], idp: FakeProvider, clock: FakeClock
) -> None:
    cache = EvidenceCache(max_bytes=64 * 1_024, clock=clock.monotonic_s)
    authenticator = Authenticator(shop, cache=cache, clock=clock, events=Events())
    idp.answers["/introspect"] = json_answer(active)
    evidence = await authenticator.authenticate(TOKEN)
    idp.answers["/introspect"] = json_answer({"active": False})
    for number in range(200):
        assert (await refused(authenticator.authenticate(f"bad-{number}")))[0] is Reason.TOKEN_INACTIVE
    assert authenticator.match_evidence(token_digest(shop, TOKEN), clock.now_s()) is evidence
    await authenticator.close()


class CountedSecret(Secret):
    """Counts how often it is taken out."""

    __slots__ = ("times",)

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.times = 0

    def reveal(self) -> str:
        self.times += 1
        return super().reveal()


async def test_a_private_key_is_taken_apart_once(make: Make, active: dict[str, Any], idp: FakeProvider) -> None:
    idp.answers["/introspect"] = json_answer(active)
    pem = Signer("mine").key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    secret = CountedSecret(pem)
    shop = make(
        introspection={
            "auth": ClientAuth.PRIVATE_KEY_JWT,
            "private_key": secret,
            "private_key_algorithm": "ES256",
        }
    )
    for number in range(3):
        await shop.authenticate(f"token-{number}")
    assert secret.times == 1
    forms = [parse_qs(body.decode()) for path, _, body in idp.calls if path == "/introspect"]
    assert len({form["client_assertion"][0] for form in forms}) == 3, "each is of one use"


async def test_every_cut_of_an_answer_and_junk_behind_it_is_the_providers_fault(
    make: Make, active: dict[str, Any], idp: FakeProvider
) -> None:
    whole = json.dumps({"active": True, "iss": active["iss"]}).encode()
    shop = make(introspection={"max_concurrent": 1})
    for number, raw in enumerate([*(whole[:end] for end in range(len(whole))), whole + b"}", whole + whole]):
        idp.answers["/introspect"] = http(200, raw)
        assert (await refused(shop.authenticate(f"token-{number}")))[0] is Reason.PROVIDER_ANSWER, raw
    idp.answers["/introspect"] = http(200, whole)
    assert (await refused(shop.authenticate(TOKEN)))[0] is Reason.AUDIENCE_MISSING


MEMBERS = st.sampled_from(
    ["iss", "aud", "exp", "iat", "nbf", "sub", "scope", "client_id", "azp", "typ", "cnf", "roles"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
GOOD = {"active": True, "iss": ISSUER, "aud": "orders", "sub": "alice", "exp": 1_900_000_000}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bodies=st.lists(
        st.binary(max_size=60)
        | VALUES.map(lambda value: json.dumps(value).encode())
        | st.dictionaries(MEMBERS | st.just("active"), VALUES).map(lambda its: json.dumps(GOOD | its).encode()),
        min_size=1,
        max_size=8,
    )
)
def test_only_a_verdict_or_the_providers_fault_comes_of_any_answer(shop: Provider, bodies: list[bytes]) -> None:
    """An answer that is believed names our issuer and a time that is to come: nothing else may come out."""

    async def ask() -> None:
        clock = FakeClock()
        async with fake_provider() as idp:
            settings = replace(
                shop.introspection or pytest.fail("asks nobody"), endpoint=f"{idp.url}/introspect", breaker_failures=99
            )
            provider = replace(shop, introspection=settings, digest=b"f" * 32)
            cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
            authenticator = Authenticator(provider, cache=cache, clock=clock, events=Events())
            for number, body in enumerate(bodies):
                idp.answers["/introspect"] = http(200, body)
                try:
                    evidence = await authenticator.authenticate(f"token-{number}")
                except (Rejected, ProviderError):
                    continue
                assert evidence.principal.issuer == ISSUER
                assert evidence.claims["active"] is True
                assert evidence.expires_at_s > clock.now_s() - 30
            await authenticator.close()

    asyncio.run(ask())
