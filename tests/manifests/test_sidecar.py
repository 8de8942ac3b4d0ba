"""The sidecar's three programs work together as they do in the pod: Envoy asks over a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from authz.demo.proxy import EnvoyProcess
from tests.manifests.render import MANIFESTS
from tests.parts import free_port, require_envoy
from tests.servers.service import RunningProcess, require_fast

pytestmark = pytest.mark.e2e

SIDECAR: Final = MANIFESTS / "overlays/sidecar"
SOCKET: Final = "/run/authz/authz.sock"


def test_envoy_takes_its_configuration() -> None:
    command = [require_envoy(), "--mode", "validate", "--config-path", str(SIDECAR / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[str]:
    """Start the three; only where they listen differs from the pod. Return Envoy's address."""
    require_envoy()
    require_fast()
    place = tmp_path / "authz.sock"
    rules = (SIDECAR / "rules.yaml").read_text()
    assert SOCKET in rules
    rules = rules.replace(SOCKET, str(place)).replace("0.0.0.0:9002", "127.0.0.1:0")
    (tmp_path / "rules.yaml").write_text(f"{rules}  drain_s: 0\n")
    port = free_port()
    async with AsyncExitStack() as parts:
        application = subprocess.Popen([sys.executable, str(SIDECAR / "app.py"), str(port)])
        parts.callback(application.wait, timeout=10)
        parts.callback(application.terminate)
        service = RunningProcess(tmp_path / "rules.yaml")
        parts.push_async_callback(service.stop)
        await service.start({})
        while not _is_open(port):
            assert application.poll() is None
            await asyncio.sleep(0.02)
        process = EnvoyProcess(_moved(place, port), tmp_path)
        parts.push_async_callback(process.stop)
        await process.start()
        yield f"http://127.0.0.1:{process.ports['http']}"


async def test_a_request_passes_envoy_the_authorizer_and_the_application(proxy: str) -> None:
    async with httpx.AsyncClient(base_url=proxy, trust_env=False) as http:
        passed = await http.get("/healthz", headers={"x-user": "forged"})
        assert (passed.status_code, passed.json()) == (200, {"path": "/healthz", "user": None, "roles": None})
        unknown = await http.get("/orders/7", headers={"host": "shop.example.com"})
        assert (unknown.status_code, unknown.headers["www-authenticate"][:6]) == (401, "Bearer")
        assert (await http.get("/orders/7")).status_code == 403


def _moved(place: Path, upstream_port: int) -> str:
    document: dict[str, Any] = yaml.safe_load((SIDECAR / "envoy.yaml").read_text().replace(SOCKET, str(place)))
    (listener,) = document["static_resources"]["listeners"]
    listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": 0}
    (upstream,) = (its for its in document["static_resources"]["clusters"] if its["name"] == "upstream")
    (endpoints,) = upstream["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = upstream_port
    document["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
    return yaml.safe_dump(document)


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
