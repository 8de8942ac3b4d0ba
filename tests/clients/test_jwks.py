"""Keys: fetched once, refreshed, kept through failures, and never fetched because an attacker wishes it."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from authz.clients.authenticate import token_digest
from authz.clients.evidence import Evidence
from authz.core.base64url import render_base64url
from authz.model import ProviderError, Reason, Rejected
from tests.clients.conftest import ISSUER, Make, refused
from tests.fakes import HANG, Events, FakeClock, FakeProvider, Signer, http, json_answer, jwks


async def test_a_token_is_proved_and_its_evidence_kept(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    shop = make()
    await shop.start()
    token = signer.sign(claims)
    evidence = await shop.authenticate(token)
    assert evidence.principal.subject == "alice"
    digest = token_digest(shop.provider, token)
    assert shop.match_evidence(digest, claims["iat"]) is evidence
    assert shop.match_evidence(token_digest(shop.provider, token + "x"), claims["iat"]) is None
    assert idp.count("/jwks") == 1
    assert "alice" not in repr(digest)


async def test_evidence_ends_at_exp_and_the_leeway_is_judged_afresh(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock
) -> None:
    shop = make()
    token = signer.sign(claims)
    await shop.authenticate(token)
    digest = token_digest(shop.provider, token)
    assert shop.match_evidence(digest, claims["exp"] - 1) is not None
    assert shop.match_evidence(digest, claims["exp"]) is None
    clock.advance(300)
    assert (await shop.authenticate(token)).principal.subject == "alice"
    assert shop.match_evidence(digest, clock.now_s()) is None
    clock.advance(30)
    assert (await refused(shop.authenticate(token)))[0] is Reason.EXPIRED


async def test_a_key_that_leaves_takes_its_tokens_with_it(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider
) -> None:
    shop = make()
    await shop.start()
    token, newer = signer.sign(claims), Signer("k2")
    await shop.authenticate(token)
    idp.answers["/jwks"] = jwks(newer)
    await shop.authenticate(newer.sign(claims))
    assert shop.match_evidence(token_digest(shop.provider, token), clock.now_s()) is None
    clock.advance(31)
    assert (await refused(shop.authenticate(token)))[0] is Reason.JWT_UNKNOWN_KEY


async def test_rotation_is_seen_at_the_first_token_and_refuses_no_good_one(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    shop = make()
    await shop.start()
    newer = Signer("k2")
    idp.answers["/jwks"] = jwks(signer, newer)
    for its in (newer, signer, newer):
        assert (await shop.authenticate(its.sign(claims))).principal.subject == "alice"
    assert idp.count("/jwks") == 2


@pytest.mark.parametrize("start", ["cold", "warm"])
async def test_a_token_that_comes_several_times_while_its_key_is_fetched_is_verified_once(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, start: str
) -> None:
    shop, newer = make(), Signer("k2")
    if start == "warm":
        await shop.start()
    idp.answers["/jwks"] = jwks(signer, newer)
    idp.delay_s = 0.05
    good, forged = newer.sign(claims), Signer("k2").sign(claims)
    tokens = [good] * 20 + [forged] * 20
    results = await asyncio.gather(*(shop.authenticate(its) for its in tokens), return_exceptions=True)
    assert len({id(its) for its in results[:20]}) == 1, "one piece of evidence for all"
    assert results[0] is shop.match_evidence(token_digest(shop.provider, good), claims["iat"])
    assert {its.reason for its in results[20:] if isinstance(its, Rejected)} == {Reason.JWT_SIGNATURE}
    assert not any(isinstance(its, Evidence) for its in results[20:])


async def test_ten_thousand_unknown_keys_make_one_fetch(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider
) -> None:
    shop = make()
    await shop.start()
    _, payload, signature = Signer("k0").sign(claims).split(".")
    heads = [render_base64url(json.dumps({"alg": "ES256", "kid": f"k{n}x"}).encode()) for n in range(10_000)]
    token = f"{heads[0]}.{payload}.{signature}"
    waiting = [asyncio.create_task(refused(shop.authenticate(f"{head}.{payload}.{signature}"))) for head in heads]
    reasons = Counter(reason for reason, _ in await asyncio.gather(*waiting))
    assert idp.count("/jwks") == 2
    # All of them came before the one fetch was over, so for all of them its answer is the newest there is.
    assert reasons == {Reason.JWT_UNKNOWN_KEY: 10_000}
    assert (await refused(shop.authenticate(token)))[0] is Reason.KEY_REFETCH_HELD_BACK
    # Known keys never wait for that.
    assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"
    clock.advance(30)
    assert (await refused(shop.authenticate(token)))[0] is Reason.JWT_UNKNOWN_KEY
    assert idp.count("/jwks") == 3


async def test_a_held_back_refetch_says_when_to_come_again(make: Make, claims: dict[str, Any]) -> None:
    shop = make()
    await shop.start()
    token = Signer("k9").sign(claims)
    await refused(shop.authenticate(token))
    with pytest.raises(ProviderError) as caught:
        await shop.authenticate(token)
    assert caught.value.reason is Reason.KEY_REFETCH_HELD_BACK
    assert caught.value.retry_after_s == 30


async def test_a_failed_refresh_keeps_the_last_good_set_until_it_is_too_old(
    make: Make, signer: Signer, claims: dict[str, Any], clock: FakeClock, idp: FakeProvider
) -> None:
    shop = make(keys={"max_stale_s": 1_000.0, "refresh_s": 0.02})
    await shop.start()
    idp.answers["/jwks"] = http(500)
    before = idp.count("/jwks")
    async with asyncio.timeout(5):
        while idp.count("/jwks") == before:
            await asyncio.sleep(0.01)
    claims["exp"] += 5_000
    clock.advance(999)
    token = signer.sign(claims)
    assert (await shop.authenticate(token)).principal.subject == "alice"
    clock.advance(2)
    assert shop.match_evidence(token_digest(shop.provider, token), clock.now_s()) is None
    assert (await refused(shop.authenticate(token)))[0] is Reason.KEYS_UNAVAILABLE
    assert not shop.status().healthy
    idp.answers["/jwks"] = jwks(signer)
    clock.advance(31)
    assert (await shop.authenticate(token)).principal.subject == "alice"
    assert shop.status().healthy


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http(500), "answered 500"),
        (http(404), "check the url"),
        (http(302, location="http://evil.example.com/"), "redirects are not followed"),
        (http(200, b"{"), "cannot be read"),
        (http(200, b"[]"), "cannot be read"),
        (http(200, b'{"keys": 1}'), "no list `keys`"),
        (http(200, b'{"keys": []}'), "no usable key"),
        (http(200, b"\xff" * 100), "cannot be read"),
        (http(200, b"[" * 100_000), "cannot be read"),
        (http(200, b"x" * 2_000_000), "larger than"),
        (http(200, b"x", content_encoding="gzip"), "compressed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{", "the answer is cut"),
        (b"SSH-2.0-nonsense\r\n\r\nconnection: close", "no http"),
        (b"", "is cut or is no http"),
        (HANG, "no answer in time"),
    ],
)
async def test_whatever_the_provider_answers_is_its_failure_and_not_the_callers(
    answer: bytes, words: str, make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, events: Events
) -> None:
    idp.answers["/jwks"] = answer
    shop = make(http={"timeout_s": 0.2})
    await shop.start()
    reason, detail = await refused(shop.authenticate(signer.sign(claims)))
    assert reason is Reason.KEYS_UNAVAILABLE
    assert words in detail or "no whole answer" in detail
    assert events.count("keys_failed") >= 1
    status = shop.status()
    assert (status.tried, status.healthy, status.keys) == (True, False, 0)


async def test_a_cold_start_with_the_provider_down_uses_the_keys_on_disk(
    make: Make,
    signer: Signer,
    claims: dict[str, Any],
    clock: FakeClock,
    idp: FakeProvider,
    tmp_path: Path,
    events: Events,
) -> None:
    first = make(keys={"cache_dir": str(tmp_path)})
    await first.start()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    idp.answers["/jwks"] = http(503)
    second = make(keys={"cache_dir": str(tmp_path)})
    await second.start()
    assert (await second.authenticate(signer.sign(claims))).principal.subject == "alice"
    # Not the keys of another address, not too old ones, not ones that others could write, not a damaged file.
    third = make(keys={"cache_dir": str(tmp_path), "jwks_url": f"{idp.url}/other"})
    await third.start()
    assert (await refused(third.authenticate(signer.sign(claims))))[0] is Reason.KEYS_UNAVAILABLE
    clock.advance(86_401)
    claims["exp"] += 100_000
    fourth = make(keys={"cache_dir": str(tmp_path)})
    await fourth.start()
    assert (await refused(fourth.authenticate(signer.sign(claims))))[0] is Reason.KEYS_UNAVAILABLE
    clock.advance(-86_401)
    for spoil, words in (
        (lambda: file.chmod(0o666), "not ours alone"),
        (lambda: file.write_text("{"), "is damaged"),
        (
            lambda: file.write_text(json.dumps({"source": "x", "fetched_s": 1, "jwks": {"keys": [signer.jwk()]}})),
            "of another",
        ),
    ):
        spoil()
        other = make(keys={"cache_dir": str(tmp_path)})
        await other.start()
        assert (await refused(other.authenticate(signer.sign(claims))))[0] is Reason.KEYS_UNAVAILABLE
        assert words in events.details("key_file_failed")[-1]
        file.chmod(0o600)


def discovered(idp: FakeProvider, **changes: Any) -> bytes:
    return json_answer(
        {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks", "introspection_endpoint": f"{ISSUER}/i"} | changes
    )


INTERNAL = {"jwks_url": None, "discovery": ""}


async def test_discovery_leads_to_the_keys_under_the_internal_url(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers |= {"/in/conf": discovered(idp), "/in/jwks": jwks(signer)}
    keys = INTERNAL | {"discovery": f"{idp.url}/in/conf"}
    shop = make(keys=keys, internal_url=f"{idp.url}/in")
    await shop.start()
    assert (await shop.authenticate(signer.sign(claims))).principal.issuer == ISSUER


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"issuer": "https://evil.example.com"}, "correct `issuer`"),
        ({"issuer": ISSUER + "/"}, "correct `issuer`"),
        ({"issuer": None}, "correct `issuer`"),
        ({"issuer": []}, "correct `issuer`"),
        ({"issuer": {}}, "correct `issuer`"),
        ({"jwks_uri": "https://evil.example.com/jwks"}, "under neither"),
        ({"jwks_uri": ISSUER + "x/jwks"}, "under neither"),
        ({"jwks_uri": 7}, "is no text"),
        ({"jwks_uri": None}, "names no `jwks_uri`"),
    ],
)
async def test_a_discovery_document_that_leads_astray_is_refused(
    changes: dict[str, Any], words: str, make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers |= {"/in/conf": discovered(idp, **changes), "/in/jwks": jwks(signer)}
    shop = make(keys=INTERNAL | {"discovery": f"{idp.url}/in/conf"}, internal_url=f"{idp.url}/in")
    await shop.start()
    reason, detail = await refused(shop.authenticate(signer.sign(claims)))
    assert reason is Reason.KEYS_UNAVAILABLE
    assert words in detail


async def test_without_an_internal_url_the_issuer_must_match_and_addresses_are_taken_as_they_are(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/conf"] = discovered(idp, jwks_uri=f"{idp.url}/jwks")
    shop = make(keys=INTERNAL | {"discovery": f"{idp.url}/conf"})
    await shop.start()
    assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"
    idp.answers["/conf"] = discovered(idp, issuer=f"{idp.url}", jwks_uri=f"{idp.url}/jwks")
    other = make(keys=INTERNAL | {"discovery": f"{idp.url}/conf"})
    await other.start()
    assert (await refused(other.authenticate(signer.sign(claims))))[0] is Reason.KEYS_UNAVAILABLE


async def test_a_failing_discovery_does_not_forget_the_endpoints(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/conf"] = discovered(idp, jwks_uri=f"{idp.url}/jwks")
    shop = make(keys=INTERNAL | {"discovery": f"{idp.url}/conf"})
    await shop.start()
    idp.answers["/conf"] = http(500)
    newer = Signer("k2")
    idp.answers["/jwks"] = jwks(newer)
    assert (await shop.authenticate(newer.sign(claims))).principal.subject == "alice"


async def test_keys_of_the_rules_file_are_never_fetched(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    inline = json.dumps({"keys": [signer.jwk()]})
    shop = make(keys={"jwks_url": None, "inline": inline})
    await shop.start()
    assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"
    assert (await refused(shop.authenticate(Signer("k2").sign(claims))))[0] is Reason.JWT_UNKNOWN_KEY
    assert idp.calls == []


async def test_a_token_of_another_issuer_asks_nobody(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    shop = make()
    await shop.start()
    before = len(idp.calls)
    claims["iss"] = "https://other.example.com"
    assert (await refused(shop.authenticate(Signer("k7").sign(claims))))[0] is Reason.ISSUER_MISMATCH
    del claims["iss"]
    assert (await refused(shop.authenticate(signer.sign(claims))))[0] is Reason.ISSUER_MISSING
    assert len(idp.calls) == before


@pytest.mark.parametrize(
    "address",
    ["https://xn--/keys", "https://127.0.0.1:99999/k", "https:///k", "https://a b/k", "ftp://a/k", "https://[::1/k"],
)
async def test_an_address_that_cannot_be_called_is_the_providers_failure(
    address: str, make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    idp.answers["/conf"] = discovered(idp, jwks_uri=address)
    shop = make(keys=INTERNAL | {"discovery": f"{idp.url}/conf"})
    await shop.start()
    reason, detail = await refused(shop.authenticate(signer.sign(claims)))
    assert reason is Reason.KEYS_UNAVAILABLE
    assert "unusable discovery document" in detail
    idp.answers["/conf"] = discovered(idp, jwks_uri=f"{idp.url}/jwks")


async def test_an_encrypted_way_never_leads_down_to_a_plain_one(make: Make, idp: FakeProvider) -> None:
    shop = make(keys=INTERNAL | {"discovery": "https://sso.example.com/conf"})
    assert shop.discovery is not None
    with pytest.raises(ProviderError, match="is not https"):
        shop.discovery._address({"jwks_uri": f"{idp.url}/jwks"}, "jwks_uri")
    assert shop.discovery._address({"jwks_uri": "https://sso.example.com/jwks"}, "jwks_uri")


async def test_whatever_a_provider_answers_it_is_asked_again(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider
) -> None:
    shop = make(keys=INTERNAL | {"discovery": f"{idp.url}/conf", "refresh_s": 0.02})
    for odd in (
        discovered(idp, issuer=[]),
        b"",
        http(500),
        json_answer([]),
        discovered(idp, jwks_uri="https://xn--/k"),
    ):
        idp.answers["/conf"] = odd
        if idp.count("/conf") == 0:
            await shop.start()
        before = idp.count("/conf")
        async with asyncio.timeout(10):
            while idp.count("/conf") < before + 2:
                await asyncio.sleep(0.01)
        assert not shop.status().healthy
    idp.answers["/conf"] = discovered(idp, jwks_uri=f"{idp.url}/jwks")
    async with asyncio.timeout(10):
        while not shop.status().healthy:
            await asyncio.sleep(0.01)
    assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"


async def test_a_bug_of_ours_does_not_end_the_refreshing(
    make: Make, signer: Signer, claims: dict[str, Any], idp: FakeProvider, events: Events
) -> None:
    bugs = [RuntimeError("a bug"), RuntimeError("another")]
    told = events.provider_event

    def fail_twice(provider: str, event: str, detail: str = "", seconds: float | None = None) -> None:
        if event == "keys_loaded" and bugs:
            raise bugs.pop()
        told(provider, event, detail, seconds)

    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context.get("exception")))
    events.provider_event = fail_twice  # type: ignore[method-assign]  # the place that fails
    shop = make(keys={"refresh_s": 0.02})
    await shop.start()
    async with asyncio.timeout(10):
        while not shop.status().healthy:
            await asyncio.sleep(0.01)
    assert (await shop.authenticate(signer.sign(claims))).principal.subject == "alice"
    gc.collect()
    assert [str(its) for its in reported] == ["another", "a bug"]


async def test_a_source_that_is_closed_while_it_starts_leaves_nothing_behind(
    make: Make, idp: FakeProvider, tmp_path: Path
) -> None:
    idp.answers["/jwks"] = HANG
    shop = make(keys={"cache_dir": str(tmp_path)})
    before = asyncio.all_tasks()
    start = asyncio.create_task(shop.start())
    await asyncio.sleep(0)
    await shop.close()
    await asyncio.wait_for(start, 5)
    await asyncio.sleep(0.05)
    assert {its.get_coro().__qualname__ for its in asyncio.all_tasks() - before} <= {"FakeProvider.serve"}  # type: ignore[union-attr]
