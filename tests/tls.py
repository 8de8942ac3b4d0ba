"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import datetime as dt
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


class Authority:
    """Signs certificates; its own is in ``ca.pem``."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.key = generate_private_key(SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._certificate(self.name, self.key, ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write ``NAME.pem`` and ``NAME.key`` for 127.0.0.1 and localhost."""
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(self._certificate(subject, key, ca=False))
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def _certificate(self, subject: x509.Name, key: EllipticCurvePrivateKey, *, ca: bool) -> bytes:
        now = dt.datetime.now(dt.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM)
