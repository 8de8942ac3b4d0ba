"""What a check costs: CPU time, rate and p99 on one pinned core, beside a server that does nothing, in one run.

The server under test has core 0 for itself, the caller the rest. Rounds alternate between the servers, so that a noisy
machine is noisy for both; read the ratios, not the microseconds.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles

import grpc
from rich.console import Console
from rich.table import Table

from authz.demo.idp import DemoProvider
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from authz.servers.http import HttpServer

SERVER_CORE = 0
CALLERS = 32
ROUND_S = 1.0
ROUNDS = 3
FRESH = 6_000
HERE = Path(__file__).parent
CHECK = "/envoy.service.auth.v3.Authorization/Check"
RULES = """
version: 1
providers:
  demo:
    preset: keycloak
    issuer: ${env:ISSUER}
    audiences: [orders-api]
    introspection: {client_id: orders-api, client_secret: "${env:SECRET}", cache: 1h}
identity_headers: {x-user: "{sub}", x-roles: "{roles}"}
rules:
"""


@dataclass(slots=True)
class Target:
    """One server process, with what was measured of it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    latency_us: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """Return the CPU time spent so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        os.sched_setaffinity(0, cores - {SERVER_CORE})
    asyncio.run(measure(Console(width=None if sys.stdout.isatty() else 110)))


async def measure(console: Console) -> None:
    """Run every scenario with 10 and with 10,000 rules."""
    provider = DemoProvider()
    idp = HttpServer(provider.app, "127.0.0.1:0")
    await idp.start()
    provider.serve_at(idp.port)
    table = Table("check", "rules", "cpu µs", "of nothing", "checks/s", "p99 µs", title="one core, one run")
    for rules in (10, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            targets = start(provider, rules, Path(folder))
            try:
                for its in targets:
                    await until_answered(its.port)
                for name, requests in scenarios(provider, rules):
                    console.print(f"measuring: {name}, {rules} rules …", style="dim")
                    nothing, authz = targets
                    for its in targets:
                        its.cpu_us, its.rate, its.latency_us = [], [], []
                    await play(authz, requests, 0.3)
                    authz.cpu_us, authz.rate, authz.latency_us = [], [], []
                    for _ in range(ROUNDS):
                        for its in (nothing, authz):
                            await play(its, requests, ROUND_S)
                    if rules == 10 and name == "cached jwt":
                        add(table, "nothing", "", nothing, nothing)
                    add(table, name, f"{rules:,}", authz, nothing)
            finally:
                for its in targets:
                    its.process.kill()
                    its.process.wait()
    await idp.stop()
    console.print(table)


def scenarios(provider: DemoProvider, rules: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield each kind of check with what makes its requests."""
    path = f"/p{rules // 2}/x"
    alice = provider.claims("alice", lifetime_s=3_600)
    jwt, opaque = request(path, provider.mint(alice)), request(path, provider.mint_opaque(alice))
    yield "cached jwt", lambda: jwt
    yield "cached opaque", lambda: opaque
    denied = request(path, "")
    yield "deny", lambda: denied
    fresh = [request(path, provider.mint(alice | {"jti": str(n)})) for n in range(FRESH)]
    numbers = count()
    yield "fresh jwt", lambda: fresh[next(numbers) % FRESH]


def request(path: str, token: str) -> bytes:
    """Return a serialized CheckRequest such as Envoy sends for a browser's call."""
    message = CheckRequest()
    http = message.attributes.request.http
    http.id, http.method, http.host, http.path = "1", "GET", "shop.localhost", path
    http.scheme, http.protocol, http.size = "http", "HTTP/1.1", -1
    headers = {
        ":method": "GET", ":path": path, ":authority": "shop.localhost", "accept": "*/*", "accept-encoding": "gzip, br",
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "x-forwarded-proto": "http",
        "x-request-id": "5b1a3c5e-8f5e-4c2e-9d4a-3f1a2b3c4d5e", "x-forwarded-for": "192.0.2.7",
    }  # fmt: skip
    if token:
        headers["authorization"] = f"Bearer {token}"
    for name, value in headers.items():
        http.header_map.headers.add(key=name, raw_value=value.encode())
    message.attributes.source.address.socket_address.address = "192.0.2.7"
    return message.SerializeToString()


def start(provider: DemoProvider, rules: int, folder: Path) -> tuple[Target, Target]:
    """Start both servers on the pinned core."""
    ports = free_port(), free_port()
    file = folder / "rules.yaml"
    lines = "".join(
        f'  - {{name: r{n}, hosts: [shop.localhost], paths: ["/p{n}/**"], tokens_from: demo, '
        "require: {roles: {any: [orders-reader, orders-admin]}}}\n"
        for n in range(rules)
    )
    server = f'server: {{grpc: [{{address: "127.0.0.1:{ports[1]}"}}], http: null, log_decisions: denies}}\n'
    file.write_text(RULES + lines + server)
    environment = os.environ | {"ISSUER": provider.issuer, "SECRET": provider.client_secret}
    commands = (
        [sys.executable, str(HERE / "nothing.py"), str(ports[0])],
        [sys.executable, "-m", "authz", "serve", str(file)],
    )
    found = []
    for name, port, command in zip(("nothing", "authz"), ports, commands, strict=True):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HERE.parent
        )
        os.sched_setaffinity(process.pid, {SERVER_CORE})
        found.append(Target(name, port, process))
    return found[0], found[1]


async def until_answered(port: int) -> None:
    """Wait until a server answers."""
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary(CHECK, None, None)(request("/", ""), wait_for_ready=True)


async def play(target: Target, requests: Callable[[], bytes], seconds: float) -> None:
    """Ask as fast as CALLERS callers can, and note what it took."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        call = channel.unary_unary(CHECK, None, None)
        latencies: list[float] = []
        cpu_s, began_s = target.cpu_s(), time.perf_counter()

        async def ask() -> None:
            while time.perf_counter() - began_s < seconds:
                sent_s = time.perf_counter()
                await call(requests())
                latencies.append((time.perf_counter() - sent_s) * 1e6)

        await asyncio.gather(*(ask() for _ in range(CALLERS)))
        took_s = time.perf_counter() - began_s
    target.cpu_us.append((target.cpu_s() - cpu_s) * 1e6 / len(latencies))
    target.rate.append(len(latencies) / took_s)
    target.latency_us.extend(latencies)


def add(table: Table, name: str, rules: str, target: Target, nothing: Target) -> None:
    """Add one row: the best round of each, for noise only ever adds."""
    cpu_us = min(target.cpu_us)
    p99 = quantiles(target.latency_us, n=100)[98]
    ratio = cpu_us / min(nothing.cpu_us)
    table.add_row(name, rules, f"{cpu_us:.0f}", f"{ratio:.2f}", f"{max(target.rate):,.0f}", f"{p99:,.0f}")


def free_port() -> int:
    """Return a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
