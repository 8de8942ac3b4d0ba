"""The stack, started once for all tests through a real Envoy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, started
from tests.parts import require_envoy
from tests.servers.service import DOORS, require_fast


@pytest.fixture(scope="session", params=DOORS)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    require_envoy()
    if request.param == "fast":
        require_fast()
    with started(request.param) as running:
        yield running
