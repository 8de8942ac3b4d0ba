"""Ask a provider about one token (RFC 7662).

Only 200, a JSON object and a boolean ``active`` are an answer; all else is the provider's failure (§2.2, §2.3). At most
``max_concurrent`` questions are under way. After ``breaker_failures`` failures in a row none is asked for a while; then
one probes. A refusal of our question (4xx) does not count towards that: one odd token must not close the door to all.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import math
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

import jwt as pyjwt

from authz.clients import Clock, ProviderEvents
from authz.clients.discovery import Discovery
from authz.clients.http import HttpClient, render_place
from authz.core.strictjson import parse_object
from authz.model import ClientAuth, IntrospectionSettings, Provider, ProviderError, Reason, Rejected, Secret

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 §2.2."""

ASSERTION_LIFETIME_S: Final = 60
MAX_WAITING_FACTOR: Final = 16
"""Questions that may wait for their turn, as a multiple of those under way."""

MAX_ASSERTION_BYTES: Final = 65_536


class Breaker(enum.StrEnum):
    """Whether questions are asked at all."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Introspector:
    """Asks one provider."""

    def __init__(
        self,
        provider: Provider,
        settings: IntrospectionSettings,
        *,
        http: HttpClient,
        discovery: Discovery | None,
        clock: Clock,
        events: ProviderEvents,
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._http = http
        self._discovery = discovery
        self._clock = clock
        self._events = events
        self._key: Any = None
        if settings.private_key is not None:
            # Once: taking a PEM apart and checking it costs far more than a signature.
            algorithm = pyjwt.get_algorithm_by_name(settings.private_key_algorithm)
            self._key = algorithm.prepare_key(settings.private_key.reveal())
        self._turns = asyncio.Semaphore(settings.max_concurrent)
        self._waiting = 0
        self._failures = 0
        self._open_until_s = -math.inf
        self._probing = False
        self.last_error = ""

    @property
    def breaker(self) -> Breaker:
        """The breaker's state now."""
        if self._failures < self._settings.breaker_failures:
            return Breaker.CLOSED
        return Breaker.OPEN if self._clock.monotonic_s() < self._open_until_s else Breaker.HALF_OPEN

    async def fetch(self, token: str) -> dict[str, Any]:
        """Return the provider's answer about a token.

        Not checked: anything it says but that ``active`` is a boolean.

        Raises:
            ProviderError: PROVIDER_UNAVAILABLE or PROVIDER_ANSWER; OVERLOADED where too many questions wait.

        """
        if self._waiting >= self._settings.max_concurrent * MAX_WAITING_FACTOR:
            raise ProviderError(Reason.OVERLOADED, "too many tokens wait to be introspected")
        self._waiting += 1
        try:
            async with self._turns:
                return await self._ask(token)
        finally:
            self._waiting -= 1

    async def _ask(self, token: str) -> dict[str, Any]:
        state = self.breaker
        if state is Breaker.OPEN or (state is Breaker.HALF_OPEN and self._probing):
            wait_s = max(1, math.ceil(self._open_until_s - self._clock.monotonic_s()))
            detail = f"not asked, after {self._failures} failures in a row: {self.last_error}"
            raise ProviderError(Reason.PROVIDER_UNAVAILABLE, detail, retry_after_s=wait_s)
        self._probing = probing = state is Breaker.HALF_OPEN
        begun_s = self._clock.monotonic_s()
        try:
            answer = await self._exchange(token)
        except ProviderError as error:
            self._note_failure(error)
            raise
        finally:
            if probing:
                self._probing = False
        if self._failures >= self._settings.breaker_failures:
            self._events.provider_event(self._provider.name, "breaker_closed")
        self._failures, self.last_error = 0, ""
        seconds = max(0.0, self._clock.monotonic_s() - begun_s)
        self._events.provider_event(self._provider.name, "introspected", seconds=seconds)
        return answer

    def _note_failure(self, error: ProviderError) -> None:
        self.last_error = error.detail
        self._events.provider_event(self._provider.name, "introspection_failed", error.detail)
        if error.reason is not Reason.PROVIDER_UNAVAILABLE:
            return
        self._failures += 1
        if self._failures >= self._settings.breaker_failures:
            self._open_until_s = self._clock.monotonic_s() + self._settings.breaker_open_s
            if self._failures == self._settings.breaker_failures:
                self._events.provider_event(self._provider.name, "breaker_open", error.detail)

    async def _exchange(self, token: str) -> dict[str, Any]:
        url = await self._endpoint()
        form = {"token": token}
        if self._settings.token_type_hint is not None:
            form["token_type_hint"] = self._settings.token_type_hint
        headers: dict[str, str] = {}
        self._authenticate(form, headers)
        raw = await self._http.fetch(url, form=form, headers=headers)
        try:
            answer = parse_object(raw, reason=Reason.PROVIDER_ANSWER)
        except Rejected as error:
            raise ProviderError(Reason.PROVIDER_ANSWER, f"{render_place(url)}: {error.detail}") from None
        if not isinstance(answer.get("active"), bool):
            raise ProviderError(Reason.PROVIDER_ANSWER, f"{render_place(url)}: the answer has no boolean `active`")
        return answer

    async def _endpoint(self) -> str:
        if self._settings.endpoint is not None:
            return self._settings.endpoint
        endpoint = None
        if self._discovery is not None:
            endpoint = (await self._discovery.fetch(anew=False)).introspection
        if endpoint is None:
            raise ProviderError(Reason.PROVIDER_ANSWER, "discovery names no `introspection_endpoint`: write `endpoint`")
        return endpoint

    def _authenticate(self, form: dict[str, str], headers: dict[str, str]) -> None:
        """Prove who asks (RFC 6749 §2.3.1, RFC 7523 §2.2, RFC 8705 §2)."""
        settings = self._settings
        match settings.auth:
            case ClientAuth.BASIC:
                pair = f"{quote_plus(settings.client_id)}:{quote_plus(_reveal(settings.client_secret))}"
                headers["authorization"] = "Basic " + base64.b64encode(pair.encode("ascii")).decode("ascii")
            case ClientAuth.POST:
                form |= {"client_id": settings.client_id, "client_secret": _reveal(settings.client_secret)}
            case ClientAuth.PRIVATE_KEY_JWT:
                form |= {"client_id": settings.client_id, "client_assertion_type": ASSERTION_TYPE}
                form["client_assertion"] = self._sign_assertion()
            case ClientAuth.ASSERTION_FILE:
                form |= {"client_id": settings.client_id, "client_assertion_type": ASSERTION_TYPE}
                form["client_assertion"] = _read_assertion(settings.assertion_file or "")
            case ClientAuth.MTLS:
                form["client_id"] = settings.client_id

    def _sign_assertion(self) -> str:
        settings = self._settings
        now_s = int(self._clock.now_s())
        claims = {
            "iss": settings.client_id,
            "sub": settings.client_id,
            "aud": settings.assertion_audience or self._provider.issuer,
            "jti": secrets.token_urlsafe(24),
            "iat": now_s,
            "exp": now_s + ASSERTION_LIFETIME_S,
        }
        headers = {"kid": settings.private_key_id} if settings.private_key_id is not None else None
        return pyjwt.encode(claims, self._key, algorithm=settings.private_key_algorithm, headers=headers)


def _reveal(secret: Secret | None) -> str:
    return "" if secret is None else secret.reveal()


def _read_assertion(name: str) -> str:
    """Read a projected token: it is renewed while we run, so it is read at each use."""
    try:
        with Path(name).open("rb") as file:
            text = file.read(MAX_ASSERTION_BYTES).decode("ascii").strip()
    except OSError as error:
        why = (error.strerror or "unreadable").lower()
        raise ProviderError(Reason.PROVIDER_UNAVAILABLE, f"cannot read `{name}`: {why}") from None
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise ProviderError(Reason.PROVIDER_UNAVAILABLE, f"`{name}` holds no token")
    return text
