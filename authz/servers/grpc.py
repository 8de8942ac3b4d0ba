"""The portable door: Envoy's ``Authorization/Check`` over gRPC by grpcio, with health and reflection.

The transport's own limits lie above anything that an Envoy sends (invariant VERDICTS-ARE-ANSWERS, in
:mod:`authz.servers.check`).
"""

from __future__ import annotations

import contextlib
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from authz.config.settings import ServerSettings, TlsSettings
from authz.gate import Gate
from authz.model import ConfigError, ConfigProblem
from authz.observe import Observer
from authz.servers.check import SERVICE, TRANSPORT_MAX_BYTES, CheckHandler

TRANSPORT_MAX_METADATA_BYTES: Final = 16 * 1024 * 1024
"""Twice the largest ``max_request_headers_kb`` that Envoy accepts."""


_UNIX: Final = "unix:"


class GrpcServer:
    """One gRPC server on all its listeners.

    ``ports`` are the bound TCP ports, in the listeners' order, and ``addresses`` the listeners' with those ports.
    ``at`` is given to one of several workers: the addresses to share with the others, in the listeners' order.
    """

    def __init__(self, gate: Gate, settings: ServerSettings, observer: Observer, *, at: Sequence[str] = ()) -> None:
        self._settings = settings
        self._shared = bool(at)
        self._at = tuple(at) or tuple(its.address for its in settings.grpc)
        self._handler = CheckHandler(gate, settings, observer)
        self._health = HealthServicer()
        self._server: grpc.aio.Server | None = None
        self.ports: tuple[int, ...] = ()
        self.addresses: tuple[str, ...] = ()

    async def start(self) -> None:
        """Bind and serve; health says NOT_SERVING until :meth:`set_serving`.

        Raises:
            ConfigError: for an address that cannot be bound and certificates that cannot be read.

        """
        # Made here: it belongs to the event loop that is running.
        self._server = server = grpc.aio.server(options=_options(self._settings, shared=self._shared))
        method = grpc.unary_unary_rpc_method_handler(self._check)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": method}),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self.set_serving(serving=False)
        self.ports = tuple(
            _bind(server, address, its.tls) for address, its in zip(self._at, self._settings.grpc, strict=True)
        )
        self.addresses = tuple(
            address if address.startswith(_UNIX) else f"{address.rpartition(':')[0]}:{port}"
            for address, port in zip(self._at, self.ports, strict=True)
        )
        await server.start()

    async def set_serving(self, *, serving: bool) -> None:
        """Tell health checkers, for the whole server and for the service by name."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def drain(self, *, at_once: bool = False) -> None:
        """Say NOT_SERVING, answer on until the callers have gone (at most ``drain_s``, or not at all), then close.

        Closing first would turn checks away with an RPC error, which some callers take for an allow.
        """
        await self._health.enter_graceful_shutdown()
        if not at_once:
            await self._handler.wait_until_quiet()
        if self._server is not None:
            await self._server.stop(grace=0 if at_once else max(1.0, self._settings.deadline_ms / 1_000))

    async def _check(self, raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return await self._handler.check(raw, context.time_remaining())


def _bind(server: grpc.aio.Server, address: str, tls: TlsSettings | None) -> int:
    path = address.removeprefix(_UNIX) if address.startswith(_UNIX) else None
    if path is not None:
        remove_socket(Path(path))
    try:
        secure = None if tls is None else _credentials(tls)
        port = server.add_insecure_port(address) if secure is None else server.add_secure_port(address, secure)
    except RuntimeError:
        port = 0
    if port == 0:
        why = "is it in use, or not this machine's?" if path is None else "may this user write to its folder?"
        message = f"cannot listen on `{address}`: {why}"
        raise ConfigError(ConfigProblem(message=message, path="server.grpc"))
    return port


def remove_socket(path: Path) -> None:
    """Take away a socket that a former run left over; anything else stays where it is.

    Raises:
        ConfigError: if something else stands there, somebody listens, or there is no such folder.

    """
    try:
        if not path.parent.exists():
            why = f"the folder `{path.parent}` is missing: make it first, or choose another path"
        elif not stat.S_ISSOCK(path.lstat().st_mode):
            why = "something stands there that is no socket: remove it, or choose another path"
        elif _is_answered(path):
            why = "another process listens there"
        else:
            path.unlink()
            return
    except FileNotFoundError:
        return
    except OSError as error:
        why = (error.strerror or "not usable").lower()
    raise ConfigError(ConfigProblem(message=f"cannot listen on `unix:{path}`: {why}", path="server.grpc"))


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


def _options(settings: ServerSettings, *, shared: bool) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", TRANSPORT_MAX_BYTES),
        # Envoy copies a request's trace headers into its call's metadata, of any size that it took itself.
        ("grpc.max_metadata_size", TRANSPORT_MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", TRANSPORT_MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # gRPC spreads the age by ±10 % itself, so that replicas do not lose all their callers at once.
        ("grpc.max_connection_age_ms", settings.max_connection_age_s * 1_000),
        ("grpc.max_connection_age_grace_ms", settings.max_connection_age_grace_s * 1_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Envoy and Istio may ping every few seconds on an idle connection: that is no abuse.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),
    )


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Return credentials that look at the files again at each handshake, and keep the last good ones."""
    latest = [_read_certificates(tls)]

    def fetch() -> grpc.ServerCertificateConfiguration:
        with contextlib.suppress(ConfigError):
            latest[0] = _read_certificates(tls)
        return latest[0]

    return grpc.dynamic_ssl_server_credentials(
        latest[0], fetch, require_client_authentication=tls.client_ca_file is not None
    )


def _read_certificates(tls: TlsSettings) -> grpc.ServerCertificateConfiguration:
    try:
        key, chain = Path(tls.key_file).read_bytes(), Path(tls.cert_file).read_bytes()
        roots = Path(tls.client_ca_file).read_bytes() if tls.client_ca_file is not None else None
    except OSError as error:
        message = f"cannot read `{error.filename}`: {error.strerror}"
        raise ConfigError(ConfigProblem(message=message, path="server.grpc.tls")) from None
    return grpc.ssl_server_certificate_configuration([(key, chain)], roots)
