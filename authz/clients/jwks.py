"""A provider's keys: fetched at start, refreshed ahead of time, kept when a refresh fails (invariant LAST-GOOD).

An unknown key id makes at most one fetch in ``min_refetch_s``, whoever asks and however often; until then the answer is
503, never 401, since the token may be good. Tokens with known keys never wait. Keys older than ``max_stale_s`` prove
nothing any more. The last good set may be kept on disk for a start with the provider down.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Final

from authz.cache import SingleFlight
from authz.clients import Clock, ProviderEvents
from authz.clients.discovery import Discovery
from authz.clients.http import HttpClient
from authz.clients.keyfile import KeyFile
from authz.core.jwk import KeySet, key_set_from_secret, parse_key_set
from authz.model import KeySettings, Provider, ProviderError, Reason

FIRST_RETRY_S: Final = 1.0
"""After a failed refresh; doubled each time, up to the refresh interval."""

JITTER: Final = 0.1
"""So that many replicas do not ask all at once."""

_FLIGHT: Final = "keys"


class KeySource:
    """The keys of one provider."""

    def __init__(
        self,
        provider: Provider,
        settings: KeySettings,
        *,
        http: HttpClient,
        discovery: Discovery | None,
        clock: Clock,
        events: ProviderEvents,
    ) -> None:
        """Take the keys that stand in the rules file at once; nothing is fetched yet."""
        self._provider = provider
        self._settings = settings
        self._http = http
        self._discovery = discovery
        self._clock = clock
        self._events = events
        self._flight: SingleFlight[str, KeySet] = SingleFlight()
        self._keys: KeySet | None = None
        self._fetched_s = math.inf
        self._forced_s = -math.inf
        self._failures = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._closed = False
        self._file = None if settings.cache_dir is None else KeyFile(provider, settings, settings.cache_dir)
        self.last_error = ""
        if settings.secret is not None:
            self._keys = key_set_from_secret(settings.secret, provider.expectation.algorithms)
        elif settings.inline is not None:
            self._keys = parse_key_set(settings.inline.encode())

    @property
    def is_fetched(self) -> bool:
        """Whether keys come from the provider, and not from the rules file."""
        return self._settings.secret is None and self._settings.inline is None

    @property
    def age_s(self) -> float | None:
        """Seconds since the keys were fetched; None where they are not fetched, or not yet."""
        return None if math.isinf(self._fetched_s) else self._clock.monotonic_s() - self._fetched_s

    def match_keys(self) -> KeySet | None:
        """Return the keys that count now: None where there are none, or they are too old."""
        if self._clock.monotonic_s() - self._fetched_s > self._settings.max_stale_s:
            return None
        return self._keys

    async def start(self) -> None:
        """Try once to have keys, and refresh them from then on. Never raises for a provider that fails."""
        if not self.is_fetched:
            return
        if self._file is not None:
            await self._load(self._file)
        if not self._closed:
            self._refreshing = asyncio.create_task(self._keep_fresh())
            await self._flight.settle(_FLIGHT, self._fetch)  # the attempt that the task begins with

    async def close(self) -> None:
        """End what is under way."""
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        await self._flight.close()

    async def fetch_keys(self) -> KeySet:
        """Return the keys that count now, waiting for the first ones.

        Raises:
            ProviderError: KEYS_UNAVAILABLE, with what the last attempt came to.

        """
        keys = self.match_keys()
        if keys is None and self.is_fetched:
            await self._force()
            keys = self.match_keys()
        if keys is None:
            raise ProviderError(Reason.KEYS_UNAVAILABLE, self.last_error or "there are no keys", retry_after_s=5)
        return keys

    async def fetch_newer(self, known: KeySet) -> KeySet:
        """Return a set newer than one that lacks a key, or the same one where the keys are not fetched.

        Raises:
            ProviderError: KEY_REFETCH_HELD_BACK before ``min_refetch_s`` is over, or what the fetch raised.

        """
        keys = self.match_keys()
        if not self.is_fetched or (keys is not None and keys is not known):
            return known if keys is None else keys
        await self._force()
        return await self.fetch_keys()

    async def _force(self) -> None:
        """Fetch because a check needs it, at most once in ``min_refetch_s``."""
        if _FLIGHT not in self._flight:
            wait_s = self._forced_s + self._settings.min_refetch_s - self._clock.monotonic_s()
            if wait_s > 0:
                reason = Reason.KEYS_UNAVAILABLE if self.match_keys() is None else Reason.KEY_REFETCH_HELD_BACK
                detail = "the provider was asked a moment ago" + (f": {self.last_error}" if self.last_error else "")
                raise ProviderError(reason, detail, retry_after_s=math.ceil(wait_s))
            self._forced_s = self._clock.monotonic_s()
        try:
            await self._flight.run(_FLIGHT, self._fetch)
        except ProviderError:
            if self.match_keys() is None:
                raise ProviderError(Reason.KEYS_UNAVAILABLE, self.last_error, retry_after_s=5) from None
            raise

    async def _keep_fresh(self) -> None:
        while True:
            await self._flight.settle(_FLIGHT, self._fetch)
            pause_s = self._settings.refresh_s
            if self._failures:
                pause_s = min(pause_s, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 16))
            await asyncio.sleep(pause_s * random.uniform(1 - JITTER, 1))  # noqa: S311 - spreads load, guards nothing

    async def _fetch(self) -> KeySet:
        begun_s = self._clock.monotonic_s()
        why = "the fetch ended unexpectedly"
        keys: KeySet | None = None
        try:
            raw = await self._http.fetch(await self._url())
            keys = parse_key_set(raw)
        except ProviderError as error:
            why = error.detail
            raise
        finally:
            if keys is None:  # also for a bug of ours: what is not refreshed must show
                self._failures += 1
                self.last_error = why
                self._events.provider_event(self._provider.name, "keys_failed", why)
        # The age counts from before the fetch: what was published meanwhile may not be in it.
        if self._keys is None or keys.thumbprints != self._keys.thumbprints or self._failures:
            detail = "; ".join(keys.skipped[:8])
            self._events.provider_event(self._provider.name, "keys_loaded")
            if detail:
                self._events.provider_event(self._provider.name, "keys_skipped", detail)
        self._keys, self._fetched_s, self._failures, self.last_error = keys, begun_s, 0, ""
        self._events.provider_event(
            self._provider.name, "keys_fetched", seconds=max(0.0, self._clock.monotonic_s() - begun_s)
        )
        if self._file is not None:
            await self._save(self._file, raw)
        return keys

    async def _url(self) -> str:
        if self._settings.jwks_url is not None:
            return self._settings.jwks_url
        if self._discovery is None:
            raise ProviderError(Reason.KEYS_UNAVAILABLE, "nothing says where the keys are")
        endpoints = await self._discovery.fetch(anew=True)
        if endpoints.jwks is None:
            raise ProviderError(Reason.KEYS_UNAVAILABLE, "the discovery document names no `jwks_uri`")
        return endpoints.jwks

    async def _load(self, file: KeyFile) -> None:
        try:
            found = await asyncio.to_thread(file.read, now_s=self._clock.now_s())
        except ValueError as error:
            self._events.provider_event(self._provider.name, "key_file_failed", str(error))
            return
        if found is not None:
            self._keys = found[0]
            self._fetched_s = self._clock.monotonic_s() - found[1]

    async def _save(self, file: KeyFile, raw: bytes) -> None:
        try:
            await asyncio.to_thread(file.write, raw, now_s=self._clock.now_s())
        except OSError as error:
            detail = f"cannot keep the keys on disk: {(error.strerror or 'unwritable').lower()}"
            self._events.provider_event(self._provider.name, "key_file_failed", detail)
