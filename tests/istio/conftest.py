"""One mesh for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from authz.demo.service import choose_door
from tests.istio.mesh import Mesh, started
from tests.manifests.render import build
from tests.parts import require_envoy

SERVER = """
server:
  door: {door}
  workers: 1
  drain_s: 0
  grpc: [{{address: "127.0.0.1:0"}}]
  http: 127.0.0.1:0
"""


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    require_envoy()
    rules = Path(__file__).with_name("rules.yaml").read_text()
    with started(rules + SERVER.format(door=choose_door()), build("base")) as running:
        yield running
        # What a proxy would not take, istiod only logs.
        assert "ACK ERROR" not in (running.folder / "istiod.log").read_text()
