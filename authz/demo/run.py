"""Start everything, send a dozen requests through Envoy, show what came of each."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from authz.core.jwt import MAX_TOKEN_BYTES
from authz.demo.idp import DemoProvider
from authz.demo.proxy import EnvoyProcess, MissingEnvoyError
from authz.demo.service import ServiceProcess, choose_door
from authz.demo.web import ECHO, DecisionStream
from authz.envoy_config import render_envoy_config
from authz.model import NO_HEADERS
from authz.observe import configure_logging
from authz.servers.http import HttpServer

HOST: Final = "shop.localhost"
SHOWN: Final = ("x-user", "x_user", "x-roles")
TIMEOUT_S: Final = 10.0
LINE_S: Final = 2.0
LOOPBACK: Final = "127.0.0.1:0"
_MISSING_PART: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request, and what must come of it. ``seen`` are the identity headers that the upstream must see."""

    title: str
    path: str
    status: int
    reason: str = ""
    token: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    host: str = HOST
    seen: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request."""

    status: int
    reason: str
    seen: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """All parts of the demo, started."""

    provider: DemoProvider
    stream: DecisionStream
    envoy_port: int
    stream_port: int
    http_port: int


def run_demo(*, once: bool, console: Console) -> int:
    """Run it; return the exit code: 0 if every row came out as expected, or if it was told to end."""
    try:
        return asyncio.run(_demo(console, once=once))
    except MissingEnvoyError as error:
        console.print(str(error), style="red")
        return _MISSING_PART
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0


async def _demo(console: Console, *, once: bool) -> int:
    this = asyncio.current_task()
    if this is not None:
        # Else the system would end the process, and its folder and its Envoy would stay. A shell that started it in
        # the background had it ignore Ctrl-C; whoever sends that signal all the same means it.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    async with started(console) as running:
        results = [(row, await _send(running, row)) for row in rows(running.provider)]
        good = [_is_expected(row, outcome) for row, outcome in results]
        _print_results(console, results)
        console.print(f"{sum(good)} of {len(good)} as expected", style="green" if all(good) else "red")
        if not once:
            _print_hints(console, running)
            await asyncio.Event().wait()
    return 0 if all(good) else 1


def rows(provider: DemoProvider) -> list[Row]:
    """Return the requests, with tokens made just now."""
    alice = provider.mint(provider.claims("alice"))
    opaque, revoked = (provider.mint_opaque(provider.claims("alice")) for _ in range(2))
    provider.revoke(revoked)
    mine = {"x-user": "alice", "x-roles": "orders-reader"}
    forged = {"X-User": "root", "x_user": "root"}
    return [
        Row(title="public page", path="/public/news", status=200),
        Row(title="public page, forged identity", path="/public/news", headers=forged, status=200),
        Row(title="jwt, role fits", path="/orders/7", token=alice, status=200, seen=mine),
        Row(title="jwt, wrong role", path="/orders/7", token=provider.mint(provider.claims("bob")), status=403,
            reason="role_missing"),
        Row(title="jwt, expired", path="/orders/7", token=provider.mint(provider.claims("alice", lifetime_s=-60)),
            status=401, reason="expired"),
        Row(title="jwt, wrong audience", path="/orders/7", status=401, reason="audience_mismatch",
            token=provider.mint(provider.claims("alice", audience="billing-api"))),
        Row(title="jwt, forged identity", path="/orders/7", token=alice, headers=forged, status=200, seen=mine),
        Row(title="jwt, guarded area", path="/orders/admin/report", token=alice, status=403, reason="role_missing"),
        Row(title="opaque token, active", path="/orders/7", token=opaque, status=200, seen=mine),
        Row(title="opaque token, revoked", path="/orders/7", token=revoked, status=401, reason="token_inactive"),
        Row(title="unknown host", path="/orders/7", host="other.localhost", token=alice, status=403, reason="no_rule"),
        Row(title="a way around the rule", path="/public/..%2forders/7", status=400, reason="path_dot_segment"),
        Row(title="no credential", path="/orders/7", status=401, reason="no_credential"),
        Row(title="token too large", path="/orders/7", token="a" * (MAX_TOKEN_BYTES + 1), status=400,
            reason="credential_too_large"),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def started(console: Console) -> AsyncIterator[Running]:
    """Start all parts, telling of each, and end them afterwards, whatever happens."""
    configure_logging(stream=io.StringIO(), colour=False)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="authz-demo-")))
        provider, stream = DemoProvider(), DecisionStream()
        idp_port = await _serve(stack, HttpServer(provider.app, LOOPBACK))
        provider.serve_at(idp_port)
        console.print(f"identity provider   {provider.issuer}")
        echo_port = await _serve(stack, HttpServer(ECHO, LOOPBACK))
        console.print(f"upstream            http://127.0.0.1:{echo_port}")
        stream_port = await _serve(stack, HttpServer(stream.app, LOOPBACK))
        door = choose_door()
        environ = {"DEMO_ISSUER": provider.issuer, "DEMO_CLIENT_SECRET": provider.client_secret}
        service = ServiceProcess(_write_rules(folder, door), environ=environ, sink=stream.push)
        stack.push_async_callback(service.stop)
        await service.start()
        inside = f"fast: inside Envoy {service.facts['envoy']}" if door == "fast" else door
        console.print(f"authz               {service.address} (gRPC, {inside})")
        config = render_envoy_config(
            authz_address=service.address,
            upstream_address=f"127.0.0.1:{echo_port}",
            listen_address=LOOPBACK,
            timeout_ms=2_000,
            admin_address=LOOPBACK,
        )
        envoy = EnvoyProcess(config, folder)
        stack.push_async_callback(envoy.stop)
        await envoy.start()
        console.print(f"envoy               http://127.0.0.1:{envoy.ports['http']}")
        yield Running(
            provider=provider,
            stream=stream,
            envoy_port=envoy.ports["http"],
            stream_port=stream_port,
            http_port=int(str(service.facts["http"]).rpartition(":")[2]),
        )


def _write_rules(folder: Path, door: str) -> Path:
    """Write the demo's rules, whose last part is `server`, with the door in it."""
    file = folder / "rules.yaml"
    file.write_text(f"{Path(__file__).with_name('rules.yaml').read_text().rstrip()}\n  door: {door}\n")
    return file


async def _serve(stack: contextlib.AsyncExitStack, server: HttpServer) -> int:
    await server.start()
    stack.push_async_callback(server.stop)
    return server.port


async def _send(running: Running, row: Row) -> Outcome:
    running.stream.last = ""
    status, body = await asyncio.to_thread(_exchange, running.envoy_port, row)
    # The line comes through a pipe, a moment after the answer.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINE_S):
            while not running.stream.last:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.005)
    decision = json.loads(running.stream.last) if running.stream.last else {}
    seen: dict[str, str] = {}
    if status == http.client.OK:
        for name, value in json.loads(body)["headers"]:
            if name in SHOWN:
                seen[name] = f"{seen[name]} AND {value}" if name in seen else value
    return Outcome(status=status, reason=decision.get("reason", ""), seen=seen)


def _exchange(port: int, row: Row) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    headers = {"Host": row.host, **row.headers}
    if row.token is not None:
        headers["Authorization"] = f"Bearer {row.token}"
    with contextlib.closing(connection):
        connection.request("GET", row.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


def _is_expected(row: Row, outcome: Outcome) -> bool:
    return (outcome.status, outcome.reason, dict(outcome.seen)) == (row.status, row.reason, dict(row.seen))


def _print_results(console: Console, results: list[tuple[Row, Outcome]]) -> None:
    """Print a table for eyes, and a line a request into a pipe."""
    if console.is_terminal:
        console.print(_render(results))
        return
    for row, outcome in results:
        seen = ", ".join(f"{name}: {value}" for name, value in outcome.seen.items())
        facts = f"{row.title}: {row.path} expected {row.status} {row.reason}".rstrip()
        mark = "ok" if _is_expected(row, outcome) else "NO"
        answer = f"got {outcome.status} {outcome.reason}".rstrip() + (f", upstream saw {seen}" if seen else "")
        console.print(f"{mark} {facts}, {answer}", markup=False, highlight=False)


def _render(results: list[tuple[Row, Outcome]]) -> Table:
    table = Table()
    for name in ("", "request", "expected", "answer", "reason", "upstream saw"):
        table.add_column(name, overflow="fold", min_width=2, no_wrap=name == "reason")
    for row, outcome in results:
        mark = "[green]ok[/]" if _is_expected(row, outcome) else "[red]NO[/]"
        seen = "\n".join(f"{name}: {value}" for name, value in outcome.seen.items())
        if outcome.status == http.client.OK:
            seen = seen or "none"
        reason = outcome.reason if outcome.reason == row.reason else f"{outcome.reason}, not {row.reason}"
        path = row.path if row.host == HOST else f"{row.host}{row.path}"
        request = Text.assemble(row.title, "\n", (path, "dim"))
        table.add_row(mark, request, str(row.status), str(outcome.status), reason, seen)
    return table


def _print_hints(console: Console, running: Running) -> None:
    url, issuer = f"http://127.0.0.1:{running.envoy_port}", running.provider.issuer
    token = f"$(curl -s -H accept:text/plain -d username=alice {issuer}/token)"
    lines = (
        "",
        "Try it:",
        f"  curl -i -H host:{HOST} {url}/public/news",
        f"  curl -i -H host:{HOST} {url}/orders/7",
        f'  curl -i -H host:{HOST} -H "authorization: Bearer {token}" {url}/orders/7',
        "",
        f"Decisions, live:  curl -sN http://127.0.0.1:{running.stream_port}/decisions",
        f"Metrics:          curl -s http://127.0.0.1:{running.http_port}/metrics",
        "Ctrl-C ends it all.",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
