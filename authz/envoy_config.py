"""Ready configurations: a whole Envoy that asks this service, and what Istio's mesh needs for the same.

Each setting that bears on safety says why. Nothing here is read by the service itself.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

_HEAD: Final = """\
# An Envoy that asks authz about every request before it reaches the upstream.
#  failure_mode_allow: false    no answer from authz is a deny
#  encode_raw_headers: true     authz sees repeated headers as they were sent
#  normalize_path, merge_slashes, path_with_escaped_slashes_action: the path reaches authz as it was sent, and authz
#                               refuses what two readers could read differently
#  clear_route_cache            is not set: the route that was checked is the route that is taken
"""

_ISTIO_HEAD: Final = """\
# 1. meshConfig (`istioctl install --set`, the Helm chart's `meshConfig`, or the configmap `istio`)
# 2. which workloads ask: an AuthorizationPolicy with action CUSTOM, in the namespace of the workloads
#  rules: [{}]                  every request: what a narrower list leaves out is never checked
#  failOpen: false              no answer from authz is a deny
#  timeout                      is 600 s in Istio if not said
"""


def render_envoy_config(
    *,
    authz_address: str,
    upstream_address: str,
    listen_address: str,
    timeout_ms: int,
    admin_address: str | None = None,
    failure_mode_allow: bool = False,
) -> str:
    """Return a complete Envoy bootstrap in YAML. Addresses are ``host:port``; authz's may be ``unix:/path``."""
    document: dict[str, Any] = {
        "static_resources": {
            "listeners": [
                {
                    "name": "http",
                    "address": _address(listen_address),
                    "filter_chains": [{"filters": [_http_manager(timeout_ms, failure_mode_allow=failure_mode_allow)]}],
                }
            ],
            "clusters": [_cluster("authz", authz_address, http2=True), _cluster("upstream", upstream_address)],
        }
    }
    if admin_address is not None:
        document["admin"] = {"address": _address(admin_address)}
    return _HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


def render_istio_config(*, service: str, port: int, namespace: str) -> str:
    """Return the extension provider and an AuthorizationPolicy that sends every request to it."""
    mesh = {
        "meshConfig": {
            "extensionProviders": [
                {
                    "name": "authz",
                    "envoyExtAuthzGrpc": {
                        "service": service,
                        "port": port,
                        "timeout": "1.5s",
                        "failOpen": False,
                        "statusOnError": "503",
                    },
                }
            ]
        }
    }
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "authz", "namespace": namespace},
        "spec": {"action": "CUSTOM", "provider": {"name": "authz"}, "rules": [{}]},
    }
    return _ISTIO_HEAD + yaml.safe_dump_all([mesh, policy], sort_keys=False, width=120)


def _http_manager(timeout_ms: int, *, failure_mode_allow: bool) -> dict[str, Any]:
    prefix = "type.googleapis.com/envoy.extensions.filters"
    ext_authz = {
        "@type": f"{prefix}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": f"{timeout_ms / 1_000:g}s"},
        "failure_mode_allow": failure_mode_allow,
        "status_on_error": {"code": "ServiceUnavailable"},
        "encode_raw_headers": True,
        "validate_mutations": True,
    }
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{prefix}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "http",
            "codec_type": "AUTO",
            "normalize_path": False,
            "merge_slashes": False,
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "use_remote_address": True,
            "access_log": [_access_log()],
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "route_config": {
                "name": "all",
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}],
                    }
                ],
            },
            "http_filters": [
                {"name": "envoy.filters.http.ext_authz", "typed_config": ext_authz},
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{prefix}.http.router.v3.Router"},
                },
            ],
        },
    }


def _access_log() -> dict[str, Any]:
    """Return a log that tells of each request what authz decided: its dynamic metadata."""
    facts = {name: f"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:{name})%" for name in _FACTS}
    line = {
        "time": "%START_TIME%",
        "id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "status": "%RESPONSE_CODE%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": line | facts},
        },
    }


_FACTS: Final = ("decision", "rule", "guard", "reason", "subject", "issuer", "client")


def _cluster(name: str, address: str, *, http2: bool = False) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address(address)}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC" if address.startswith("unix:") else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {
            options: {
                "@type": f"type.googleapis.com/{options}",
                "explicit_http_config": {"http2_protocol_options": {"connection_keepalive": _KEEPALIVE}},
            }
        }
    return cluster


_KEEPALIVE: Final = {"interval": "30s", "timeout": "5s"}


def _address(text: str) -> dict[str, Any]:
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    # What the service listens on everywhere is called on this machine.
    bare = host.removeprefix("[").removesuffix("]")
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bare, bare)  # noqa: S104 - an address that is read, not bound
    return {"socket_address": {"address": shown, "port_value": int(port)}}
