"""A ready configuration: a whole Envoy that asks this service.

Each setting that bears on safety says why. Nothing here is read by the service itself.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from authz.core.path import parse_host
from authz.model import Rejected
from authz.proxy_tls import ProxyTls, is_ip, note_gaps

_HEAD: Final = """\
# An Envoy that asks authz about every request before it reaches the upstream.
#  failure_mode_allow: false    no answer from authz is a deny
#  encode_raw_headers: true     authz sees repeated headers as they were sent
#  normalize_path, merge_slashes, path_with_escaped_slashes_action: the path reaches authz as it was sent, and authz
#                               refuses what two readers could read differently
#  clear_route_cache            is not set: the route that was checked is the route that is taken
"""

_TLS_HEAD: Final = """\
#  transport_socket             authz is called over TLS; only a certificate of trusted_ca for that name is believed
"""


def parse_address(text: str, *, listen: bool = False) -> str:
    """Return ``host:port`` in one spelling; to listen on, the host must be an IP address.

    Raises:
        ValueError: with a message for the user.

    """
    if text.startswith("unix:/") and text.isprintable() and not listen:
        return text
    try:
        host = parse_host(text)
    except Rejected:
        host = None
    if host is None or host.port is None:
        raise ValueError(f"{text!a} is no address: write HOST:PORT, such as 127.0.0.1:8080")
    if listen and not is_ip(host.name):
        raise ValueError(f"{text!a}: write an ip address of this machine, or 0.0.0.0 for all")
    return f"[{host.name}]:{host.port}" if ":" in host.name else f"{host.name}:{host.port}"


def render_envoy_config(  # noqa: PLR0913 - all are named at each call
    *,
    authz_address: str,
    upstream_address: str,
    listen_address: str,
    timeout_ms: int,
    authz_tls: ProxyTls | None = None,
    admin_address: str | None = None,
    failure_mode_allow: bool = False,
) -> str:
    """Return a complete Envoy bootstrap in YAML. Addresses are ``host:port``; authz's may be ``unix:/path``."""
    authz = _cluster("authz", authz_address, http2=True)
    if authz_tls is not None:
        authz["transport_socket"] = _transport_socket(authz_tls)
    document: dict[str, Any] = {
        "static_resources": {
            "listeners": [
                {
                    "name": "http",
                    "address": _address(listen_address, called=False),
                    "filter_chains": [{"filters": [_http_manager(timeout_ms, failure_mode_allow=failure_mode_allow)]}],
                }
            ],
            "clusters": [authz, _cluster("upstream", upstream_address)],
        }
    }
    if admin_address is not None:
        document["admin"] = {"address": _address(admin_address, called=False)}
    head = _HEAD if authz_tls is None else _HEAD + _TLS_HEAD
    return head + note_gaps(yaml.safe_dump(document, sort_keys=False, width=120))


def _transport_socket(tls: ProxyTls) -> dict[str, Any]:
    kind = "IP_ADDRESS" if is_ip(tls.server_name) else "DNS"
    context: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "validation_context": {
            "trusted_ca": {"filename": tls.ca_file},
            # Without it any certificate of that authority would do.
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": tls.server_name}}],
        },
    }
    if tls.client_cert_file is not None:
        chain, key = {"filename": tls.client_cert_file}, {"filename": tls.client_key_file}
        context["tls_certificates"] = [{"certificate_chain": chain, "private_key": key}]
    config: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": context,
    }
    if kind == "DNS":  # RFC 6066 §3: an address is no server name
        config["sni"] = tls.server_name
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _http_manager(timeout_ms: int, *, failure_mode_allow: bool) -> dict[str, Any]:
    prefix = "type.googleapis.com/envoy.extensions.filters"
    ext_authz = {
        "@type": f"{prefix}.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": render_duration(timeout_ms)},
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


def _address(text: str, *, called: bool = True) -> dict[str, Any]:
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, _, port = text.rpartition(":")
    shown = host.removeprefix("[").removesuffix("]")
    if called:
        # What listens on every address of this machine is called on this machine.
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(shown, shown)  # noqa: S104 - an address that is read, not bound
    return {"socket_address": {"address": shown, "port_value": int(port)}}


def render_duration(milliseconds: int) -> str:
    """Write a duration as protobuf's JSON does."""
    return f"{milliseconds / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
