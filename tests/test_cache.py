"""Memory is bounded in bytes and time, and one flight serves all who wait: nobody ends it, nobody shares errors."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.cache import ENTRY_BYTES, CacheStats, SingleFlight, TimedCache, size_of_json
from authz.clients.evidence import Evidence, EvidenceCache, Refused
from authz.core.claims import read_principal
from authz.model import ClaimPlaces, Expectation, Principal, Provider, ProviderError, Reason, Rejected
from tests.fakes import FakeClock

PROVIDER = Provider(
    name="shop",
    issuer="https://i",
    expectation=Expectation(issuer="https://i", audiences=None, algorithms=frozenset({"RS256"})),
    keys=None,
    places=ClaimPlaces(roles=(("roles",),)),
)
KEYS = [bytes([number]) * 32 for number in range(8)]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def cache_of(clock: FakeClock, *, max_bytes: int) -> TimedCache[str]:
    return TimedCache(max_bytes=max_bytes, clock=clock.monotonic_s)


def held(cache: TimedCache[str], *keys: bytes) -> list[bytes]:
    return [key for key in keys if cache.get(key) is not None]


# --- the bound in bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "kept"), [(99, 3), (100, 3), (101, 2)])
def test_the_bound_is_in_bytes_of_all_entries_together(last: int, kept: int, clock: FakeClock) -> None:
    """Just under and at the bound all stay; one byte over it, the oldest goes."""
    cache = cache_of(clock, max_bytes=3 * (ENTRY_BYTES + 100))
    for key, size in zip(KEYS, (100, 100, last), strict=False):
        cache.put(key, "x", size=size, keep_s=60)
    assert held(cache, *KEYS) == KEYS[3 - kept : 3]
    assert cache.stats().bytes == sum((100, 100, last)[3 - kept :]) + kept * ENTRY_BYTES


@pytest.mark.parametrize(("size", "is_kept"), [(999, True), (1_000, True), (1_001, False)])
def test_an_entry_larger_than_the_whole_cache_is_not_kept(size: int, *, is_kept: bool, clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=ENTRY_BYTES + 1_000)
    cache.put(KEYS[0], "large", size=size, keep_s=60)
    assert cache.get(KEYS[0]) == ("large" if is_kept else None)


def test_what_is_too_large_pushes_out_nobody_but_its_own_predecessor(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=2 * ENTRY_BYTES + 100)
    for key in KEYS[:2]:
        cache.put(key, "small", size=10, keep_s=60)
    cache.put(KEYS[0], "large", size=1_000_000, keep_s=60)
    assert held(cache, *KEYS) == [KEYS[1]], "an older value must not be taken for the one that was too large"
    assert cache.stats().bytes == ENTRY_BYTES + 10


def test_what_was_not_used_for_longest_goes_first(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=3 * ENTRY_BYTES)
    for key in KEYS[:3]:
        cache.put(key, "x", size=0, keep_s=60)
    assert cache.get(KEYS[0]) == "x"
    cache.put(KEYS[3], "x", size=0, keep_s=60)
    assert held(cache, *KEYS) == [KEYS[0], KEYS[2], KEYS[3]]
    cache.put(KEYS[0], "written again", size=0, keep_s=60)
    cache.put(KEYS[4], "x", size=0, keep_s=60)
    assert held(cache, *KEYS) == [KEYS[0], KEYS[3], KEYS[4]]


def test_what_is_too_old_makes_room_before_anything_else_goes(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=2 * ENTRY_BYTES)
    cache.put(KEYS[0], "long", size=0, keep_s=60)
    cache.put(KEYS[1], "short", size=0, keep_s=1)
    assert cache.get(KEYS[1]) == "short"  # used last, and yet the one that goes
    clock.advance(1)
    cache.put(KEYS[2], "new", size=0, keep_s=60)
    assert held(cache, *KEYS) == [KEYS[0], KEYS[2]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 3_000), st.integers(0, 5)), max_size=40))
def test_the_bound_holds_whatever_is_put_in(puts: list[tuple[bytes, int, int]]) -> None:
    clock = FakeClock()
    cache = cache_of(clock, max_bytes=4 * ENTRY_BYTES)
    last: dict[bytes, tuple[int, float]] = {}
    for number, (key, size, keep_s) in enumerate(puts):
        cache.put(key, f"{number}", size=size, keep_s=keep_s)
        last[key] = (number, clock.steady_s + keep_s)
        assert cache.stats().bytes <= 4 * ENTRY_BYTES
        clock.advance(0.5)
        for its, (written, until_s) in last.items():
            found = cache.get(its)
            assert found is None or (found == f"{written}" and clock.steady_s < until_s)


# --- the bound in time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_s", "there"), [(0, True), (29.999, True), (30, False), (30.001, False)])
def test_an_entry_is_gone_at_the_very_second_it_is_kept_until(after_s: float, *, there: bool, clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=10_000)
    cache.put(KEYS[0], "x", size=0, keep_s=30)
    clock.advance(after_s)
    assert (cache.get(KEYS[0]) is not None) is there
    assert cache.stats().entries == int(there)


@pytest.mark.parametrize("keep_s", [0, -1])
def test_what_is_kept_for_no_time_is_not_kept(keep_s: float, clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=10_000)
    cache.put(KEYS[0], "old", size=0, keep_s=30)
    cache.put(KEYS[0], "new", size=0, keep_s=keep_s)
    assert cache.get(KEYS[0]) is None


def test_being_used_makes_nothing_live_longer(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=10_000)
    cache.put(KEYS[0], "x", size=0, keep_s=10)
    for _ in range(9):
        clock.advance(1)
        assert cache.get(KEYS[0]) == "x"
    clock.advance(1)
    assert cache.get(KEYS[0]) is None
    cache.put(KEYS[0], "x", size=0, keep_s=10)
    clock.advance(9)
    cache.put(KEYS[0], "anew", size=0, keep_s=10)
    clock.advance(9)
    assert cache.get(KEYS[0]) == "anew"


def test_a_value_is_forgotten_when_told_and_only_that_one(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=10_000)
    for key in KEYS[:2]:
        cache.put(key, "x", size=0, keep_s=30)
    cache.discard(KEYS[0])
    cache.discard(KEYS[0])
    cache.discard(KEYS[5])
    assert held(cache, *KEYS) == [KEYS[1]]


def test_the_figures(clock: FakeClock) -> None:
    cache = cache_of(clock, max_bytes=10_000)
    assert cache.stats() == CacheStats(entries=0, bytes=0, hits=0, misses=0)
    cache.put(KEYS[0], "x", size=7, keep_s=30)
    cache.put(KEYS[1], "y", size=1, keep_s=10)
    for key in (KEYS[0], KEYS[0], KEYS[1], KEYS[2]):
        cache.get(key)
    assert cache.stats() == CacheStats(entries=2, bytes=2 * ENTRY_BYTES + 8, hits=3, misses=1)
    clock.advance(10)
    assert cache.stats() == CacheStats(entries=1, bytes=ENTRY_BYTES + 7, hits=3, misses=1)
    cache.get(KEYS[1])
    cache.discard(KEYS[0])
    assert cache.stats() == CacheStats(entries=0, bytes=0, hits=3, misses=2)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("", [""]),
        ("text", ["text"]),
        (True, [True]),
        ([], [[]]),
        (["a", 1], [["a", 1], "a", 1]),
        ({"k": "v"}, [{"k": "v"}, "k", "v"]),
        ({"a": {"b": [None]}}, [{"a": 0}, "a", {"b": 0}, "b", [None], None]),
    ],
)
def test_a_value_is_as_large_as_all_its_parts(value: object, parts: list[object]) -> None:
    assert size_of_json(value) == sum(map(sys.getsizeof, parts))


# --- evidence ---------------------------------------------------------------------------------------------------------


def evidence_of(**claims: object) -> Evidence:
    principal = Principal(
        provider="shop", issuer="https://i", subject="alice", client_id=None, claims=claims, expires_at_s=2e9
    )
    return Evidence(claims=claims, principal=principal, key="k", asked_s=None, expires_at_s=2e9)


@pytest.mark.parametrize(("spare", "is_kept"), [(8, True), (0, True), (-8, False)])
def test_evidence_counts_with_all_its_claims(spare: int, *, is_kept: bool, clock: FakeClock) -> None:
    evidence = evidence_of(sub="alice", roles=["x" * 100] * 10)
    sets = 3 * sys.getsizeof(frozenset())
    size = size_of_json(evidence.claims) + sets + ENTRY_BYTES
    assert size > 10 * 100
    # An eighth is for refusals.
    cache = EvidenceCache(max_bytes=(size + spare) * 8 // 7 + 2, clock=clock.monotonic_s)
    cache.keep(KEYS[0], evidence, keep_s=30)
    assert cache.match(KEYS[0], PROVIDER) is (evidence if is_kept else None)


@pytest.mark.parametrize(("detail", "is_kept"), [("x" * 9, True), ("x" * 10, True), ("x" * 11, False)])
def test_a_refusal_counts_with_its_words(detail: str, *, is_kept: bool, clock: FakeClock) -> None:
    cache = EvidenceCache(max_bytes=8 * (ENTRY_BYTES + 10), clock=clock.monotonic_s)
    refused = Refused(reason=Reason.TOKEN_INACTIVE, detail=detail)
    cache.refuse(KEYS[0], refused, keep_s=5)
    assert cache.match_refused(KEYS[0]) is (refused if is_kept else None)


def test_a_refusal_takes_the_place_of_evidence_even_if_it_is_not_remembered(clock: FakeClock) -> None:
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    refused = Refused(reason=Reason.TOKEN_INACTIVE, detail="")
    for keep_s, found in ((5.0, refused), (0.0, None)):
        cache.keep(KEYS[0], evidence_of(sub="alice"), keep_s=30)
        cache.refuse(KEYS[0], refused, keep_s=keep_s)
        assert cache.match(KEYS[0], PROVIDER) is None
        assert cache.match_refused(KEYS[0]) is found


def test_evidence_of_an_expired_token_is_not_kept_and_ends_on_time(clock: FakeClock) -> None:
    cache = EvidenceCache(max_bytes=1 << 20, clock=clock.monotonic_s)
    for keep_s in (0.0, -3.0):
        cache.keep(KEYS[0], evidence_of(), keep_s=keep_s)
        assert cache.stats().entries == 0
    cache.keep(KEYS[0], evidence_of(), keep_s=2)
    clock.advance(1.999)
    assert cache.match(KEYS[0], PROVIDER) is not None
    clock.advance(0.001)
    assert cache.match(KEYS[0], PROVIDER) is None


# --- packed evidence --------------------------------------------------------------------------------------------------


def proved(number: int, *, asked_s: float | None = None) -> Evidence:
    claims = {"sub": f"user-{number}", "roles": ["a", "b"], "deep": {"n": [1, 1.5, None, True, "ü"]}}
    principal = read_principal(PROVIDER, claims)
    return Evidence(claims=claims, principal=principal, key="k", asked_s=asked_s, expires_at_s=2e9)


def cache_for(tokens: float, clock: FakeClock) -> EvidenceCache:
    """Return a cache with room for so many tokens that are ready."""
    size = size_of_json(proved(0).claims) + 3 * sys.getsizeof(frozenset("ab")) + 200 + ENTRY_BYTES
    return EvidenceCache(max_bytes=int(size * tokens) * 8 // 7 + 8, clock=clock.monotonic_s)


def crowded(clock: FakeClock, *, keep_s: float = 30) -> tuple[EvidenceCache, list[Evidence]]:
    """Return a cache with room for four tokens that are ready, and the six that were put in."""
    cache = cache_for(4, clock)
    all_of_them = [proved(number, asked_s=float(number) or None) for number in range(6)]
    for key, evidence in zip(KEYS, all_of_them, strict=False):
        cache.keep(key, evidence, keep_s=keep_s)
    return cache, all_of_them


def test_as_long_as_there_is_room_nothing_is_packed(clock: FakeClock) -> None:
    cache = cache_for(8, clock)
    kept = [proved(number) for number in range(8)]
    for key, evidence in zip(KEYS, kept, strict=True):
        cache.keep(key, evidence, keep_s=30)
    assert all(cache.match(key, PROVIDER) is evidence for key, evidence in zip(KEYS, kept, strict=True))


def test_many_tokens_leave_a_quarter_to_the_ready_ones_and_never_pass_the_bound(clock: FakeClock) -> None:
    cache, bound = cache_for(8, clock), cache_for(8, clock)._max_bytes
    hot = proved(0)
    cache.keep(KEYS[0], hot, keep_s=30)
    for number in range(1, 200):
        cache.keep(number.to_bytes(32), proved(number), keep_s=30)
        assert cache.stats().bytes <= bound
        assert cache.match(KEYS[0], PROVIDER) is hot, "what is in use stays ready"
    assert cache.stats().entries > 12, "the others are packed, the oldest forgotten"
    assert cache.match((1).to_bytes(32), PROVIDER) is None
    assert cache.match((199).to_bytes(32), PROVIDER) is not None


def test_evidence_that_was_pushed_out_comes_back_equal(clock: FakeClock) -> None:
    cache, kept = crowded(clock)
    assert cache.stats().entries == 6
    found = [cache.match(key, PROVIDER) for key in KEYS[:6]]
    assert found == kept
    assert found[0] is not kept[0]
    assert found[0] is not None
    assert found[0].principal.roles == kept[0].principal.roles != frozenset()
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses) == (6, 6, 0)
    assert cache.match(KEYS[7], PROVIDER) is None
    assert cache.stats().misses == 1


def test_packed_evidence_ends_on_time(clock: FakeClock) -> None:
    cache, kept = crowded(clock, keep_s=2)
    clock.advance(1.999)
    assert cache.match(KEYS[0], PROVIDER) == kept[0]
    clock.advance(0.001)
    assert [cache.match(key, PROVIDER) for key in KEYS] == [None] * 8
    assert cache.stats().hits == 1


def test_coming_back_makes_nothing_live_longer(clock: FakeClock) -> None:
    cache, _ = crowded(clock, keep_s=2)
    for _ in range(3):
        clock.advance(0.5)
        for key in KEYS[:6]:
            assert cache.match(key, PROVIDER) is not None
    clock.advance(0.5)
    assert [cache.match(key, PROVIDER) for key in KEYS] == [None] * 8


def test_a_refusal_also_takes_the_place_of_packed_evidence(clock: FakeClock) -> None:
    cache, kept = crowded(clock)
    cache.refuse(KEYS[0], Refused(reason=Reason.TOKEN_INACTIVE, detail=""), keep_s=5)
    assert cache.match(KEYS[0], PROVIDER) is None
    assert cache.match(KEYS[1], PROVIDER) == kept[1]


def test_newer_evidence_takes_the_place_of_packed_evidence(clock: FakeClock) -> None:
    cache, _ = crowded(clock)
    cache.keep(KEYS[0], proved(7), keep_s=30)
    assert cache.stats().entries == 6
    for key in KEYS[1:6]:
        assert cache.match(key, PROVIDER) is not None
    assert cache.match(KEYS[0], PROVIDER) == proved(7)


# --- one flight -------------------------------------------------------------------------------------------------------


class Fetch:
    """Something that is waited for, and ends when told; ``begun`` counts how often it was begun."""

    def __init__(self, outcome: str | BaseException = "found") -> None:
        self.outcome = outcome
        self.begun = 0
        self.ended = 0
        self.go = asyncio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.go.wait()
        finally:
            self.ended += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


async def begin(*calls: Coroutine[Any, Any, str]) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_all_who_wait_for_one_key_wait_for_one_fetch() -> None:
    flight, fetch, other = SingleFlight[str, str](), Fetch(), Fetch("other")
    tasks = await begin(*(flight.run("k", fetch) for _ in range(50)), flight.run("other", other))
    assert (fetch.begun, other.begun, len(flight), "k" in flight, "x" in flight) == (1, 1, 2, True, False)
    fetch.go.set()
    other.go.set()
    assert await asyncio.gather(*tasks) == ["found"] * 50 + ["other"]
    assert (len(flight), "k" in flight) == (0, False)


async def test_a_flight_that_landed_serves_nobody_later() -> None:
    flight, fetch = SingleFlight[str, str](), Fetch()
    fetch.go.set()
    assert [await flight.run("k", fetch) for _ in range(3)] == ["found"] * 3
    assert fetch.begun == 3


async def test_no_waiter_ends_the_flight_of_the_others() -> None:
    """Neither the one that began it nor any other: also with nobody left, it lands for whoever comes then."""
    flight, fetch = SingleFlight[str, str](), Fetch()
    first, second = await begin(flight.run("k", fetch), flight.run("k", fetch))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (fetch.ended, "k" in flight) == (0, True)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await flight.run("k", fetch)
    (late,) = await begin(flight.run("k", fetch))
    fetch.go.set()
    assert await late == "found"
    assert fetch.begun == 1


@pytest.mark.parametrize(
    "error",
    [
        Rejected(Reason.TOKEN_INACTIVE, "not active"),
        ProviderError(Reason.PROVIDER_UNAVAILABLE, "gone", retry_after_s=7),
    ],
    ids=["rejected", "provider error"],
)
async def test_a_failure_is_raised_anew_for_each_who_waits(error: Rejected | ProviderError) -> None:
    """An exception that is shared grows a longer traceback with each raise, and keeps the frames of all alive."""
    flight, fetch = SingleFlight[str, str](), Fetch(error)
    tasks = await begin(*(flight.run("k", fetch) for _ in range(3)))
    fetch.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert len({id(its) for its in found} | {id(error)}) == 4
    frames: list[int] = []
    for its in found:
        assert isinstance(its, Rejected | ProviderError)
        assert (type(its), its.reason, its.detail) == (type(error), error.reason, error.detail)
        assert getattr(its, "retry_after_s", None) == getattr(error, "retry_after_s", None)
        assert (its.__cause__, its.__context__) == (None, None)
        frames.append(len(list(traceback_of(its))))
        assert not any(code == Fetch.__call__.__code__ for code in traceback_of(its))
    assert len(set(frames)) == 1
    assert fetch.begun == 1


def traceback_of(error: BaseException) -> list[object]:
    found: list[object] = []
    step = error.__traceback__
    while step is not None:
        found.append(step.tb_frame.f_code)
        step = step.tb_next
    return found


async def test_a_bug_of_ours_is_no_verdict_and_reaches_everyone() -> None:
    flight, fetch = SingleFlight[str, str](), Fetch(KeyError("a bug"))
    tasks = await begin(flight.run("k", fetch), flight.run("k", fetch))
    fetch.go.set()
    assert [type(its) for its in await asyncio.gather(*tasks, return_exceptions=True)] == [KeyError] * 2
    assert len(flight) == 0


async def test_closing_ends_what_is_under_way_and_begins_nothing_more() -> None:
    flight, fetch, other = SingleFlight[str, str](), Fetch(), Fetch()
    tasks = await begin(flight.run("a", fetch), flight.run("a", fetch), flight.run("b", other))
    await flight.close()
    assert (fetch.ended, other.ended) == (1, 1), "close waits until they have ended"
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for its in (*found, *await asyncio.gather(flight.run("a", fetch), return_exceptions=True)):
        assert isinstance(its, ProviderError), "a waiter is not cancelled, for it is not its own doing"
        assert its.reason is Reason.PROVIDER_UNAVAILABLE
    assert (fetch.begun, len(flight)) == (1, 0)
    await flight.close()


REQUEST = contextvars.ContextVar("REQUEST", default="nobody's")


async def test_a_flight_carries_nothing_of_the_request_that_began_it() -> None:
    flight = SingleFlight[str, str]()

    async def fetch() -> str:
        found = REQUEST.get()
        REQUEST.set("the fetch's")
        return found

    REQUEST.set("alice's")
    assert await flight.run("k", fetch) == "nobody's"
    assert REQUEST.get() == "alice's"


async def test_many_keys_come_and_go_and_none_is_left_behind() -> None:
    flight = SingleFlight[int, int]()

    def fetch_of(number: int) -> Callable[[], Coroutine[Any, Any, int]]:
        async def fetch() -> int:
            await asyncio.sleep(0)
            if number % 3 == 0:
                raise Rejected(Reason.TOKEN_INACTIVE)
            return number

        return fetch

    found = await asyncio.gather(*(flight.run(n % 10, fetch_of(n % 10)) for n in range(200)), return_exceptions=True)
    assert [its for its in found[:10] if isinstance(its, int)] == [1, 2, 4, 5, 7, 8]
    assert len(flight) == 0
