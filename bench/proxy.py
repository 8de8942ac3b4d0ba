"""What a check adds to a request through a real Envoy: without one, with its own jwt_authn, and with each server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servers import Server, free_port
from world import AUDIENCE, ISSUER, World

from authz.demo.proxy import find_envoy

PLAIN: Final = "Envoy alone"
JWT_AUTHN: Final = "Envoy, jwt_authn"

_TYPE: Final = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True, slots=True)
class Pair:
    """An Envoy and the server that it asks, as one."""

    envoy: Server
    asked: Server | None

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.envoy.name

    @property
    def port(self) -> int:
        """Where the requests go."""
        return self.envoy.port

    def cpu_s(self) -> float:
        """Return the CPU time of both."""
        return self.envoy.cpu_s() + (0.0 if self.asked is None else self.asked.cpu_s())


def make_pairs(world: World, folder: Path, servers: list[Server], *, core: int) -> list[Pair]:
    """Start an Envoy for each server, and two that ask nobody, all on the servers' core."""
    pairs = [
        Pair(_start(PLAIN, folder, [], [], core=core), None),
        Pair(_start(JWT_AUTHN, folder, [_jwt_authn(world)], [], core=core), None),
    ]
    for its in servers:
        name = f"Envoy, {its.name}"
        pairs.append(Pair(_start(name, folder, [_ext_authz()], [_cluster(its.port)], core=core), its))
    return pairs


def _start(
    name: str, folder: Path, filters: list[dict[str, Any]], clusters: list[dict[str, Any]], *, core: int
) -> Server:
    port = free_port()
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir()
    (place / "envoy.json").write_text(json.dumps(_config(port, filters, clusters)))
    command = [find_envoy(), "--config-path", "envoy.json", "--use-dynamic-base-id", "--concurrency", "1"]
    server = Server(name, [*command, "--log-level", "error"], port=port, core=core, folder=place)
    server.start()
    return server


def _config(port: int, filters: list[dict[str, Any]], clusters: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a bootstrap. Envoy answers itself, so that no upstream's time is in the figures."""
    router = {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [*filters, router],
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {"name": "in", "address": address, "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def _ext_authz() -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "2s"}
    kind = f"{_TYPE}.filters.http.ext_authz.v3.ExtAuthz"
    return {"name": "ext_authz", "typed_config": {"@type": kind, "grpc_service": service}}


def _jwt_authn(world: World) -> dict[str, Any]:
    provider = {"issuer": ISSUER, "audiences": [AUDIENCE], "local_jwks": {"inline_string": json.dumps(world.jwks)}}
    provider |= {"jwt_cache_config": {"jwt_cache_size": 20_000}}
    rule = {"match": {"prefix": "/api/v1/orders/"}, "requires": {"provider_name": "demo"}}
    kind = f"{_TYPE}.filters.http.jwt_authn.v3.JwtAuthentication"
    return {"name": "jwt_authn", "typed_config": {"@type": kind, "providers": {"demo": provider}, "rules": [rule]}}


def _cluster(port: int) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": "authz",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {"cluster_name": "authz", "endpoints": endpoints},
    }


def browser_headers(token: str) -> dict[str, str]:
    """Return what a browser's request says besides its path and host."""
    return {
        "accept": "application/json",
        "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Chrome/130.0",
        "authorization": f"Bearer {token}",
    }
