"""Memory for what was proved, bounded in bytes and time, and one flight for all who wait for the same thing.

Keys are digests or names, never tokens (invariant NO-RAW-TOKENS). The clock is handed in. Nothing here knows what it
keeps: what an entry is worth is judged by whoever takes it out (invariant EVIDENCE-NOT-VERDICTS).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

from cachetools import TLRUCache

from authz.model import ProviderError, Reason, Rejected

V = TypeVar("V")
K = TypeVar("K", bound=Hashable)

ENTRY_BYTES: Final = 1_024
"""What the cache itself and the small objects around an entry take up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache holds (``bytes`` is estimated), and how often it was asked since the start."""

    entries: int
    bytes: int
    hits: int
    misses: int


@dataclass(frozen=True, slots=True)
class _Entry(Generic[V]):
    value: V
    size: int
    until_s: float


class TimedCache(Generic[V]):
    """A map that forgets: what is too old first, then what was not used for longest.

    ``clock`` is monotonic, in seconds. An entry is gone at the very second it is kept until. ``pushed_out`` is told
    the key, the value and that second of what makes room for others, not of what is too old.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        clock: Callable[[], float],
        pushed_out: Callable[[bytes, V, float], None] | None = None,
    ) -> None:
        self._entries: _Entries[V] = _Entries(max_bytes, clock, pushed_out)
        self._clock = clock
        self._hits = 0
        self._misses = 0

    def get(self, key: bytes) -> V | None:
        """Return the value, or None if it is not there (any more)."""
        try:
            value = self._entries[key].value
        except KeyError:
            self._misses += 1
            return None
        self._hits += 1
        return value

    def put(self, key: bytes, value: V, *, size: int, keep_s: float) -> None:
        """Keep a value for ``keep_s`` seconds, in the place of any other; not at all if it alone is too large.

        ``size`` is the value's own, in bytes: see :func:`size_of_json`.
        """
        self.discard(key)
        entry = _Entry(value, size + ENTRY_BYTES, self._clock() + keep_s)
        with contextlib.suppress(ValueError):  # larger than the whole cache
            self._entries[key] = entry

    @property
    def size(self) -> int:
        """The bytes of all that is there."""
        return int(self._entries.currsize)

    def push_out(self) -> None:
        """Make room: as if it were wanted for another value."""
        self._entries.popitem()

    def discard(self, key: bytes) -> None:
        """Forget a value, if it is there."""
        with contextlib.suppress(KeyError):
            del self._entries[key]

    def stats(self) -> CacheStats:
        """Return the figures of now."""
        self._entries.expire()
        return CacheStats(entries=len(self._entries), bytes=self.size, hits=self._hits, misses=self._misses)


def size_of_json(value: Any) -> int:
    """Return the bytes that a JSON value takes up in memory, every object counted once for each place it stands in."""
    size = 0
    rest = [value]
    while rest:
        one = rest.pop()
        size += sys.getsizeof(one)
        if isinstance(one, dict):
            rest.extend(one)
            rest.extend(one.values())
        elif isinstance(one, list):
            rest.extend(one)
    return size


def _until(_key: bytes, entry: _Entry[Any], _now_s: float) -> float:
    return entry.until_s


def _size(entry: _Entry[Any]) -> int:
    return entry.size


class _Entries(TLRUCache[bytes, _Entry[V]]):
    """``popitem`` is what the cache calls for room, and only then (cachetools, "Extending cache classes")."""

    def __init__(
        self, max_bytes: int, clock: Callable[[], float], pushed_out: Callable[[bytes, V, float], None] | None
    ) -> None:
        super().__init__(maxsize=max_bytes, ttu=_until, timer=clock, getsizeof=_size)
        self._pushed_out = pushed_out

    def popitem(self) -> tuple[bytes, _Entry[V]]:
        key, entry = super().popitem()
        if self._pushed_out is not None:
            self._pushed_out(key, entry.value, entry.until_s)
        return key, entry


@dataclass(frozen=True, slots=True)
class _Failure:
    """An expected exception without its traceback: each who waits raises one of their own."""

    reason: Reason
    detail: str
    retry_after_s: int | None

    def to_exception(self) -> Rejected | ProviderError:
        if self.retry_after_s is None:
            return Rejected(self.reason, self.detail)
        return ProviderError(self.reason, self.detail, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, slots=True)
class _Success(Generic[V]):
    value: V


_Outcome = _Success[V] | _Failure


class SingleFlight(Generic[K, V]):
    """At most one fetch under way per key; it belongs to everyone who waits for it.

    No waiter's deadline or cancellation ends a fetch: whoever comes later finds what it brought. It runs in a context
    of its own, so that it carries nothing of the request that happened to start it.
    """

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[_Outcome[V]]] = {}
        self._closed = False

    def __contains__(self, key: K) -> bool:
        """Say whether a fetch for this key is under way."""
        return key in self._tasks

    def __len__(self) -> int:
        """Return how many fetches are under way."""
        return len(self._tasks)

    async def run(self, key: K, fetch: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Wait for the fetch under way, or for a new one.

        Raises:
            Rejected, ProviderError: what the fetch raised, anew for each who waits; PROVIDER_UNAVAILABLE after
                :meth:`close`.

        """
        task = self._begin(key, fetch)
        await asyncio.wait((task,))
        if task.cancelled():
            raise _closed()
        outcome = task.result()
        if isinstance(outcome, _Failure):
            raise outcome.to_exception()
        return outcome.value

    async def settle(self, key: K, fetch: Callable[[], Coroutine[Any, Any, V]]) -> None:
        """Wait as :meth:`run` does, whatever comes of it. A bug of ours is reported by the event loop."""
        with contextlib.suppress(ProviderError):
            await asyncio.wait((self._begin(key, fetch),))

    async def close(self) -> None:
        """End what is under way, and begin nothing more."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, key: K, fetch: Callable[[], Coroutine[Any, Any, V]]) -> asyncio.Task[_Outcome[V]]:
        if self._closed:
            raise _closed()
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(_outcome(fetch), context=contextvars.Context())
            self._tasks[key] = task
            task.add_done_callback(partial(self._forget, key))
        return task

    def _forget(self, key: K, _task: asyncio.Task[_Outcome[V]]) -> None:
        del self._tasks[key]


async def _outcome(fetch: Callable[[], Coroutine[Any, Any, V]]) -> _Outcome[V]:
    try:
        return _Success(await fetch())
    except Rejected as rejected:
        return _Failure(rejected.reason, rejected.detail, None)
    except ProviderError as error:
        return _Failure(error.reason, error.detail, error.retry_after_s)


def _closed() -> ProviderError:
    return ProviderError(Reason.PROVIDER_UNAVAILABLE, "the provider is no longer in use, or the service is stopping")
