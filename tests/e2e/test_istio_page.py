"""The EnvoyFilters of docs/istio.md, in a real Envoy: it takes them, and they do what the page says."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from authz.demo.proxy import EnvoyProcess
from authz.demo.web import ECHO
from authz.envoy_config import render_envoy_config
from authz.servers.http import HttpServer
from tests.parts import require_envoy
from tests.servers.service import Running, running

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parent.parent.parent / "docs/istio.md").read_text()
RULES = """
version: 1
identity_headers: {x-user: "{sub}"}
rules:
  - {name: public, hosts: [a.example], paths: ["/public"], allow: anyone}
  - {name: closed, hosts: [a.example], paths: ["/closed"], allow: nobody}
"""
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
async def upstream() -> AsyncIterator[int]:
    require_envoy()
    server = HttpServer(ECHO, "127.0.0.1:0")
    await server.start()
    yield server.port
    await server.stop()


def patch_of(name: str) -> dict[str, Any]:
    """Return what an EnvoyFilter of the page puts into Envoy's configuration."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [its for its in map(yaml.safe_load, blocks) if its.get("metadata", {}).get("name") == name]
    (patch,) = found["spec"]["configPatches"]
    value: dict[str, Any] = patch["patch"]["value"]
    return value


async def ask(service: Running, upstream: int, folder: Path, change: Change) -> dict[str, tuple[int, str]]:
    """Return for each path the status, and the identity header that the upstream saw of a client's own."""
    text = render_envoy_config(
        authz_address=service.address,
        upstream_address=f"127.0.0.1:{upstream}",
        listen_address="127.0.0.1:0",
        timeout_ms=2_000,
        admin_address="127.0.0.1:0",
    )
    document = yaml.safe_load(text)
    change(document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"])
    folder.mkdir()
    process = EnvoyProcess(yaml.safe_dump(document), folder)
    answers = {}
    try:
        await process.start()
        async with httpx.AsyncClient(trust_env=False) as http:
            for path in ("/public", "/closed"):
                url = f"http://127.0.0.1:{process.ports['http']}{path}"
                answer = await http.get(url, headers={"host": "a.example", "x-user": "forged"})
                seen = dict(answer.json()["headers"]) if "x-upstream" in answer.headers else {}
                answers[path] = (answer.status_code, seen.get("x-user", ""))
    finally:
        await process.stop()
    return answers


async def test_in_shadow_mode_nobody_is_denied_and_who_would_be_keeps_the_headers(
    upstream: int, tmp_path: Path
) -> None:
    def change(manager: dict[str, Any]) -> None:
        its = patch_of("authz-shadow")
        its["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = (
            "authz"  # the only name that is not the page's
        )
        its["typed_config"]["shadow_mode"] = shadow
        manager["http_filters"][0] = its

    assert patch_of("authz-shadow")["typed_config"]["shadow_mode"] is True
    async with running(tmp_path, RULES) as service:
        shadow = False
        enforced = await ask(service, upstream, tmp_path / "enforced", change)
        shadow = True
        shadowed = await ask(service, upstream, tmp_path / "shadowed", change)
        told = [(line["rule"], line["decision"]) for line in service.lines]
    assert enforced == {"/public": (200, ""), "/closed": (403, "")}
    assert shadowed == {"/public": (200, ""), "/closed": (200, "forged")}
    assert told == [("public", "allow"), ("closed", "deny")] * 2


async def test_what_is_removed_early_does_not_pass_where_nobody_asks(upstream: int, tmp_path: Path) -> None:
    def unasked(manager: dict[str, Any]) -> None:
        del manager["http_filters"][0]

    def washed(manager: dict[str, Any]) -> None:
        unasked(manager)
        manager |= {key: value for key, value in patch_of("identity-headers")["typed_config"].items() if key[0] != "@"}

    async with running(tmp_path, RULES) as service:
        passing = await ask(service, upstream, tmp_path / "passing", unasked)
        clean = await ask(service, upstream, tmp_path / "clean", washed)
    assert passing == {"/public": (200, "forged"), "/closed": (200, "forged")}
    assert clean == {"/public": (200, ""), "/closed": (200, "")}
