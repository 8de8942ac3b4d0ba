"""What the core keeps between calls must not carry one test's answer into another."""

from __future__ import annotations

import pytest

from authz.core.authorize import _render_address
from authz.core.path import parse_host


@pytest.fixture(autouse=True)
def forget() -> None:
    parse_host.cache_clear()
    _render_address.cache_clear()
