"""How ``trusted_hops`` counts beside a real Envoy, as the deployment page says."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import httpx
import pytest

from authz.app import App
from authz.demo.proxy import EnvoyProcess
from authz.demo.web import ECHO
from authz.envoy_config import render_envoy_config
from authz.observe import Observer
from authz.servers.http import HttpServer
from tests.parts import require_envoy

pytestmark = pytest.mark.e2e

LOOPBACK = "127.0.0.1:0"
RULES = """
version: 1
guards: [{name: client, hosts: everywhere, paths: ["/**"], require: {networks: NETWORK}}]
rules: [{name: all, hosts: everywhere, paths: ["/**"], allow: anyone}]
client_address: {trusted_hops: HOPS}
server: {grpc: [{address: "127.0.0.1:0"}], http: null}
"""
CLIENT, BALANCER = "203.0.113.7", "203.0.113.8"


@pytest.mark.parametrize(
    ("hops", "network", "forwarded", "status"),
    [
        (0, "127.0.0.0/8", CLIENT, 200),
        (1, f"{CLIENT}/32", CLIENT, 403),
        (2, f"{CLIENT}/32", CLIENT, 200),
        (2, f"{CLIENT}/32", f"{CLIENT}, {BALANCER}", 403),
        (3, f"{CLIENT}/32", f"{CLIENT}, {BALANCER}", 200),
        (3, f"{CLIENT}/32", CLIENT, 403),
    ],
)
async def test_envoy_appends_its_own_peer(hops: int, network: str, forwarded: str, status: int, tmp_path: Path) -> None:
    require_envoy()
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.replace("NETWORK", network).replace("HOPS", str(hops)))
    async with contextlib.AsyncExitStack() as parts:
        upstream = HttpServer(ECHO, LOOPBACK)
        await upstream.start()
        parts.push_async_callback(upstream.stop)
        app = App(rules, environ={}, observer=Observer(stream=io.StringIO()))
        parts.push_async_callback(app.stop, at_once=True)
        await app.start()
        config = render_envoy_config(
            authz_address=f"127.0.0.1:{app.grpc.ports[0]}",
            upstream_address=f"127.0.0.1:{upstream.port}",
            listen_address=LOOPBACK,
            timeout_ms=2_000,
            admin_address=LOOPBACK,
        )
        envoy = EnvoyProcess(config, tmp_path)
        parts.push_async_callback(envoy.stop)
        await envoy.start()
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"http://127.0.0.1:{envoy.ports['http']}/x"
            answer = await client.get(url, headers={"x-forwarded-for": forwarded})
        assert answer.status_code == status
