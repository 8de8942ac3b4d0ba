"""What a check costs, side by side in one run: CPU time of each server's process tree on one pinned core.

Rounds go from server to server and begin anew, so that a noisy machine is noisy for all; read the ratios, not the
microseconds. The caller has the other cores. See README.md for how to read the tables and how to add a peer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from fleet import Fleet, make_fleet
from load import Body, Load, Result, get_headers, is_200, play
from long import TOKENS as KEPT
from long import Place, measure_introspection, measure_memory, measure_ready, measure_reload, soak
from proxy import Pair, browser_headers, make_pairs
from report import Report, Row
from rich.console import Console
from servers import Server
from targets import (
    HEIMDALL,
    judge_cores,
    judge_introspection,
    judge_memory,
    judge_proxy,
    judge_ready,
    judge_reload,
    judge_rows,
    judge_soak,
)
from world import CHECK, HOST, LARGE, SMALL, Size, World, ZipfTokens, cycle, is_allow, path_of, repeat, wrap

SERVER_CORE: Final = 0
TOKENS: Final = 10_000
RATE: Final = 1_000.0
WARM_RATE: Final = 1_000.0
FRESH_RATE: Final = 400.0
FEW: Final = 10
MANY: Final = 10_000


class Bench:
    """One run: the world, the fleet of servers, and what was measured."""

    def __init__(self, world: World, report: Report, options: argparse.Namespace, console: Console) -> None:
        self.world = world
        self.report = report
        self.rounds: int = options.rounds
        self.seconds: float = options.seconds
        self.tokens: int = options.tokens
        self.console = console

    async def measure(
        self, what: str, servers: Sequence[Server | Pair], load: Load, bodies: Callable[[str], Callable[[], Body]],
        *, good: Callable[[bytes], bool] = is_allow, path: str = CHECK,
    ) -> None:  # fmt: skip
        """Play rounds against each server in turn, and note what each call cost."""
        rows = {its.name: Row(what=what, server=its.name, load=str(load)) for its in servers}
        given = {its.name: bodies(its.name) for its in servers}
        for number in range(self.rounds):
            for its in servers:
                self.console.print(f"{what}, {load}: {its.name}, round {number + 1} of {self.rounds}", style="dim")
                result, cpu_s = await self.play(its, load, given[its.name], good, path)
                rows[its.name].add(result, cpu_s)
        self.report.rows.extend(rows.values())

    async def play(
        self, server: Server | Pair, load: Load, bodies: Callable[[], Body], good: Callable[[bytes], bool], path: str
    ) -> tuple[Result, float]:
        """Play one round, and return it with the CPU time that the server spent."""
        before = server.cpu_s()
        result = await play(server.port, load, bodies, good, path=path)
        return result, server.cpu_s() - before

    def load(self, kind: str) -> Load:
        """Return one of the three loads."""
        if kind == "closed":
            return Load(connections=8, in_flight=64, seconds=self.seconds)
        return Load(connections=int(kind), rate=RATE, seconds=self.seconds)

    async def zipf(self, fleet: Fleet, size: Size) -> None:
        """Tokens as in service: few are seen often, most seldom, and some are always new."""
        count = self.tokens
        self.console.print(f"signing {count} tokens …", style="dim")
        bodies = [self.world.body(size, self.world.token(size)) for _ in range(count)]
        once = Load(connections=8, rate=WARM_RATE, seconds=count / WARM_RATE)
        for its in fleet.ours:  # the others keep nothing of a token
            await self.play(its, once, cycle(bodies), is_allow, CHECK)

        def source(_: str) -> Callable[[], Body]:
            fresh = [self.world.body(size, self.world.token(size)) for _ in range(max(50, count // 60))]
            return ZipfTokens(list(bodies), fresh)

        for kind in ("closed", "2", "64"):
            await self.measure(f"Zipf over {count:,} tokens, {size.name}", fleet.all, self.load(kind), source)

    async def each_kind(self, fleet: Fleet, size: Size) -> None:
        """Measure each kind of check: a token known, an opaque one known, none at all, and every token new."""
        closed = self.load("closed")
        known = self.world.body(size, self.world.token(size))
        await self.measure(f"one token, {size.name}", fleet.all, closed, lambda _: repeat(known))
        opaque = self.world.body(size, "opaque-token-of-the-bench")
        await self.measure("one opaque token", fleet.ours, closed, lambda _: repeat(opaque))
        nobody = self.world.body(size, "").replace(b"Bearer ", b"Basic_ ")
        await self.measure("deny without a token", fleet.ours, closed, lambda _: repeat(nobody), good=is_deny)
        need = int(self.rounds * self.seconds * FRESH_RATE) + 100
        self.console.print(f"signing {need} tokens …", style="dim")
        bodies = [self.world.body(size, self.world.token(size)) for _ in range(need)]
        load = Load(connections=8, rate=FRESH_RATE, seconds=self.seconds)
        await self.measure("every token new (RS256)", fleet.all, load, lambda _: cycle(bodies))

    async def random_hits(self, fleets: Mapping[int, Fleet]) -> None:
        """Hit rules at random, of few and of very many that share prefixes and captures."""
        token, source = self.world.token(SMALL), random.Random(3)  # noqa: S311 - load, no secret
        for rules, fleet in fleets.items():
            bodies = [self.world.body(SMALL, token, path_of(source.randrange(rules - 1), n)) for n in range(5_000)]
            await self.measure(f"random hits, {rules:,} rules", fleet.ours, self.load("closed"), lambda _: wrap(bodies))  # noqa: B023 - used at once

    async def behind_envoy(self, place: Place, fleet: Fleet) -> list[Row]:
        """Send browsers' requests through an Envoy that asks each server, at half of what heimdall can do."""
        peak = next((median(its.rate) for its in self.report.rows if its.server == HEIMDALL), RATE)
        load = Load(connections=8, rate=peak / 2, seconds=5 * self.seconds)
        headers = browser_headers(self.world.token(SMALL))
        get = get_headers("/api/v1/orders/17", HOST, headers)
        pairs = make_pairs(self.world, place.folder, [*fleet.ours, *fleet.peers], core=place.core)
        before = len(self.report.rows)
        try:
            for its in pairs:
                await its.envoy.until_open()
            await self.measure("GET through Envoy", pairs, load, lambda _: repeat(get), good=is_200, path="")
        finally:
            for its in pairs:
                its.envoy.stop()
        return self.report.rows[before:]

    async def alone(self, place: Place, doors: Sequence[str], *, soak_s: float) -> None:
        """Measure what needs a server to itself."""
        targets = self.report.targets
        for door in doors:
            name = f"authz, {door}"
            self.report.ready_s[name] = await measure_ready(place, door, rules=FEW)
            targets.append(judge_ready(name, self.report.ready_s[name]))
            targets.extend(judge_reload(name, await measure_reload(place, door, rules=MANY, seconds=self.seconds * 3)))
            targets.append(
                judge_introspection(name, await measure_introspection(place, door, seconds=self.seconds * 3))
            )
        if self.rounds > 1:  # not in a quick run: it takes minutes
            self.console.print(f"signing {KEPT:,} tokens …", style="dim")
            bodies = [self.world.body(SMALL, self.world.token(SMALL)) for _ in range(KEPT)]
            for door in doors:
                targets.extend(judge_memory(f"authz, {door}", await measure_memory(place, door, bodies)))
        if soak_s:
            found = await soak(place, doors[-1], seconds=soak_s, tokens=self.tokens)
            targets.append(judge_soak(f"authz, {doors[-1]}", found))


def is_deny(message: bytes) -> bool:
    """Say whether an answer turns the request away."""
    return not is_allow(message)


async def run(options: argparse.Namespace, console: Console, report: Report) -> None:
    """Run everything that was asked for; what was measured stands in the report, also if the rest fails."""
    world = World()
    await world.start()
    with tempfile.TemporaryDirectory(prefix="authz-bench-") as name:
        bench = Bench(world, report, options, console)
        folder = Path(name)
        place = Place(world, folder, SERVER_CORE, console)
        try:
            few = make_fleet(world, folder, core=SERVER_CORE, rules=FEW, console=console)
            many = make_fleet(world, folder, core=SERVER_CORE, rules=MANY, console=console, peers=False)
            async with few as fleet:
                report.servers = fleet.describe()
                doors = fleet.doors
                for size in (SMALL, LARGE):
                    await bench.zipf(fleet, size)
                await bench.each_kind(fleet, SMALL)
                async with many as other:
                    await bench.random_hits({FEW: fleet, MANY: other})
                report.memory = {its.name: its.pss_bytes() for its in fleet.all}
                through = await bench.behind_envoy(place, fleet)
            report.targets += [*judge_rows(report), *judge_proxy(through), judge_cores()]
            await bench.alone(place, doors, soak_s=options.soak)
        finally:
            await world.stop()


def main() -> None:
    """Measure, print, and write the report where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--quick", action="store_true", help="one short round, a thousand tokens")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of the last door under everything at once")
    parser.add_argument("--write", type=Path, help="folder to write the table and the plot to")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.tokens = 1, 1.0, 1_000
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores - {SERVER_CORE})
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = Report()
    try:
        asyncio.run(run(options, console, report))
    finally:
        report.show(console)
        if options.write is not None:
            report.write(options.write)
            console.print(f"written to {options.write}")


if __name__ == "__main__":
    main()
