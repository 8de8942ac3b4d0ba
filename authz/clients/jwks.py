"""A provider's keys: fetched at start, refreshed ahead of time, kept when a refresh fails (invariant LAST-GOOD).

An unknown key id makes at most one fetch in ``min_refetch_s``, whoever asks and however often; until then the answer is
503, never 401, since the token may be good. Tokens with known keys never wait. Keys older than ``max_stale_s`` prove
nothing any more. The last good set may be kept on disk for a start with the provider down. Of several workers of one
host one fetches for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from authz.cache import SingleFlight
from authz.clients import Clock, ProviderEvents
from authz.clients.discovery import Discovery
from authz.clients.http import HttpClient
from authz.clients.keyfile import KeyFile
from authz.clients.keyshare import Attempt, KeyShare
from authz.core.jwk import KeySet, key_set_from_secret, parse_key_set
from authz.model import KeySettings, Provider, ProviderError, Reason

FIRST_RETRY_S: Final = 1.0
"""After a failed refresh; doubled each time, up to the refresh interval."""

JITTER: Final = 0.1
"""So that many replicas do not ask all at once."""

LOOK_S: Final = 1.0
"""How soon a worker sees what another one fetched."""

_LEAST_PAUSE_S: Final = 0.01
_FLIGHT: Final = "keys"


def _report(task: asyncio.Task[None]) -> None:
    """Hand a bug of ours, which ended the refreshing, to whoever minds the event loop."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        task.get_loop().call_exception_handler({"message": "keys are no longer refreshed", "exception": error})


async def fetch_document(settings: KeySettings, http: HttpClient, discovery: Discovery | None) -> bytes:
    """Fetch a JWKS document from where the settings say, or from where discovery says now.

    Raises:
        ProviderError: as :meth:`HttpClient.fetch` and :meth:`Discovery.fetch`, and KEYS_UNAVAILABLE where neither
            says where the keys are.

    """
    url = settings.jwks_url
    if url is None:
        if discovery is None:
            raise ProviderError(Reason.KEYS_UNAVAILABLE, "nothing says where the keys are")
        url = (await discovery.fetch(anew=True)).jwks
    if url is None:
        raise ProviderError(Reason.KEYS_UNAVAILABLE, "the discovery document names no `jwks_uri`")
    return await http.fetch(url)


class KeySource:
    """The keys of one provider."""

    def __init__(
        self,
        provider: Provider,
        settings: KeySettings,
        *,
        fetch: Callable[[], Awaitable[bytes]],
        clock: Clock,
        events: ProviderEvents,
        share: KeyShare | None = None,
    ) -> None:
        """Take the keys that stand in the rules file at once; nothing is fetched yet.

        ``fetch`` is :func:`fetch_document` with what it needs; ``share`` is where the workers of one host tell each
        other what they fetched.
        """
        self._provider = provider
        self._settings = settings
        self._fetch_document = fetch
        self._clock = clock
        self._events = events
        self._flight: SingleFlight[str, KeySet] = SingleFlight()
        self._keys: KeySet | None = None
        self._raw = b""
        self._fetched_s = math.inf
        self._forced_s = -math.inf
        self._ended_s = -math.inf
        self._failures = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._closed = False
        self._share = share
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
            self._refreshing.add_done_callback(_report)
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
            self._hold_back()
        try:
            await self._flight.run(_FLIGHT, partial(self._fetch, forced=True))
        except ProviderError:
            if self.match_keys() is None:
                raise ProviderError(Reason.KEYS_UNAVAILABLE, self.last_error, retry_after_s=5) from None
            raise

    def _hold_back(self) -> None:
        wait_s = self._forced_s + self._settings.min_refetch_s - self._clock.monotonic_s()
        if wait_s > 0:
            reason = Reason.KEYS_UNAVAILABLE if self.match_keys() is None else Reason.KEY_REFETCH_HELD_BACK
            detail = "the provider was asked a moment ago" + (f": {self.last_error}" if self.last_error else "")
            raise ProviderError(reason, detail, retry_after_s=math.ceil(wait_s))

    async def _keep_fresh(self) -> None:
        while True:
            await self._flight.settle(_FLIGHT, self._fetch)
            spread = random.uniform(1 - JITTER, 1)  # noqa: S311 - spreads load, guards nothing
            left_s = self._rest_s(spread)
            while left_s > 0:
                pause_s = left_s if self._share is None else min(left_s, LOOK_S)
                await asyncio.sleep(pause_s)
                left_s -= pause_s
                if self._share is not None and self._take(await asyncio.to_thread(self._share.read)):
                    left_s = self._rest_s(spread)

    def _rest_s(self, spread: float) -> float:
        """Return how long it is until the next fetch is due, counted from the last one's end."""
        pause_s = self._settings.refresh_s
        if self._failures:
            pause_s = min(pause_s, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 16))
        return max(_LEAST_PAUSE_S, pause_s * spread - (self._clock.monotonic_s() - self._ended_s))

    async def _fetch(self, *, forced: bool = False) -> KeySet:
        share = self._share
        if share is None:
            return await self._ask(forced=forced)
        asked_s = self._clock.monotonic_s()
        async with share.held():
            keys = self._join(await asyncio.to_thread(share.read), asked_s, forced=forced)
            if keys is not None:
                return keys
            try:
                keys = await self._ask(forced=forced)
            except ProviderError:
                await self._tell(share)
                raise
            await self._tell(share)
            return keys

    def _join(self, seen: Attempt | None, asked_s: float, *, forced: bool) -> KeySet | None:
        """Return what another worker fetched, if that is as good as a fetch of ours.

        Raises:
            ProviderError: what its fetch came to, if it was under way when we wanted one; or that it is too soon.

        """
        before = self._keys
        taken = self._take(seen)
        if seen is not None and seen.ended_s >= asked_s:
            if seen.error:
                raise ProviderError(Reason.PROVIDER_UNAVAILABLE, seen.error)
            return self.match_keys()
        if forced:
            if self._keys is not before:  # others: the one that is wanted may be among them
                return self.match_keys()
            self._hold_back()
            return None
        return self.match_keys() if taken and not self._failures and self._rest_s(1 - JITTER) > LOOK_S else None

    def _take(self, seen: Attempt | None) -> bool:
        """Know what another worker's attempt came to; say whether that was news."""
        if seen is None or seen.ended_s <= self._ended_s:
            return False
        if seen.fetched_s is not None and (seen.fetched_s > self._fetched_s or math.isinf(self._fetched_s)):
            raw = seen.jwks.encode()
            with contextlib.suppress(ProviderError):  # a damaged document is none, and must not end the refreshing
                if raw != self._raw:
                    self._note_keys(parse_key_set(raw))
                self._raw, self._fetched_s = raw, seen.fetched_s
        self._failures, self.last_error, self._ended_s = seen.failures, seen.error, seen.ended_s
        self._forced_s = self._forced_s if seen.forced_s is None else seen.forced_s
        return True

    async def _tell(self, share: KeyShare) -> None:
        attempt = Attempt(
            ended_s=self._ended_s,
            forced_s=None if math.isinf(self._forced_s) else self._forced_s,
            fetched_s=None if math.isinf(self._fetched_s) else self._fetched_s,
            jwks=self._raw.decode(),
            failures=self._failures,
            error=self.last_error,
        )
        try:
            await asyncio.to_thread(share.write, attempt)
        except OSError as error:
            detail = f"the other workers cannot be told of the keys: {(error.strerror or 'unwritable').lower()}"
            self._events.provider_event(self._provider.name, "key_file_failed", detail)

    async def _ask(self, *, forced: bool) -> KeySet:
        begun_s = self._clock.monotonic_s()
        if forced:
            self._forced_s = begun_s
        why = "the fetch ended unexpectedly"
        keys: KeySet | None = None
        try:
            raw = await self._fetch_document()
            keys = parse_key_set(raw)
        except ProviderError as error:
            why = error.detail
            raise
        finally:
            self._ended_s = self._clock.monotonic_s()
            if keys is None:  # also for a bug of ours: what is not refreshed must show
                self._failures += 1
                self.last_error = why
                self._events.provider_event(self._provider.name, "keys_failed", why)
        self._note_keys(keys)
        # The age counts from before the fetch: what was published meanwhile may not be in it.
        self._raw, self._fetched_s, self._failures, self.last_error = raw, begun_s, 0, ""
        self._events.provider_event(self._provider.name, "keys_fetched", seconds=max(0.0, self._ended_s - begun_s))
        if self._file is not None:
            await self._save(self._file, raw)
        return keys

    def _note_keys(self, keys: KeySet) -> None:
        if self._keys is None or keys.thumbprints != self._keys.thumbprints or self._failures:
            detail = "; ".join(keys.skipped[:8])
            self._events.provider_event(self._provider.name, "keys_loaded")
            if detail:
                self._events.provider_event(self._provider.name, "keys_skipped", detail)
        self._keys = keys

    async def _load(self, file: KeyFile) -> None:
        try:
            found = await asyncio.to_thread(file.read, now_s=self._clock.now_s())
        except ValueError as error:
            self._events.provider_event(self._provider.name, "key_file_failed", str(error))
            return
        if found is not None:
            self._keys, age_s, self._raw = found
            self._fetched_s = self._clock.monotonic_s() - age_s

    async def _save(self, file: KeyFile, raw: bytes) -> None:
        try:
            await asyncio.to_thread(file.write, raw, now_s=self._clock.now_s())
        except OSError as error:
            detail = f"cannot keep the keys on disk: {(error.strerror or 'unwritable').lower()}"
            self._events.provider_event(self._provider.name, "key_file_failed", detail)
