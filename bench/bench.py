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
from statistics import median
from typing import Final

from fleet import Fleet, make_fleet
from load import Body, Load, Result, play
from report import Report, Row
from rich.console import Console
from servers import Server
from world import CHECK, LARGE, SMALL, Size, World, ZipfTokens, cycle, is_allow, repeat

SERVER_CORE: Final = 0
TOKENS: Final = 10_000
CLOSED: Final = Load(connections=8, in_flight=64, seconds=2.0)
RATE: Final = 1_000.0
WARM_S: Final = 0.5


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

    async def one_token(self, fleet: Fleet, size: Size) -> None:
        """One token again and again: the shortest way through each server."""
        body = self.world.body(size, self.world.token(size))
        await self.measure(f"one token, {size.name}", fleet.all, self.load("closed"), lambda _: repeat(body))

    async def fresh(self, fleet: Fleet, size: Size) -> None:
        """Every token new: a signature is verified for each check."""
        need = int(self.rounds * self.seconds * 12_000 * 0.4)
        self.console.print(f"signing {need} tokens …", style="dim")
        bodies = [self.world.body(size, self.world.token(size)) for _ in range(need)]
        load = Load(connections=2, rate=need / self.rounds / self.seconds * 0.35, seconds=self.seconds)
        servers = [its for its in fleet.all if its not in fleet.nothing]
        await self.measure(f"every token new (RS256), {size.name}", servers, load, lambda _: cycle(list(bodies)))

    async def deny(self, fleet: Fleet) -> None:
        """No token: refused without a look at anything else."""
        body = self.world.body(SMALL, "").replace(b"Bearer ", b"Basic_ ")
        await self.measure(
            "deny without a token", fleet.ours, self.load("closed"), lambda _: repeat(body), good=is_deny
        )

    async def opaque(self, fleet: Fleet) -> None:
        """Show a token that its provider was asked about before."""
        body = self.world.body(SMALL, "opaque-token-of-the-bench")
        await self.measure("opaque token proved before", fleet.ours, self.load("closed"), lambda _: repeat(body))


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
            async with make_fleet(world, Path(name), core=SERVER_CORE, rules=10, console=console) as fleet:
                bench.report.servers = fleet.describe()
                for size in (SMALL, LARGE):
                    await bench.zipf(fleet, size)
                await bench.one_token(fleet, SMALL)
                await bench.fresh(fleet, SMALL)
                await bench.deny(fleet)
                await bench.opaque(fleet)
                bench.report.memory = {its.name: its.pss_bytes() for its in fleet.all}
                bench.report.ready_s = {its.name: its.ready_s for its in fleet.ours}
            async with make_fleet(
                world, Path(name), core=SERVER_CORE, rules=10_000, console=console, peers=False
            ) as many:
                bench.report.ready_many_s = {its.name: its.ready_s for its in many.ours}
                body = world.body(SMALL, world.token(SMALL))
                what = f"one token, {SMALL.name}, 10,000 rules"
                await bench.measure(what, many.all, bench.load("closed"), lambda _: repeat(body))
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


def middle(values: Sequence[float]) -> float:
    """Return the median, 0 of nothing."""
    return median(values) if values else 0.0


if __name__ == "__main__":
    main()
