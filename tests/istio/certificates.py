"""The mesh's authority, and the secret discovery service from which each proxy gets its own certificate."""

from __future__ import annotations

import datetime as dt
import warnings
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SERVER_NAME: Final = "mesh.test"
"""A DNS name in each certificate, for clients that insist on one."""

_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
_METHOD: Final = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
_DAY: Final = dt.timedelta(days=1)


class Trust:
    """An authority of SPIFFE identities. ``root`` is its certificate in PEM."""

    def __init__(self) -> None:
        self._key = generate_private_key(SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh")])
        self.root = self._sign(self._name, self._key, (), ca=True)

    def issue(self, identity: str, name: str = SERVER_NAME) -> tuple[bytes, bytes]:
        """Return certificate and key in PEM for ``spiffe://`` and the identity, and for a DNS name."""
        key = generate_private_key(SECP256R1())
        names = (x509.UniformResourceIdentifier(f"spiffe://{identity}"), x509.DNSName(name))
        certificate = self._sign(x509.Name([]), key, names, ca=False)
        return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def _sign(self, subject: x509.Name, key: Any, names: tuple[x509.GeneralName, ...], *, ca: bool) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM)


class SecretServer:
    """Gives one proxy its certificate and the mesh's root, under the names that istiod writes."""

    def __init__(self, trust: Trust, identity: str) -> None:
        certificate, key = trust.issue(identity)
        self._secrets = {
            "default": _secret("default", tls_certificate=_tls("TlsCertificate", certificate, key)),
            "ROOTCA": _secret("ROOTCA", validation_context=_tls("CertificateValidationContext", trust.root)),
        }
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {"StreamSecrets": grpc.stream_stream_rpc_method_handler(self._stream)}
        service = _METHOD.strip("/").partition("/")[0]
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    def _find(self, name: str) -> bytes:
        """Return a secret; those that are files of the proxy's have their path in the name."""
        kind, _, path = name.partition(":")
        if kind == "file-root":
            return _secret(name, validation_context=_tls("CertificateValidationContext", Path(path).read_bytes()))
        return self._secrets[name]

    async def _stream(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        sent: list[str] = []
        async for raw in requests:
            asked = list(_DISCOVERY.DiscoveryRequest.parse(raw).resource_names)
            if asked != sent:  # else it only says that it took what was sent
                sent = asked
                resources = [_PROTOBUF.Any(type_url=_TYPE, value=self._find(name)) for name in asked]
                answer = _DISCOVERY.DiscoveryResponse(version_info="1", nonce="1", type_url=_TYPE, resources=resources)
                yield bytes(answer)


def _import(name: str) -> Any:
    with warnings.catch_warnings():  # its own, about pydantic
        warnings.simplefilter("ignore")
        return import_module(f"envoy_data_plane.{name}")


_DISCOVERY: Final = _import("envoy.service.discovery.v3")
_SECRETS: Final = _import("envoy.extensions.transport_sockets.tls.v3")
_CORE: Final = _import("envoy.config.core.v3")
_PROTOBUF: Final = _import("google.protobuf")


def _secret(name: str, **members: Any) -> bytes:
    return bytes(_SECRETS.Secret(name=name, **members))


def _tls(kind: str, first: bytes, key: bytes | None = None) -> Any:
    source = _CORE.DataSource(inline_bytes=first)
    if key is None:
        return getattr(_SECRETS, kind)(trusted_ca=source)
    return getattr(_SECRETS, kind)(certificate_chain=source, private_key=_CORE.DataSource(inline_bytes=key))
