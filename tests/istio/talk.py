"""Clients that call a sidecar past the gateway, with whatever certificate they have."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from authz.pb.envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from tests.istio.certificates import SERVER_NAME, Trust
from tests.istio.mesh import Mesh
from tests.servers.service import CHECK, check_request

_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and the body as text."""

    status: int
    body: str

    def headers(self) -> dict[str, str]:
        """Return what the echo server saw."""
        seen: dict[str, str] = dict(json.loads(self.body)["headers"])
        return seen


def call_over_tls(mesh: Mesh, identity: str, path: str, trust: Trust | None = None, **headers: str) -> Answer:
    """Send a GET to the sidecar of the application as this identity, signed by the mesh's authority or another."""
    with _connected(mesh, identity, 8080, trust) as connection:
        client = http.client.HTTPConnection(mesh.app, 8080, timeout=_PATIENCE_S)
        client.sock = connection
        client.request("GET", path, headers={"host": "shop.example.com", "connection": "close", **headers})
        response = client.getresponse()
        return Answer(response.status, response.read().decode())


def tell(mesh: Mesh, identity: str, port: int, text: bytes) -> bytes:
    """Send bytes to a port of the application and return what comes back; nothing, if the connection is cut."""
    with _connected(mesh, identity, port, None) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.sendall(text)
        return connection.recv(1_024)
    return b""


@contextlib.contextmanager
def _connected(mesh: Mesh, identity: str, port: int, trust: Trust | None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cadata=mesh.trust.root.decode())
    certificate, key = (mesh.trust if trust is None else trust).issue(identity)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pair.pem")
        file.write_bytes(certificate + key)
        context.load_cert_chain(file)
    with socket.create_connection((mesh.app, port), timeout=_PATIENCE_S) as plain:
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as connection:
            yield connection


def ask_authorizer(mesh: Mesh, identity: str | None) -> CheckResponse:
    """Call the authorizer's port as this identity; without one, in plain text.

    Raises:
        grpc.RpcError: if the call is refused.

    """
    address = f"{mesh.authz}:9001"
    options: list[tuple[str, Any]] = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_retries", 0)]
    if identity is None:
        channel = grpc.insecure_channel(address)
    else:
        certificate, key = mesh.trust.issue(identity)
        credentials = grpc.ssl_channel_credentials(mesh.trust.root, key, certificate)
        channel = grpc.secure_channel(address, credentials, options=options)
    with channel:
        call = channel.unary_unary(
            CHECK, request_serializer=CheckRequest.SerializeToString, response_deserializer=CheckResponse.FromString
        )
        response: CheckResponse = call(check_request("/public/x", "shop.example.com"), timeout=_PATIENCE_S)
        return response
