"""A real Envoy in front of the real service, with an upstream and an identity provider, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from authz.app import App
from authz.demo.idp import DemoProvider
from authz.demo.proxy import EnvoyProcess
from authz.demo.web import ECHO
from authz.envoy_config import render_envoy_config
from authz.observe import Observer, configure_logging
from authz.servers.http import HttpServer
from tests.parts import free_port
from tests.servers.service import RunningProcess
from tests.threads import running

LOOPBACK = "127.0.0.1:0"
START_S = 60.0


class Stack:
    """Everything started. ``lines`` are the decision lines, ``ports`` Envoy's listeners by name.

    ``http`` asks the service. ``open`` does too, with ``failure_mode_allow``. ``down`` and ``down_open`` ask a port
    where nobody answers. ``tcp`` is a network filter.
    """

    def __init__(self) -> None:
        self.provider = DemoProvider()
        self.lines: list[dict[str, Any]] = []
        self.ports: dict[str, int] = {}
        self.authz_port = 0
        self.http_port = 0
        self.access_log = Path()

    @property
    def last(self) -> dict[str, Any]:
        """The last check's line. Those of another process take a moment: there is one for each that was counted."""
        metrics = httpx.get(f"http://127.0.0.1:{self.http_port}/metrics", trust_env=False).text
        checks = sum(
            float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("authz_decisions_total{")
        )
        until = time.monotonic() + 5
        while len(self.lines) < checks and time.monotonic() < until:
            time.sleep(0.005)
        assert len(self.lines) == checks
        return self.lines[-1]


@contextlib.contextmanager
def started(door: str) -> Iterator[Stack]:
    """Start a stack in a thread, and end it."""
    stack = Stack()
    with running(lambda: _serving(stack, door), START_S):
        yield stack


@contextlib.asynccontextmanager
async def _serving(stack: Stack, door: str) -> Any:
    configure_logging(stream=io.StringIO(), colour=False)
    async with contextlib.AsyncExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        idp = HttpServer(stack.provider.app, LOOPBACK)
        await idp.start()
        parts.push_async_callback(idp.stop)
        stack.provider.serve_at(idp.port)
        stack.access_log = folder / "access.log"
        upstream = await asyncio.start_server(_upstream(parts), "127.0.0.1", 0)
        parts.push_async_callback(_close, upstream)
        hanging = await asyncio.start_server(_hang, "127.0.0.1", 0)
        parts.push_async_callback(_close, hanging)
        environ = {
            "DEMO_ISSUER": stack.provider.issuer,
            "DEMO_CLIENT_SECRET": stack.provider.client_secret,
            "HANGING_URL": f"http://127.0.0.1:{_port(hanging)}/x",
        }
        rules = Path(shutil.copy(Path(__file__).with_name("rules.yaml"), folder / "rules.yaml"))
        await _serve(stack, door, rules, environ, parts)
        envoy = EnvoyProcess(_config(stack.authz_port, _port(upstream), stack.access_log), folder)
        parts.push_async_callback(envoy.stop)
        await envoy.start()
        stack.ports = dict(envoy.ports)
        yield


async def _serve(
    stack: Stack, door: str, rules: Path, environ: dict[str, str], parts: contextlib.AsyncExitStack
) -> None:
    """Start the service; the fast door in a process of its own, with two workers."""
    if door == "fast":
        rules.write_text(rules.read_text() + "  door: fast\n  workers: 2\n  drain_s: 0\n")
        process = RunningProcess(rules)
        process.lines = stack.lines
        parts.push_async_callback(process.stop)
        await process.start(environ)
        stack.authz_port, stack.http_port = (int(its.rpartition(":")[2]) for its in (process.address, process.http))
        return
    observer = Observer(stream=io.StringIO(), sink=lambda line: stack.lines.append(json.loads(line)))
    app = App(rules, environ=environ, observer=observer)
    parts.push_async_callback(app.stop, at_once=True)
    await app.start()
    stack.authz_port, stack.http_port = app.grpc.ports[0], app.http.port if app.http is not None else 0


def _config(authz_port: int, upstream_port: int, access_log: Path) -> str:
    def bootstrap(port: int, *, failure_mode_allow: bool) -> dict[str, Any]:
        text = render_envoy_config(
            authz_address=f"127.0.0.1:{port}",
            upstream_address=f"127.0.0.1:{upstream_port}",
            listen_address=LOOPBACK,
            timeout_ms=1_000,
            admin_address=LOOPBACK,
            failure_mode_allow=failure_mode_allow,
        )
        document: dict[str, Any] = yaml.safe_load(text)
        return document

    dead_port = free_port()
    document = bootstrap(authz_port, failure_mode_allow=False)
    listeners = document["static_resources"]["listeners"]
    manager = listeners[0]["filter_chains"][0]["filters"][0]["typed_config"]
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    manager["access_log"][0]["typed_config"] |= {"@type": kind, "path": str(access_log)}
    manager["access_log_options"] = {"access_log_flush_interval": "0.1s"}
    for name, port, allow in (("open", authz_port, True), ("down", dead_port, False), ("down_open", dead_port, True)):
        other = bootstrap(port, failure_mode_allow=allow)["static_resources"]
        listener = json.loads(json.dumps(other["listeners"][0]))
        listener["name"] = name
        if port == dead_port:
            text = json.dumps(listener).replace('"cluster_name": "authz"', '"cluster_name": "nobody"')
            listener = json.loads(text)
            if name == "down":
                cluster = other["clusters"][0] | {"name": "nobody"}
                cluster["load_assignment"]["cluster_name"] = "nobody"
                document["static_resources"]["clusters"].append(cluster)
        listeners.append(listener)
    listeners.append(_tcp_listener())
    return yaml.safe_dump(document)


def _tcp_listener() -> dict[str, Any]:
    prefix = "type.googleapis.com/envoy.extensions.filters.network"
    return {
        "name": "tcp",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.ext_authz",
                        "typed_config": {
                            "@type": f"{prefix}.ext_authz.v3.ExtAuthz",
                            "stat_prefix": "tcp",
                            "transport_api_version": "V3",
                            "failure_mode_allow": True,
                            "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "1s"},
                        },
                    },
                    {
                        "name": "envoy.filters.network.tcp_proxy",
                        "typed_config": {
                            "@type": f"{prefix}.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "tcp",
                            "cluster": "upstream",
                        },
                    },
                ]
            }
        ],
    }


def _upstream(parts: contextlib.AsyncExitStack) -> Any:
    """Serve connections: a websocket handshake is accepted and bytes come back, all else is the echo application's."""
    echo = HttpServer(ECHO, LOOPBACK)
    started_once: list[bool] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not started_once:
            started_once.append(True)
            await echo.start()
            parts.push_async_callback(echo.stop)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
                while data := await reader.read(1_024):
                    writer.write(data)
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", echo.port)
            # One request a connection, so that a handshake never comes over one that is passed on.
            far_writer.write(head.removesuffix(b"\r\n") + b"connection: close\r\n\r\n")
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    return serve


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError), contextlib.closing(writer):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


async def _hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        await reader.read()


async def _close(server: asyncio.Server) -> None:
    server.close()


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port
