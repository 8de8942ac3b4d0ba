"""What a check costs, side by side in one run: CPU time of each server's process tree on one pinned core.

Rounds go from server to server and begin anew, so that a noisy machine is noisy for all; read the ratios, not the
microseconds. The caller has the other cores. See README.md for how to read the tables and how to add a peer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fleet import Fleet, make_fleet
from load import Body, Load, Result, play
from report import Report, Row
from rich.console import Console
from servers import Server
from world import CHECK, LARGE, SMALL, Size, World, ZipfTokens, cycle, is_allow, repeat

SERVER_CORE: Final = 0
TOKENS: Final = 10_000
RATE: Final = 1_000.0
FRESH_RATE: Final = 400.0
FEW: Final = 10
MANY: Final = 10_000


class Bench:
    """One run: the world, the fleet of servers, and what was measured."""

    def __init__(self, world: World, *, rounds: int, seconds: float, tokens: int, console: Console) -> None:
        self.world = world
        self.rounds = rounds
        self.seconds = seconds
        self.tokens = tokens
        self.console = console
        self.report = Report()

    async def measure(
        self, what: str, servers: Sequence[Server], load: Load, bodies: Callable[[Server], Callable[[], Body]],
        *, good: Callable[[bytes], bool] = is_allow,
    ) -> None:  # fmt: skip
        """Play rounds against each server in turn, and note what each call cost."""
        rows = {its.name: Row(what=what, server=its.name, load=str(load)) for its in servers}
        given = {its.name: bodies(its) for its in servers}
        for number in range(self.rounds):
            for its in servers:
                self.console.print(f"{what}, {load}: {its.name}, round {number + 1} of {self.rounds}", style="dim")
                result, cpu_s = await self.play(its, load, given[its.name], good)
                rows[its.name].add(result, cpu_s)
        self.report.rows.extend(rows.values())

    async def play(
        self, server: Server, load: Load, bodies: Callable[[], Body], good: Callable[[bytes], bool]
    ) -> tuple[Result, float]:
        """Play one round, and return it with the CPU time that the server spent."""
        before = server.cpu_s()
        result = await play(server.port, load, bodies, good, path=CHECK)
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
        once = Load(connections=1, rate=2_000, seconds=count / 2_000)
        for its in fleet.all:
            await self.play(its, once, cycle(bodies), is_allow)

        def source(server: Server) -> Callable[[], Body]:
            del server
            fresh = [self.world.body(size, self.world.token(size)) for _ in range(max(50, count // 60))]
            return ZipfTokens(list(bodies), fresh)

        for kind in ("closed", "2", "64"):
            await self.measure(f"Zipf over {count:,} tokens, {size.name}", fleet.all, self.load(kind), source)

    async def each_kind(self, fleet: Fleet, size: Size, rules: int) -> None:
        """Measure each kind of check: a token known, an opaque one known, none at all, and every token new."""
        many = f", {rules:,} rules" if rules > FEW else ""
        closed = self.load("closed")
        known = self.world.body(size, self.world.token(size))
        await self.measure(f"one token, {size.name}{many}", fleet.all, closed, lambda _: repeat(known))
        opaque = self.world.body(size, "opaque-token-of-the-bench")
        await self.measure(f"one opaque token{many}", fleet.ours, closed, lambda _: repeat(opaque))
        nobody = self.world.body(size, "").replace(b"Bearer ", b"Basic_ ")
        await self.measure(f"deny without a token{many}", fleet.ours, closed, lambda _: repeat(nobody), good=is_deny)
        need = int(self.rounds * self.seconds * FRESH_RATE) + 100
        self.console.print(f"signing {need} tokens …", style="dim")
        bodies = [self.world.body(size, self.world.token(size)) for _ in range(need)]
        load = Load(connections=8, rate=FRESH_RATE, seconds=self.seconds)
        await self.measure(f"every token new (RS256){many}", fleet.all, load, lambda _: cycle(bodies))


def is_deny(message: bytes) -> bool:
    """Say whether an answer turns the request away."""
    return not is_allow(message)


async def run(options: argparse.Namespace, console: Console) -> Report:
    """Run everything that was asked for."""
    world = World()
    await world.start()
    with tempfile.TemporaryDirectory(prefix="authz-bench-") as name:
        bench = Bench(world, rounds=options.rounds, seconds=options.seconds, tokens=options.tokens, console=console)
        try:
            async with make_fleet(world, Path(name), core=SERVER_CORE, rules=FEW, console=console) as fleet:
                bench.report.servers = fleet.describe()
                for size in (SMALL, LARGE):
                    await bench.zipf(fleet, size)
                await bench.each_kind(fleet, SMALL, FEW)
                bench.report.memory = {its.name: its.pss_bytes() for its in fleet.all}
                bench.report.ready_s = {its.name: its.ready_s for its in fleet.ours}
            many = make_fleet(world, Path(name), core=SERVER_CORE, rules=MANY, console=console, peers=False)
            async with many as fleet:
                bench.report.ready_many_s = {its.name: its.ready_s for its in fleet.ours}
                await bench.each_kind(fleet, SMALL, MANY)
        finally:
            await world.stop()
    return bench.report


def main() -> None:
    """Measure, print, and write the report where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one round")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--quick", action="store_true", help="one short round, a thousand tokens")
    parser.add_argument("--write", type=Path, help="folder to write the table and the plot to")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.tokens = 1, 1.0, 1_000
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores - {SERVER_CORE})
    console = Console(width=None if sys.stdout.isatty() else 140)
    report = asyncio.run(run(options, console))
    report.show(console)
    if options.write is not None:
        report.write(options.write)
        console.print(f"written to {options.write}")


if __name__ == "__main__":
    main()
