"""Providers that fail, or fail open, are found, and sound ones are not."""

from __future__ import annotations

from pathlib import Path

from authz.mesh.traps import Trap
from tests.mesh.planting import HERE, OTHER, RULES, STATUS, Case, check, replace, span

TIMEOUT = "          timeout: 1.25s\n"
GRPC_PORT = "    - {name: grpc-authz, port: 9001, appProtocol: grpc}\n"
EGRESS = '    - hosts: ["./*", "istio-system/*", "authz/authz.authz.svc.cluster.local"]\n'
PROTO_NAMES = """extension_providers:
      - name: authz
        envoy_ext_authz_grpc:
          service: authz.authz.svc.cluster.local
          port: 9001
          timeout: 1.25s
          fail_open: {fail_open}
          status_on_error: "503"
"""


CASES = {
    "a meshConfig whose keys have the protocol's own names": Case(
        part=span("extensionProviders:", STATUS),
        planted=PROTO_NAMES.format(fail_open=f"on {HERE}"),
        twin=PROTO_NAMES.format(fail_open="off"),
        traps=(Trap.FAIL_OPEN,),
    ),
    "a text for a boolean": Case(
        part="          failOpen: false\n",
        planted=f'          failOpen: "no" {HERE}\n',
        twin="          failOpen: no\n",
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "failOpen": Case(
        part="          failOpen: false\n",
        planted=f"          failOpen: true {HERE}\n",
        twin="",
        traps=(Trap.FAIL_OPEN,),
    ),
    "no timeout": Case(
        part="      - name: authz\n        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT,
        planted=f"      - name: authz\n        envoyExtAuthzGrpc: {HERE}\n"
        "          service: authz.authz.svc.cluster.local\n          port: 9001\n",
        twin="      - name: authz\n        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n"
        '          port: "9001"\n          timeout: 2s\n',
        traps=(Trap.TIMEOUT_MISSING,),
    ),
    "no statusOnError": Case(
        part="        envoyExtAuthzGrpc:\n          service: authz.authz.svc.cluster.local\n          port: 9001\n"
        + TIMEOUT + "          failOpen: false\n" + STATUS,
        planted=f"        envoyExtAuthzGrpc: {HERE}\n          service: authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT,
        twin="        envoyExtAuthzGrpc:\n          service: authz/authz.authz.svc.cluster.local\n"
        "          port: 9001\n" + TIMEOUT + STATUS,
        traps=(Trap.STATUS_ON_ERROR_MISSING,),
    ),
    "a status that Envoy does not know": Case(
        part=STATUS,
        planted=f'          statusOnError: "599" {HERE}\n',
        twin='          statusOnError: "500"\n',
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a duration that meshConfig does not know": Case(
        part=TIMEOUT,
        planted=f"          timeout: 1.25 {HERE}\n",
        twin="          timeout: 1m0.5s\n",
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a name that istiod refuses": Case(
        part=STATUS,
        planted=STATUS + OTHER.replace("other", "Other").replace("Grpc:", f"Grpc: {HERE}"),
        twin=STATUS + OTHER,
        traps=(Trap.PROVIDER_INVALID,),
    ),
    "a port that the service does not have": Case(
        part="          port: 9001\n",
        planted=f"          port: 9003 {HERE}\n",
        twin="          port: 9001 # the service's\n",
        traps=(Trap.SERVICE_PORT_MISSING,),
    ),
    "a port that says nothing": Case(
        part=GRPC_PORT,
        planted=f"    - {{name: checks, port: 9001}} {HERE}\n",
        twin="    - {name: grpc-checks, port: 9001}\n",
        traps=(Trap.SERVICE_PORT_NOT_GRPC,),
    ),
    "a port whose appProtocol overrules its name": Case(
        part=GRPC_PORT,
        planted=f"    - {{name: grpc, port: 9001, appProtocol: http}} {HERE}\n",
        twin="    - {name: http, port: 9001, appProtocol: kubernetes.io/h2c}\n",
        traps=(Trap.SERVICE_PORT_NOT_GRPC,),
    ),
    "a Sidecar that hides the provider": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - hosts: ["./*", "istio-system/*"]\n',
        twin='  egress:\n    - hosts: ["./*", "authz/*.svc.cluster.local"]\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "a Sidecar that excludes the provider": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - hosts: ["*/*", "~authz/*"]\n',
        twin='  egress:\n    - hosts: ["*/*", "~other/*"]\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "a Sidecar for other ports": Case(
        part="  egress:\n" + EGRESS,
        planted=f'  egress: {HERE}\n    - {{port: {{number: 80}}, hosts: ["*/*"]}}\n',
        twin='  egress:\n    - {port: {number: 9001}, hosts: ["*/*"]}\n',
        traps=(Trap.SIDECAR_EGRESS_HIDES_PROVIDER,),
    ),
    "bodies that are not read": Case(
        part=STATUS,
        planted=STATUS + f"          includeRequestBodyInCheck: {{maxRequestBytes: 1048576}} {HERE}\n",
        twin=STATUS + "          includeRequestBodyInCheck: {maxRequestBytes: 8192}\n",
        traps=(Trap.BODY_OVER_LIMIT,),
        rules=RULES,
    ),
    "a timeout below the deadline": Case(
        part=TIMEOUT,
        planted=f"          timeout: 999ms {HERE}\n",
        twin="          timeout: 1000ms\n",
        traps=(Trap.TIMEOUT_BELOW_DEADLINE,),
        rules=RULES,
    ),
}  # fmt: skip


def test_a_name_that_two_providers_have_is_found_at_both(tmp_path: Path) -> None:
    found = check(replace(STATUS, STATUS + OTHER + OTHER), None, tmp_path)
    assert [its for its, _ in found] == ["provider_invalid", "provider_invalid"]
    assert check(replace(STATUS, STATUS + OTHER + OTHER.replace("other", "more")), None, tmp_path) == []


def test_an_http_provider_is_a_note(tmp_path: Path) -> None:
    mesh = replace("envoyExtAuthzGrpc", "envoyExtAuthzHttp")
    assert [found for found, _ in check(mesh, None, tmp_path)] == ["http_provider"]
