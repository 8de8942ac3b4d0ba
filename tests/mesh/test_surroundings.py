"""Ambient namespaces and ports that are not HTTP are found where they matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from authz.mesh.traps import Trap
from tests.mesh.planting import (
    CLEAN,
    CUSTOM_ORDERS,
    HERE,
    PORT,
    SHOP,
    SPEC,
    Case,
    check,
    envoy_filter,
    span,
)

CASES = {
    "a port that is not HTTP": Case(
        part="    - {name: http, port: 80}\n",
        planted=f"    - {{name: http, port: 80}}\n    - {{name: tcp-raft, port: 81}} {HERE}\n",
        twin="    - {name: http, port: 80}\n    - {name: http-raft, port: 81}\n",
        traps=(Trap.TCP_PORTS_ASKED,),
    ),
    "an ambient namespace": Case(
        part=span(SHOP, SPEC),
        planted=span(SHOP, SPEC)
        .replace("istio-injection: enabled", "istio.io/dataplane-mode: ambient", 1)
        .replace(SPEC, SPEC.replace("spec:", f"spec: {HERE}")),
        twin=span(SHOP, SPEC).replace("enabled}", "enabled, istio.io/dataplane-mode: none}", 1),
        traps=(Trap.SELECTOR_IGNORED,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("port", ["{name: web, port: 80}", "{name: tcp-web, port: 80}"])
def test_a_filter_on_a_port_that_is_not_declared_as_http_is_passed_by(port: str, tmp_path: Path) -> None:
    own = "---\n".join(part for part in CLEAN.split("---\n") if CUSTOM_ORDERS not in part)
    mesh = own.replace(PORT, f"    - {port} {HERE}\n") + envoy_filter("encode_raw_headers: true")
    line = next(number for number, text in enumerate(mesh.split("\n"), 1) if HERE in text)
    assert check(mesh, None, tmp_path) == [("filter_not_on_port", line)]
    for twin in (
        own.replace(PORT, "    - {name: web, port: 80, appProtocol: http}\n")
        + envoy_filter("encode_raw_headers: true"),
        own.replace(PORT, f"    - {port}\n") + envoy_filter("encode_raw_headers: true", "MERGE"),
    ):
        assert check(twin, None, tmp_path) == []
