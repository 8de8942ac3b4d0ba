"""Calls to one provider: bounded in time and bytes, never redirected, and only the answer 200 counts.

The system's trust store, or the provider's ``ca_file``, is used; nothing is taken from the environment; no cookie is
kept. Answers are asked for uncompressed, and compressed ones refused: a few bytes could unpack to millions.
Not checked: the answer's media type. What cannot be read as the expected document is refused by its reader.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import aiohttp
import yarl

from authz import __version__
from authz.clients import ProviderEvents
from authz.model import NO_HEADERS, HttpSettings, Provider, ProviderError, Reason

KEEPALIVE_S: Final = 15.0
"""How long an idle connection is kept: less than the idle limits of common servers and proxies."""

MAX_HEADER_BYTES: Final = 65_536
"""Of one line of an answer: some providers send long policies and cookies."""

MAX_ERROR_BYTES: Final = 4_096
"""What is read of an error's body, to find its OAuth error code (RFC 6749 §5.2)."""

_HEADERS: Final = {
    "user-agent": f"authz/{__version__}",
    "accept": "application/json",
    "accept-encoding": "identity",
}
_OK: Final = 200
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,40}")
_HINTS: Final[Mapping[int, str]] = {
    401: "check the client's id and its way to authenticate",
    403: "the client may not do this: with keycloak it must be confidential, and a realm may require https",
    404: "check the url",
    407: "the proxy wants credentials",
}
_FAILURES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientHttpProxyError, "the proxy refused"),
    (aiohttp.ClientPayloadError, "the answer is cut or is no http"),
    (aiohttp.ServerDisconnectedError, "the answer is cut or is no http"),
    (aiohttp.ClientResponseError, "the answer is cut or is no http"),
    (aiohttp.ClientOSError, "the connection was lost"),
)
_FORM: Final = {"content-type": "application/x-www-form-urlencoded"}
_REDIRECTS: Final = range(300, 400)


class HttpClient:
    """Connections to one provider. Made anew when one of the provider's TLS files changes."""

    def __init__(self, provider: Provider, *, events: ProviderEvents) -> None:
        self._provider = provider
        self._settings = provider.http
        self._events = events
        self._current: _Connections | None = None
        self._retired: list[_Connections] = []
        self.date = ""
        """The ``date`` header of the last answer: what the provider takes the time to be."""

    async def fetch(
        self, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> bytes:
        """Return the body of the answer to a GET, or to a POST of ``form``.

        Raises:
            ProviderError: PROVIDER_UNAVAILABLE if there is no answer, or a 429 or 5xx; PROVIDER_ANSWER for any other
                answer that is not 200, is compressed, or is too large.

        """
        place = render_place(url)
        connections = self._connect(place)
        connections.users += 1
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._exchange(connections.session, url, form, headers)
        except TimeoutError:
            text = f"{place}: no whole answer within {self._settings.timeout_s:g} s"
            raise ProviderError(Reason.PROVIDER_UNAVAILABLE, text) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise ProviderError(Reason.PROVIDER_UNAVAILABLE, f"{place}: {_render_failure(error)}") from None
        finally:
            connections.users -= 1
            await self._close_retired()

    async def close(self) -> None:
        """Close all connections."""
        if self._current is not None:
            self._retired.append(self._current)
            self._current = None
        for connections in self._retired:
            await connections.session.close()
        self._retired = []

    async def _exchange(
        self, session: aiohttp.ClientSession, url: str, form: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> bytes:
        method, body = ("GET", None) if form is None else ("POST", urlencode(form).encode())
        sent = headers if form is None else {**headers, **_FORM}
        proxy = self._settings.proxy
        async with session.request(
            method, url, data=body, headers=sent, proxy=proxy, allow_redirects=False
        ) as response:
            self.date = response.headers.get("date", "")
            if response.status != _OK:
                raise await _refusal(response)
            encoding = response.headers.get("content-encoding", "identity")
            if encoding != "identity":
                raise _bad_answer(response, "it is compressed, although that was not asked for")
            answer = await _read(response, self._settings.max_body_bytes)
        if answer is None:
            raise _bad_answer(response, f"it is larger than {self._settings.max_body_bytes} bytes")
        return answer

    def _connect(self, place: str) -> _Connections:
        """Return the connections to use. Unreadable TLS files leave the last good ones in use (LAST-GOOD)."""
        stamp = _stamp(self._settings)
        if self._current is not None and self._current.stamp == stamp:
            return self._current
        try:
            fresh = _Connections(stamp, _make_session(self._settings))
        except (OSError, ValueError) as error:
            why = f"a tls file cannot be used: {error.strerror or error}" if isinstance(error, OSError) else str(error)
            self._events.provider_event(self._provider.name, "tls_files_failed", why)
            if self._current is None:
                raise ProviderError(Reason.PROVIDER_UNAVAILABLE, f"{place}: {why}") from None
            return self._current
        if self._current is not None:
            self._retired.append(self._current)
        self._current = fresh
        return fresh

    async def _close_retired(self) -> None:
        unused = [connections for connections in self._retired if connections.users == 0]
        self._retired = [connections for connections in self._retired if connections.users > 0]
        for connections in unused:
            await connections.session.close()


class _Connections:
    """One pool of connections, the state of the files it was made from, and how many calls use it."""

    __slots__ = ("session", "stamp", "users")

    def __init__(self, stamp: _Stamp, session: aiohttp.ClientSession) -> None:
        self.stamp = stamp
        self.session = session
        self.users = 0


_Stamp = tuple[tuple[int, int, int] | None, ...]


def _stamp(settings: HttpSettings) -> _Stamp:
    """Return what changes when a file is written or replaced; None for one that cannot be seen."""
    return tuple(
        _stamp_of(name)
        for name in (settings.ca_file, settings.client_cert_file, settings.client_key_file)
        if name is not None
    )


def _stamp_of(name: str) -> tuple[int, int, int] | None:
    try:
        status = Path(name).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _make_session(settings: HttpSettings) -> aiohttp.ClientSession:
    tls = _make_tls(settings.ca_file)
    if settings.client_cert_file is not None:
        tls.load_cert_chain(settings.client_cert_file, settings.client_key_file, password=lambda: b"")
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=KEEPALIVE_S),
        trust_env=False,
        auto_decompress=False,
        headers=_HEADERS,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        timeout=aiohttp.ClientTimeout(),  # ours is around all of it
    )


def _make_tls(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """Return the body, or None if it is larger than ``limit`` bytes; hardly more than that is ever held."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


async def _refusal(response: aiohttp.ClientResponse) -> ProviderError:
    status = response.status
    if status in _REDIRECTS and "location" in response.headers:
        return _bad_answer(response, f"{status}: redirects are not followed, write the final url")
    code = _error_code(await _read(response, MAX_ERROR_BYTES))
    text = f"{status}" + (f" `{code}`" if code else "")
    if status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        place = render_place(str(response.url))
        return ProviderError(Reason.PROVIDER_UNAVAILABLE, f"{place}: answered {text}")
    return _bad_answer(response, f"{text}: {_HINTS[status]}" if status in _HINTS else text)


def _error_code(body: bytes | None) -> str | None:
    """Return the body's OAuth error code; not its description, which may repeat what was sent."""
    try:
        code = json.loads(body or b"")["error"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return None
    return code if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else None


def _bad_answer(response: aiohttp.ClientResponse, why: str) -> ProviderError:
    place = render_place(str(response.url))
    return ProviderError(Reason.PROVIDER_ANSWER, f"{place}: unusable answer: {why}")


def render_place(url: str) -> str:
    """Render a URL for the log, without user information and query."""
    try:
        parsed = yarl.URL(url)
        name = parsed.host
    except ValueError:
        name = None
    if not name:
        return "`bad url`"
    host = f"[{name}]" if ":" in name else name
    port = f":{parsed.port}" if not parsed.is_default_port() else ""
    return f"`{parsed.scheme}://{host}{port}{parsed.path}`"


def _render_failure(error: Exception) -> str:
    """Word a failure by its kind; only a failed connect's own text is shown, for it cannot hold what was sent."""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "the proxy cannot be reached"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"cannot connect: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error}"
    return next((text for kind, text in _FAILURES if isinstance(error, kind)), "the call failed")
