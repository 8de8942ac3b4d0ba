"""What takes longer than a round: very many tokens, reloads under load, a slow provider, and ten minutes of it all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from fleet import start_ours
from load import Body, Load, Result, play
from rich.console import Console
from servers import Server
from world import CHECK, SMALL, World, ZipfTokens, is_allow, repeat

TOKENS: Final = 100_000
FEED_RATE: Final = 1_500.0
RELOAD_RATE: Final = 500.0
OPAQUE_RATE: Final = 1_000.0
PROVIDER_S: Final = 0.05
SHARE_OF_PEAK: Final = 0.7
BAD_SHARE: Final = 0.01
ROTATE_S: Final = 60.0
RELOAD_S: Final = 20.0


@dataclass(slots=True)
class Place:
    """Where these measurements run."""

    world: World
    folder: Path
    core: int
    console: Console

    def say(self, text: str) -> None:
        """Tell what is going on."""
        self.console.print(text, style="dim")


async def figure(server: Server, name: str) -> float:
    """Read one of the service's own figures, summed over its labels."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{server.http_port}/metrics", timeout=30)).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


async def measure_ready(place: Place, door: str, *, rules: int) -> float:
    """Return how long it takes from the start of the process, alone on its core, until it says that it is ready."""
    place.say(f"start to ready with {rules:,} rules, {door}")
    server = start_ours(place.world, place.folder, door, place.core, rules, name="ready", http=True)
    try:
        async with asyncio.timeout(120), httpx.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{server.http_port}/readyz")).is_success:
                        return server.age_s()
                await asyncio.sleep(0.01)
    finally:
        server.stop()


@dataclass(slots=True)
class Reloads:
    """How long 10,000 rules take to be in force, and the p99 of checks, usual and meanwhile, in microseconds."""

    seconds: float
    usual_p99_us: float
    p99_us: float


async def measure_reload(place: Place, door: str, *, rules: int, seconds: float) -> Reloads:
    """Reload very many rules with nothing to do, and then under load."""
    place.say(f"reload of {rules:,} rules, {door}")
    server = start_ours(place.world, place.folder, door, place.core, rules, name="reload", http=True)
    try:
        await _until(server, 1)
        took_s = await _reload(server, 2)
        body = place.world.body(SMALL, place.world.token(SMALL))
        load = Load(connections=8, rate=RELOAD_RATE, seconds=seconds)
        await play(server.port, load, repeat(body), is_allow, path=CHECK)
        usual = await play(server.port, load, repeat(body), is_allow, path=CHECK)
        during = Load(connections=8, rate=RELOAD_RATE, seconds=max(1.0, took_s))
        reload = asyncio.create_task(_reload(server, 3))
        result = await play(server.port, during, repeat(body), is_allow, path=CHECK)
        await reload
    finally:
        server.stop()
    return Reloads(took_s, usual.percentile_us(0.99), result.percentile_us(0.99))


async def _reload(server: Server, generation: int) -> float:
    began_s = time.monotonic()
    server.signal(signal.SIGHUP)
    await _until(server, generation)
    return time.monotonic() - began_s


async def _until(server: Server, generation: int) -> None:
    await server.until_open()
    async with asyncio.timeout(120):
        while await figure(server, "authz_policy_generation") < generation:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def measure_introspection(place: Place, door: str, *, seconds: float) -> Result:
    """Ask about opaque tokens, each a new one, at a provider that takes its time."""
    place.say(f"{OPAQUE_RATE:,.0f} new opaque tokens a second, {PROVIDER_S * 1e3:.0f} ms at the provider, {door}")
    server = start_ours(place.world, place.folder, door, place.core, 10, name="opaque", http=True)
    place.world.delay_s = PROVIDER_S
    try:
        await _until(server, 1)

        def bodies() -> Body:
            return place.world.body(SMALL, secrets.token_urlsafe(32))

        load = Load(connections=8, rate=OPAQUE_RATE, seconds=seconds)
        await play(server.port, Load(connections=8, rate=200, seconds=1), bodies, is_allow, path=CHECK)
        return await play(server.port, load, bodies, is_allow, path=CHECK)
    finally:
        place.world.delay_s = 0.0
        server.stop()


@dataclass(slots=True)
class Memory:
    """The whole memory before and after very many tokens, how many are kept by all workers, and at what rate."""

    empty_bytes: int
    full_bytes: int
    entries: int
    workers: int
    rate_empty: float
    rate_full: float


async def measure_memory(place: Place, door: str, bodies: list[Body]) -> Memory:
    """Have as many workers as are started by themselves prove very many tokens."""
    tokens = len(bodies)
    server = start_ours(place.world, place.folder, door, None, 10, name="memory", http=True)
    try:
        await _until(server, 1)
        closed = Load(connections=8, in_flight=64, seconds=3)
        few = await play(server.port, closed, repeat(bodies[0]), is_allow, path=CHECK)
        empty = server.pss_bytes()
        entries = 0.0
        # A connection leads to one worker, so all tokens go over several of them until every worker has had them.
        for number in range(3):
            place.say(f"{tokens:,} tokens to {door}, pass {number + 1}")
            order = iter(bodies)
            load = Load(connections=4, rate=FEED_RATE, seconds=tokens / FEED_RATE)
            # What is refused for want of time or place, as new tokens come in a flood, comes again in the next pass.
            await play(server.port, load, lambda order=order: next(order), is_allow, path=CHECK)  # type: ignore[misc]
            before, entries = entries, await figure(server, "authz_cache_entries")
            if entries <= before * 1.02:
                break
        order = iter(bodies * 2)
        full = await play(server.port, closed, lambda: next(order), is_allow, path=CHECK)
        workers = max(1, int(await figure(server, "authz_workers_ready")))
        return Memory(
            empty, server.pss_bytes(), int(entries), workers, few.calls / few.seconds, full.calls / full.seconds
        )
    finally:
        server.stop()


@dataclass(slots=True)
class Soak:
    """What came of a long run: answers, wrong ones, calls without any, and the memory in between and at the end."""

    seconds: float
    rate: float
    calls: int
    wrong: int
    lost: int
    reloads: int
    rotations: int
    early_bytes: int
    late_bytes: int


class Rotated(ZipfTokens):
    """Tokens by a Zipf law whose new ones are signed by the newest key; those of a key that leaves go before it."""

    def __init__(self, world: World, bodies: list[Body]) -> None:
        super().__init__(bodies, [])
        self._world = world
        self._signed: list[str] = []
        self._places: dict[int, str] = {}
        self._random = random.Random(2)  # noqa: S311 - load, no secret

    def __call__(self) -> Body:
        """Return the next call."""
        now_s = time.perf_counter()
        if now_s >= self._next_s:
            self._renew(self._random.randrange(len(self.bodies)))
            self._next_s = now_s + self._every_s
        return super().__call__()

    def rotate(self) -> None:
        """Publish another key, which signs from now on; of the ones before it only the last and the first stay."""
        self._world.rotate()
        self._signed.append(self._world.kid)
        if len(self._signed) > 2:
            leaving = self._signed.pop(0)
            for at in [at for at, kid in self._places.items() if kid == leaving]:
                self._renew(at)
            self._world.forget(leaving)

    def _renew(self, at: int) -> None:
        self.bodies[at] = self._world.body(SMALL, self._world.token(SMALL))
        self._places[at] = self._world.kid


async def soak(place: Place, door: str, *, seconds: float, tokens: int) -> Soak:
    """Run at 70 % of the peak with bad requests among the good, while keys are rotated and rules reloaded."""
    world = place.world
    place.say(f"signing {tokens:,} tokens …")
    bodies = [world.body(SMALL, world.token(SMALL)) for _ in range(tokens)]
    bad = world.body(SMALL, world.token(SMALL, aud=["other"]))
    small = "  evidence_cache_bytes: 8388608\n"
    server = start_ours(world, place.folder, door, place.core, 10, name="soak", http=True, extra=small)
    source = Rotated(world, bodies)
    done = asyncio.Event()
    counts = {"reloads": 0, "rotations": 0}

    async def every(pause_s: float, name: str, do: Callable[[], Awaitable[None]]) -> None:
        while not done.is_set():
            try:
                async with asyncio.timeout(pause_s):
                    await done.wait()
            except TimeoutError:
                await do()
                counts[name] += 1

    async def reload() -> None:
        server.signal(signal.SIGHUP)

    async def rotate() -> None:
        source.rotate()

    try:
        await _until(server, 1)
        await play(server.port, Load(connections=8, rate=1_000, seconds=tokens / 1_000), source, is_allow, path=CHECK)
        peak = await play(server.port, Load(connections=8, in_flight=64, seconds=3), source, is_allow, path=CHECK)
        rate = SHARE_OF_PEAK * peak.calls / peak.seconds
        helpers = [asyncio.create_task(every(RELOAD_S, "reloads", reload))]
        helpers.append(asyncio.create_task(every(ROTATE_S, "rotations", rotate)))
        began_s, calls, wrong, lost, early = time.monotonic(), 0, 0, 0, 0
        while (passed_s := time.monotonic() - began_s) < seconds:
            if not early and passed_s > seconds * 0.4:
                early = server.pss_bytes()
            part_s = min(10.0, seconds - passed_s)
            place.say(f"soak of {door}: {passed_s:.0f} of {seconds:.0f} s, {calls:,} calls, {wrong} wrong")
            good_load = Load(connections=8, rate=rate, seconds=part_s)
            bad_load = Load(connections=2, rate=max(1.0, rate * BAD_SHARE), seconds=part_s)
            results = await asyncio.gather(
                play(server.port, good_load, source, is_allow, path=CHECK),
                play(server.port, bad_load, repeat(bad), lambda message: not is_allow(message), path=CHECK),
            )
            calls += sum(its.calls for its in results)
            wrong += sum(its.bad for its in results)
            lost += sum(its.lost for its in results)
        done.set()
        await asyncio.gather(*helpers)
        late = server.pss_bytes()
        return Soak(seconds, rate, calls, wrong, lost, counts["reloads"], counts["rotations"], early, late)
    finally:
        server.stop()
