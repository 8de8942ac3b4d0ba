"""A running service and a gRPC client of it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Protocol

import grpc

from authz.app import App
from authz.model import ConfigError
from authz.observe import Observer, configure_logging
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from authz.servers.engine import find_engine
from tests.parts import lacking

CHECK = "/envoy.service.auth.v3.Authorization/Check"
RULES = """
version: 1
rules:
  - {name: public, hosts: [a.example], paths: ["/**"], allow: anyone}
"""
PROVIDED = """
version: 1
providers:
  shop:
    issuer: https://sso.example.com
    audiences: [a]
    keys: {{jwks_url: "{url}/jwks"}}
    introspection: {{client_id: c, client_secret: "${{env:S}}", endpoint: "{url}/introspect"}}
rules:
  - {{name: shop, hosts: [a.example], paths: ["/**"], tokens_from: shop, require: any_token}}
"""
LOOPBACK = 'grpc: [{address: "127.0.0.1:0"}]\n  http: 127.0.0.1:0'


DOORS = ("grpcio", "fast")


class Service(Protocol):
    """What is the same behind every door: where it listens, what it told, and how it is ended."""

    lines: list[dict[str, Any]]
    log: io.StringIO
    rules: Path

    @property
    def address(self) -> str: ...
    @property
    def addresses(self) -> list[str]: ...
    @property
    def http(self) -> str: ...
    def drain(self) -> Awaitable[object]: ...


class Running:
    """A started application with what it told."""

    def __init__(self, app: App, lines: list[dict[str, Any]], log: io.StringIO, rules: Path) -> None:
        self.app = app
        self.lines = lines
        self.log = log
        self.rules = rules

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.grpc.ports[0]}"

    @property
    def addresses(self) -> list[str]:
        hosts = [its.address.rpartition(":")[0] for its in self.app._configuration.server.grpc]
        return [f"{host}:{port}" for host, port in zip(hosts, self.app.grpc.ports, strict=True)]

    @property
    def http(self) -> str:
        assert self.app.http is not None
        return f"http://127.0.0.1:{self.app.http.port}"

    def drain(self) -> Awaitable[object]:
        return asyncio.create_task(self.app.grpc.drain())


class RunningProcess:
    """`authz serve` with what it told."""

    def __init__(self, rules: Path) -> None:
        self.rules = rules
        self.lines: list[dict[str, Any]] = []
        self.log = io.StringIO()
        self.facts: dict[str, Any] = {}
        self.process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        found: list[str] = self.facts["addresses"]
        return found

    @property
    def http(self) -> str:
        return f"http://{self.facts['http']}"

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.getvalue().splitlines() if line.startswith("{")]
        return [its for its in found if its.get("event") == name]

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def drain(self) -> Awaitable[object]:
        self.send(signal.SIGTERM)
        return self.wait()

    async def start(self, environ: dict[str, str], *options: str) -> None:
        command = [sys.executable, "-m", "authz", "serve", str(self.rules), *options]
        self.process = process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environ
        )
        self._readers = [asyncio.create_task(its) for its in (self._read_lines(), self._read_log())]
        async with asyncio.timeout(30):
            while not (serving := self.events("serving")):
                assert process.returncode is None, self.log.getvalue()
                await asyncio.sleep(0.02)
        self.facts = serving[0]

    async def wait(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(40):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.wait()

    async def _read_lines(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))

    async def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.write(line.decode())


async def told(service: Service, count: int = 1) -> list[dict[str, Any]]:
    """Return the decision lines, of which there are so many at least; those of a process take a moment."""
    async with asyncio.timeout(5):
        while len(service.lines) < count:
            await asyncio.sleep(0.01)
    return service.lines


def require_fast() -> None:
    """Skip the test where the fast door cannot open."""
    try:
        find_engine({})
    except ConfigError as error:
        lacking("the fast door", str(error))


@contextlib.asynccontextmanager
async def serving(
    door: str, folder: Path, rules: str = RULES, *, server: str = "", environ: dict[str, str] | None = None
) -> AsyncIterator[Service]:
    """Serve behind a door; the fast one in a process of its own."""
    if door == "grpcio":
        async with running(folder, rules, server=server, environ=environ) as service:
            yield service
        return
    async with running_workers(door, folder, rules, server=server, environ=environ) as process:
        yield process


@contextlib.asynccontextmanager
async def running_workers(
    door: str,
    folder: Path,
    rules: str = RULES,
    *,
    server: str = "",
    environ: dict[str, str] | None = None,
    workers: int = 1,
) -> AsyncIterator[RunningProcess]:
    if door == "fast":
        require_fast()
    file = folder / "rules.yaml"
    file.write_text(f"{rules}\nserver:\n  {render_server(door, server, workers)}\n")
    service = RunningProcess(file)
    try:
        await service.start(environ or {})
        yield service
    finally:
        await service.stop()


def render_server(door: str, server: str, workers: int = 1) -> str:
    """Return the lines of the part `server`."""
    lines = [] if server.startswith("grpc:") else [LOOPBACK]
    lines += [server, f"door: {door}", f"workers: {workers}"]
    lines += [] if "drain_s" in server else ["drain_s: 0"]
    return "\n  ".join(lines)


@contextlib.asynccontextmanager
async def running(
    folder: Path, rules: str = RULES, *, server: str = "", environ: dict[str, str] | None = None
) -> AsyncIterator[Running]:
    file = folder / "rules.yaml"
    file.write_text(f"{rules}\nserver:\n  {LOOPBACK if not server.startswith('grpc') else ''}\n  {server}\n")
    lines: list[dict[str, Any]] = []
    log = io.StringIO()
    configure_logging(stream=log, colour=False)
    observer = Observer(stream=io.StringIO(), sink=lambda line: lines.append(json.loads(line)))
    app = App(file, environ=environ or {}, observer=observer)
    try:
        await app.start()
        yield Running(app, lines, log, file)
    finally:
        await app.stop(at_once=True)


def check_request(path: str = "/x", host: str = "a.example", **headers: str) -> CheckRequest:
    found = CheckRequest()
    http = found.attributes.request.http
    http.method, http.host, http.path = "GET", host, path
    for name, value in headers.items():
        http.headers[name.replace("_", "-")] = value
    return found


async def ask(
    channel: grpc.aio.Channel,
    message: CheckRequest | None = None,
    *,
    timeout_s: float = 10,
    metadata: tuple[tuple[str, str], ...] = (),
) -> CheckResponse:
    call = channel.unary_unary(
        CHECK, request_serializer=CheckRequest.SerializeToString, response_deserializer=CheckResponse.FromString
    )
    asked = check_request() if message is None else message
    response: CheckResponse = await call(asked, timeout=timeout_s, metadata=metadata)
    return response
