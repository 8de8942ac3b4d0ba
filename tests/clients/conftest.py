"""A provider in bytes, a clock by hand, and authenticators that are closed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authz.clients.authenticate import Authenticator
from authz.clients.evidence import EvidenceCache
from authz.model import (
    ClientAuth,
    Expectation,
    IntrospectionSettings,
    KeySettings,
    Provider,
    ProviderError,
    Reason,
    Rejected,
    Secret,
)
from tests.fakes import Events, FakeClock, FakeProvider, Signer, fake_provider, json_answer, jwks

ISSUER = "https://sso.example.com/realms/shop"
SECRET = "not-to-be-seen:&="


@pytest.fixture
async def idp() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def claims(clock: FakeClock) -> dict[str, Any]:
    return {"iss": ISSUER, "aud": "orders", "sub": "alice", "exp": clock.wall_s + 300, "iat": clock.wall_s}


@pytest.fixture
def shop(idp: FakeProvider, signer: Signer) -> Provider:
    """Describe a provider with keys by URL and introspection of opaque tokens."""
    idp.answers["/jwks"] = jwks(signer)
    idp.answers["/introspect"] = json_answer({"active": False})
    return Provider(
        name="shop",
        issuer=ISSUER,
        expectation=Expectation(issuer=ISSUER, audiences=frozenset({"orders"}), algorithms=frozenset({"ES256"})),
        keys=KeySettings(jwks_url=f"{idp.url}/jwks"),
        introspection=IntrospectionSettings(
            client_id="orders api",
            auth=ClientAuth.BASIC,
            client_secret=Secret(SECRET),
            endpoint=f"{idp.url}/introspect",
        ),
        digest=b"d" * 32,
    )


Make = Callable[..., Authenticator]


@pytest.fixture
async def make(shop: Provider, clock: FakeClock, events: Events) -> AsyncIterator[Make]:
    """Make an authenticator of the shop, with some settings changed."""
    made: list[Authenticator] = []
    cache = EvidenceCache(max_bytes=1 << 24, clock=clock.monotonic_s)

    def build(
        *,
        keys: dict[str, Any] | None = None,
        introspection: dict[str, Any] | None = None,
        http: dict[str, Any] | None = None,
        shared: Path | None = None,
        **changes: Any,
    ) -> Authenticator:
        provider = replace(shop, **changes)
        if keys is not None and provider.keys is not None:
            provider = replace(provider, keys=replace(provider.keys, **keys))
        if introspection is not None and provider.introspection is not None:
            provider = replace(provider, introspection=replace(provider.introspection, **introspection))
        if http is not None:
            provider = replace(provider, http=replace(provider.http, **http))
        made.append(Authenticator(provider, cache=cache, clock=clock, events=events, shared=shared))
        return made[-1]

    yield build
    for authenticator in made:
        await authenticator.close()


async def refused(call: Awaitable[object]) -> tuple[Reason, str]:
    """Return why a call was refused; a call that is not refused fails the test."""
    try:
        await call
    except (Rejected, ProviderError) as error:
        return error.reason, error.detail
    pytest.fail("was not refused")
