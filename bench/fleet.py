"""The servers that are measured side by side: ours behind each door, ones that do nothing, and peers that are here.

``BENCH_PEERS`` names peers' binaries: ``heimdall=/path/to/heimdall,opa=/path/to/opa-envoy-plugin``. Their
configurations, under ``peers/``, do the same work as our rules.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from load import Load, play
from nothing import ANSWER
from rich.console import Console
from servers import Server, free_port
from world import CHECK, SMALL, World, is_allow, repeat, rules_file

from authz.config.settings import ServerSettings
from authz.model import ConfigError
from authz.servers.engine import Bound, Engine, find_engine, render_engine_config

HERE: Final = Path(__file__).parent
PEERS: Final = "BENCH_PEERS"
DOORS: Final = ("grpcio", "fast")


@dataclass(frozen=True, slots=True)
class Fleet:
    """All servers, started; ``versions`` tell what the peers say of themselves."""

    ours: list[Server]
    nothing: list[Server]
    peers: list[Server]
    versions: dict[str, str]
    doors: tuple[str, ...]

    @property
    def all(self) -> list[Server]:
        """Every server, in the order of the tables."""
        return [*self.nothing, *self.ours, *self.peers]

    def describe(self) -> dict[str, str]:
        """Say of each server what it is."""
        return self.versions


@contextlib.asynccontextmanager
async def make_fleet(
    world: World, folder: Path, *, core: int, rules: int, console: Console, peers: bool = True
) -> AsyncIterator[Fleet]:
    """Start all servers on one core, check one answer of each, and end them afterwards."""
    engine = _find_engine(console)
    doors = DOORS if engine is not None else DOORS[:1]
    started: list[Server] = []
    versions: dict[str, str] = {}
    try:
        ours = [start_ours(world, folder, door, core, rules) for door in doors]
        started += ours
        for its in ours:
            await its.until_open()
        answer = await _answer_of(world, ours[0])
        file = folder / "answer"
        file.write_bytes(answer)
        nothing = [_start_nothing(folder, door, core, file, engine) for door in doors]
        started += nothing
        others = _start_peers(world, folder, core) if peers else []
        started += [server for server, _ in others]
        for its in started:
            await its.until_open()
        for its in [*ours, *(server for server, _ in others)]:
            await _check_answers(world, its)
        versions |= {f"authz, {door}": f"one worker, {rules:,} rules, decision lines on" for door in doors}
        versions |= {server.name: version for server, version in others}
        if engine is not None:
            versions["Envoy inside the fast door"] = engine.version
        yield Fleet(ours=ours, nothing=nothing, peers=[server for server, _ in others], versions=versions, doors=doors)
    finally:
        for its in started:
            its.stop()


def _find_engine(console: Console) -> Engine | None:
    try:
        return find_engine(os.environ)
    except ConfigError as error:
        console.print(f"without the fast door: {error}", style="yellow")
        return None


def start_ours(  # noqa: PLR0913 - each is a side of what is measured
    world: World,
    folder: Path,
    door: str,
    core: int | None,
    rules: int,
    *,
    name: str = "rules",
    http: bool = False,
    extra: str = "",
) -> Server:
    """Start the service: one worker on a core, or as many as it wants on all."""
    port, http_port = free_port(), free_port() if http else 0
    place = folder / f"{door}-{name}-{rules}"
    place.mkdir()
    file = rules_file(place, world, port=port, door=door, rules=rules, http_port=http_port, extra=extra)
    command = [sys.executable, "-m", "authz", "serve", *([] if core is None else ["--workers", "1"]), str(file)]
    environ = {"BENCH_SECRET": "secret"}
    server = Server(f"authz, {door}", command, port=port, core=core, folder=place, environ=environ)
    server.http_port = http_port
    server.start()
    return server


def _start_nothing(folder: Path, door: str, core: int, answer: Path, engine: Engine | None) -> Server:
    port = free_port()
    place = folder / f"nothing-{door}-{port}"
    place.mkdir()
    environ = {ANSWER: str(answer)}
    command = [sys.executable, str(HERE / "nothing.py"), str(port)]
    if door == "fast" and engine is not None:
        bound = [Bound(address=f"127.0.0.1:{port}", tls=None)]
        settings = ServerSettings()
        config = render_engine_config(engine, settings, bound, applications=["nothing:APPLICATION"] * 2, folder=place)
        (place / "envoy.json").write_text(config)
        command = [engine.binary, "--config-path", str(place / "envoy.json"), "--use-dynamic-base-id"]
        command += ["--concurrency", "1", "--log-level", "warning"]
        environ |= engine.environ
        environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{environ['PYTHONPATH']}"
    server = Server(f"nothing, {door}", command, port=port, core=core, folder=place, environ=environ)
    server.start()
    return server


def _start_peers(world: World, folder: Path, core: int) -> list[tuple[Server, str]]:
    found = []
    for entry in filter(None, os.environ.get(PEERS, "").split(",")):
        name, _, binary = entry.partition("=")
        port = free_port()
        place = folder / name
        place.mkdir()
        for file in (HERE / "peers").glob(f"{name}*"):
            text = file.read_text().replace("PORT", str(port)).replace("JWKS_URL", world.jwks_url)
            (place / file.name).write_text(text.replace("PUT-THE-JWKS-DOCUMENT-HERE", json.dumps(world.jwks)))
        if name == "heimdall":
            command = [binary, "serve", "decision", "--envoy-grpc", "-c", "heimdall.yaml", "--insecure"]
            # It says little, but honours this one word for what it must not care about on loopback.
        elif name == "opa":
            command = [binary, "run", "--server", "--addr", f"127.0.0.1:{free_port()}", "--config-file", "opa.yaml"]
            command += ["--log-level", "error", "opa-policy.rego"]
        else:
            raise SystemExit(f"{PEERS}: `{name}` is not known here: heimdall, opa")
        server = Server(name, command, port=port, core=core, folder=place, environ={"GOMAXPROCS": "1"})
        server.start()
        found.append((server, _version(binary)))
    return found


def _version(binary: str) -> str:
    for argument in ("version", "--version"):
        said = subprocess.run([binary, argument], capture_output=True, text=True, timeout=30, check=False)
        if said.returncode == 0 and said.stdout.strip():
            return " ".join(said.stdout.split()[:8])
    return "of an unknown version"


async def _answer_of(world: World, server: Server) -> bytes:
    """Return the bytes that ours answers an allowed request with, for those that do nothing else."""
    found: list[bytes] = []

    def note(message: bytes) -> bool:
        found.append(message)
        return is_allow(message)

    load = Load(connections=1, in_flight=1, seconds=0.2)
    await play(server.port, load, repeat(world.body(SMALL, world.token(SMALL))), note, path=CHECK)
    return found[-1]


async def _check_answers(world: World, server: Server) -> None:
    """Make sure that what is measured for an allow is one, and that a bad token is refused."""
    good, bad = (world.body(SMALL, world.token(SMALL, **its)) for its in ({}, {"exp": 1, "iat": 0}))
    load = Load(connections=1, in_flight=1, seconds=0.3)
    allowed = await play(server.port, load, repeat(good), is_allow, path=CHECK)
    denied = await play(server.port, load, repeat(bad), is_allow, path=CHECK)
    if allowed.bad or not allowed.calls or denied.bad != denied.calls or not denied.calls:
        raise SystemExit(f"{server.name} does not do the work: {allowed.bad} of {allowed.calls} good refused")
