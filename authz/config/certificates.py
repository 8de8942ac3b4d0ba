"""Try certificate, key and CA files at load, so that a wrong one is named before anyone connects."""

from __future__ import annotations

import ssl
from pathlib import Path


def check_pair(cert_file: str, key_file: str) -> None:
    """Check that a certificate can be used with its key.

    Raises:
        ValueError: with a message for the operator that names the file.

    """
    for name in (cert_file, key_file):
        _check_readable(name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert_file, key_file, _no_password)
    except OSError:
        text = f"`{cert_file}` and `{key_file}` cannot be used: not a certificate and the key to it, in pem"
        raise ValueError(f"{text} and without a password") from None


def check_ca(ca_file: str) -> None:
    """Check that certificates can be verified with a file.

    Raises:
        ValueError: with a message for the operator that names the file.

    """
    _check_readable(ca_file)
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError:
        raise ValueError(f"`{ca_file}` cannot be used: not a certificate in pem") from None


def _check_readable(name: str) -> None:
    try:
        with Path(name).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"`{name}` cannot be used: {(error.strerror or 'unreadable').lower()}") from None


def _no_password() -> bytes:
    """Answer for whoever would ask on the terminal, for ever."""
    return b""
