"""Calls to a provider: private authorities, client certificates, proxies, and files that change under way."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from authz.clients.http import HttpClient, render_place
from authz.model import Expectation, HttpSettings, Provider, ProviderError, Reason
from tests.fakes import Events, FakeProvider, fake_provider, http
from tests.tls import Authority


def client(events: Events, **settings: object) -> HttpClient:
    provider = Provider(
        name="shop",
        issuer="https://x",
        expectation=Expectation(issuer="https://x", audiences=None, algorithms=frozenset()),
        keys=None,
        http=HttpSettings(timeout_s=2.0, **settings),  # type: ignore[arg-type]  # a test's own settings
    )
    return HttpClient(provider, events=events)


@contextlib.asynccontextmanager
async def tls_provider(authority: Authority, *, client_ca: Path | None = None) -> AsyncIterator[FakeProvider]:
    cert, key = authority.issue("idp")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    provider = FakeProvider()
    provider.answers["/x"] = http(200, b"hello")
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=context)
    provider.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()


async def test_a_private_authority_is_read_again_when_it_changes(tmp_path: Path) -> None:
    good, other = Authority(tmp_path), Authority(tmp_path, "other")
    file, events = tmp_path / "trusted.pem", Events()
    shutil.copy(other.file, file)
    async with tls_provider(good) as idp:
        calls = client(events, ca_file=str(file))
        with pytest.raises(ProviderError) as caught:
            await calls.fetch(f"{idp.url}/x")
        assert caught.value.reason is Reason.PROVIDER_UNAVAILABLE
        assert "cannot connect" in caught.value.detail
        shutil.copy(good.file, file)
        assert await calls.fetch(f"{idp.url}/x") == b"hello"
        file.write_text("damaged")
        assert await calls.fetch(f"{idp.url}/x") == b"hello", "the last good one stays in use"
        assert events.count("tls_files_failed") == 1
        await calls.close()
        public = client(events)
        with pytest.raises(ProviderError):
            await public.fetch(f"{idp.url}/x")
        await public.close()
        broken = client(events, ca_file=str(tmp_path / "none.pem"))
        with pytest.raises(ProviderError) as caught:
            await broken.fetch(f"{idp.url}/x")
        assert "a tls file cannot be used" in caught.value.detail


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("client")
    async with tls_provider(authority, client_ca=authority.file) as idp:
        calls = client(Events(), ca_file=str(authority.file), client_cert_file=str(cert), client_key_file=str(key))
        assert await calls.fetch(f"{idp.url}/x") == b"hello"
        await calls.close()
        bare = client(Events(), ca_file=str(authority.file))
        with pytest.raises(ProviderError):
            await bare.fetch(f"{idp.url}/x")
        await bare.close()


async def test_a_proxy_is_used_and_the_environment_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_provider() as idp, fake_provider() as proxy:
        idp.answers["/x"] = http(200, b"direct")
        proxy.answers[f"{idp.url}/x"] = http(200, b"by proxy")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        direct = client(Events())
        assert await direct.fetch(f"{idp.url}/x") == b"direct"
        await direct.close()
        proxied = client(Events(), proxy=proxy.url)
        assert await proxied.fetch(f"{idp.url}/x") == b"by proxy"
        await proxied.close()


async def test_nobody_there() -> None:
    calls = client(Events())
    for url, words in (("http://127.0.0.1:1/x?secret=1", "cannot connect"), ("http://[::bad/x", "bad url")):
        with pytest.raises(ProviderError) as caught:
            await calls.fetch(url)
        assert words in caught.value.detail
        assert "secret" not in caught.value.detail
    await calls.close()


async def test_answers_come_slowly_and_are_cut_at_the_time_limit() -> None:
    async with fake_provider() as idp:
        idp.answers["/x"] = http(200, b"late")
        idp.delay_s = 0.5
        calls = client(Events())
        assert await calls.fetch(f"{idp.url}/x") == b"late"
        idp.delay_s = 3.0
        with pytest.raises(ProviderError) as caught:
            await calls.fetch(f"{idp.url}/x")
        assert caught.value.reason is Reason.PROVIDER_UNAVAILABLE
        await calls.close()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://me:pw@sso.example.com:8443/a?b=c#d", "`https://sso.example.com:8443/a`"),
        ("http://[::1]:80/a", "`http://[::1]/a`"),
        ("http://[::1]:81/a", "`http://[::1]:81/a`"),
        ("http://[::bad/x", "`bad url`"),
    ],
)
def test_places_hide_what_may_be_secret(url: str, place: str) -> None:
    assert render_place(url) == place
