"""Parts that a machine may lack: named with how to get them, skipped here, and a failure where all are required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(part: str, how: str) -> NoReturn:
    """Skip the test, or fail it where ``AUTHZ_REQUIRE_ALL=1`` says that every part must be there."""
    text = f"needs {part}: {how}"
    if os.environ.get("AUTHZ_REQUIRE_ALL") == "1":
        pytest.fail(text)
    pytest.skip(text)
