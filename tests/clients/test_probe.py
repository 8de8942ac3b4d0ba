"""What is found of a provider before it is relied on: here its clock; what it answers stands in the tests beside."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from authz.clients.authenticate import Authenticator
from authz.clients.evidence import EvidenceCache
from authz.clients.probe import Finding, probe
from authz.model import Provider
from tests.clients.conftest import Make
from tests.fakes import Events, FakeClock, FakeProvider, Signer, http

EARLY, LATE = "Fri, 15 Jan 2027 07:59:50 GMT", "Fri, 15 Jan 2027 08:00:09 GMT"


def clock_of(findings: list[Finding]) -> Finding:
    (found,) = (its for its in findings if its.text.startswith("clock"))
    return found


@pytest.mark.parametrize(
    ("date", "good", "words"),
    [(LATE, False, "9 s ahead of ours"), (EARLY, False, "10 s behind ours"), ("", True, "does not tell its time")],
)
async def test_the_clock_of_a_provider_that_is_only_asked(
    date: str, *, good: bool, words: str, shop: Provider, idp: FakeProvider, clock: FakeClock
) -> None:
    headers = {"date": date} if date else {}
    idp.answers["/introspect"] = http(200, b'{"active": false}', **headers)
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    alone = Authenticator(replace(shop, keys=None), cache=cache, clock=clock, events=Events())
    findings = await probe(alone, None, clock=clock)
    assert [its.text.split(" ")[0] for its in findings] == ["clock:", "introspection"]
    assert clock_of(findings).good is good
    assert words in clock_of(findings).text
    await alone.close()


async def test_the_first_answer_with_a_date_counts(
    make: Make, idp: FakeProvider, clock: FakeClock, signer: Signer
) -> None:
    keys = json.dumps({"keys": [signer.jwk()]}).encode()
    idp.answers["/introspect"] = http(200, b'{"active": false}', date=LATE)
    assert "ahead" in clock_of(await probe(make(), None, clock=clock)).text
    idp.answers["/jwks"] = http(200, keys, date=EARLY)
    assert "behind" in clock_of(await probe(make(digest=b"o" * 32), None, clock=clock)).text


@pytest.mark.parametrize("date", ["nonsense", "Fri, 15 Jan 9999999999999 08:00:00 -0000", "Fri, 99 Jan 2027 08:00:00"])
async def test_an_odd_date_tells_no_time(date: str, make: Make, idp: FakeProvider, clock: FakeClock) -> None:
    idp.answers["/introspect"] = http(200, b'{"active": false}', date=date)
    assert "does not tell its time" in clock_of(await probe(make(), None, clock=clock)).text


@pytest.mark.parametrize("issued", [True, "1", -1, 2**60, None])
async def test_a_token_that_was_issued_at_no_time_tells_none(
    issued: Any, make: Make, claims: dict[str, Any], clock: FakeClock, signer: Signer
) -> None:
    good, odd = signer.sign(claims), signer.sign(claims | {"iat": issued})
    assert "the token was issued 0 s ago" in clock_of(await probe(make(), good, clock=clock)).text
    for token in (odd, "opaque", "a.b.c"):
        assert "does not tell its time" in clock_of(await probe(make(), token, clock=clock)).text
