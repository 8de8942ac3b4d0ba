"""What tests of several folders ask for."""

from __future__ import annotations

import pytest

from tests.servers.service import DOORS, require_fast


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> str:
    """Run the test once behind each door."""
    name: str = request.param
    if name == "fast":
        require_fast()
    return name
