"""How a proxy calls this service over TLS, as the printed configurations say it, and what is left to fill in there."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509

FILL_IN: Final = "/FILL-IN"
"""Where the printed paths lie that only the operator knows: Envoy refuses to start with a file that is not there."""

FILL_IN_NAME: Final = "fill-in.invalid"
"""The name where the service's certificate tells none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTls:
    """How the proxy speaks TLS with this service: paths are of the proxy's machine.

    ``server_name`` is what the service's certificate must be for. The client's pair is for mutual TLS.
    """

    server_name: str
    ca_file: str
    client_cert_file: str | None = None
    client_key_file: str | None = None


def read_server_name(cert_file: str) -> str | None:
    """Return the first name that a certificate is for, no wildcard; None where it has none."""
    try:
        certificate = x509.load_pem_x509_certificate(Path(cert_file).read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return None
    found = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return next((name for name in found if "*" not in name), None)


def note_gaps(body: str) -> str:
    """Put a comment before a configuration where something is left to be filled in."""
    if FILL_IN not in body and FILL_IN_NAME not in body:
        return body
    return f"# FILL IN what starts with `{FILL_IN}` or is `{FILL_IN_NAME}`: here, or by this command's options\n{body}"


def is_ip(name: str) -> bool:
    """Say whether a host is an address and no name."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
