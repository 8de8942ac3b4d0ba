"""A running service and a gRPC client of it, for tests."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from authz.app import App
from authz.observe import Observer, configure_logging
from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

CHECK = "/envoy.service.auth.v3.Authorization/Check"
RULES = """
version: 1
rules:
  - {name: public, hosts: [a.example], paths: ["/**"], allow: anyone}
"""
LOOPBACK = 'grpc: [{address: "127.0.0.1:0"}]\n  http: 127.0.0.1:0'


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
    def http(self) -> str:
        assert self.app.http is not None
        return f"http://127.0.0.1:{self.app.http.port}"


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
