"""Each trap is planted in a real mesh, does its harm there, and is found by `istio-check`; what is shipped has none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from authz.config import load as load_rules
from authz.mesh.check import check_mesh
from authz.mesh.objects import read_objects
from authz.mesh.traps import Trap
from tests.istio.cluster import Object
from tests.istio.files import ROOT, istio_object, load, mesh_config
from tests.istio.mesh import Mesh
from tests.istio.workloads import deployment, give_address
from tests.istio.workloads import service as service_of
from tests.manifests.render import build

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

RULES = Path(__file__).with_name("rules.yaml")
GATEWAY = "policies/gateway.yaml"


def found(folder: Path, *objects: Object, rules: Path = RULES) -> set[Trap]:
    """Return what `istio-check --rules` finds in these objects."""
    file = folder / "mesh.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    read, problems = read_objects([file], io.BytesIO())
    assert not problems
    loaded = load_rules(rules, environ={"DEMO_ISSUER": "https://sso.example.com/realms/shop"})
    return {its.trap for its in check_mesh(read, rules=loaded, rules_file=str(rules))}


def config(**changes: object) -> Object:
    """Return the shipped mesh configuration with other settings of the provider."""
    mesh = yaml.safe_load(load("mesh-config/configmap.yaml")[0]["data"]["mesh"])
    settings = mesh["extensionProviders"][0]["envoyExtAuthzGrpc"]
    for name, value in changes.items():
        settings.pop(name) if value is None else settings.update({name: value})
    return mesh_config(mesh)


def policy(**operation: list[str]) -> Object:
    its = load(GATEWAY)[0]
    its["spec"]["rules"] = [{"to": [{"operation": operation}]}]
    return its


def shipped() -> Iterator[Object]:
    """Yield what a mesh needs, as shipped."""
    yield from (*load("mesh-config/configmap.yaml"), *load(GATEWAY), *load("authorizer/callers.yaml"))
    yield from load("authorizer/sidecar-egress.yaml")
    yield from (its for its in yaml.safe_load_all(build("base")) if its)


def test_in_what_is_shipped_nothing_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, *shipped(), rules=ROOT / "manifests" / "base" / "rules.yaml") == set()


@contextmanager
def down(mesh: Mesh) -> Iterator[None]:
    mesh.call(mesh.recorder.stop())
    try:
        yield
    finally:
        mesh.call(mesh.recorder.start())


def forged_passes(mesh: Mesh) -> None:
    answer = mesh.get("/public/news", x__user="mallory")
    assert dict(answer.json()["headers"])["x-user"] == "mallory"


def slashes_pass(mesh: Mesh) -> None:
    assert mesh.get("//orders/7").status_code == 200
    assert mesh.get("/orders/7").status_code == 401


def encoded_slash_passes(mesh: Mesh) -> None:
    assert mesh.get("/public/..%2forders/7").status_code == 200


def other_method_passes(mesh: Mesh) -> None:
    assert mesh.get("/orders/7", method="POST").status_code == 200
    assert mesh.get("/orders/7").status_code == 401


def host_with_port_passes(mesh: Mesh) -> None:
    assert mesh.get("/orders/7", host="shop.example.com:80").status_code == 200
    assert mesh.get("/orders/7").status_code == 401


def header_decides(mesh: Mesh) -> None:
    assert mesh.get("/orders/7", x__check="no").status_code == 200
    assert mesh.get("/orders/7", x__check="yes").status_code == 401


def outage_lets_in(mesh: Mesh) -> None:
    with down(mesh):
        assert mesh.get("/orders/7").status_code == 200


def outage_reads_as_a_denial(mesh: Mesh) -> None:
    with down(mesh):
        assert mesh.get("/orders/7").status_code == 403


def everything_is_denied(mesh: Mesh) -> None:
    before = mesh.count()
    answer = mesh.get("/public/news")
    assert (answer.status_code, answer.text) == (403, "RBAC: access denied")
    assert mesh.count() == before


def everything_is_503(mesh: Mesh) -> None:
    assert mesh.get("/public/news").status_code == 503


def by_header() -> Object:
    its = load(GATEWAY)[0]
    its["spec"]["rules"] = [{"when": [{"key": "request.headers[x-check]", "values": ["yes"]}]}]
    return its


def annotated() -> Object:
    its = load(GATEWAY)[0]
    its["metadata"]["annotations"] = {"istio.io/dry-run": "true"}
    return its


def of_provider(name: str) -> Object:
    its = load(GATEWAY)[0]
    its["spec"]["provider"] = {"name": name}
    return its


def service(**port: object) -> Object:
    """Return the shipped Service with another gRPC port."""
    its: Object = next(its for its in yaml.safe_load_all(build("base")) if its and its["kind"] == "Service")
    its["spec"]["ports"][0] = {"name": "authz", "port": 9001, "targetPort": "grpc", "protocol": "TCP", **port}
    return its


def at_nobody() -> list[Object]:
    its = load(GATEWAY)[0]
    its["spec"]["selector"] = {"matchLabels": {"istio": "ingress"}}
    return [its, gateway()]


def gateway() -> Object:
    """Return the Deployment of the gateway, which only the check looks at."""
    ports = {"http": 8080}
    return deployment("istio-ingressgateway", "istio-ingress", {"istio": "ingressgateway"}, ports, "gateway")


def by_port(number: str) -> list[Object]:
    port = {"name": "http", "port": 80, "targetPort": 8080}
    front = service_of("istio-ingressgateway", "istio-ingress", {"istio": "ingressgateway"}, [port])
    return [policy(ports=[number]), gateway(), give_address(front, 10)]


def without_the_filter() -> Object:
    """Return an EnvoyFilter that takes out what a CUSTOM policy put in."""
    manager = {"name": "envoy.filters.network.http_connection_manager"}
    match = {"filter": {**manager, "subFilter": {"name": "envoy.filters.http.ext_authz"}}}
    patch = {
        "applyTo": "HTTP_FILTER",
        "match": {"context": "GATEWAY", "listener": {"filterChain": match}},
        "patch": {"operation": "REMOVE"},
    }
    spec = {"workloadSelector": {"labels": {"istio": "ingressgateway"}}, "configPatches": [patch]}
    return istio_object("networking.istio.io/v1alpha3", "EnvoyFilter", "no-authz", "istio-ingress", spec)


def everything_passes(mesh: Mesh) -> None:
    assert mesh.get("/orders/7").status_code == 200


def brackets_pass(mesh: Mesh) -> None:
    assert mesh.get("/orders/[7]").status_code == 200
    assert mesh.get("/orders/7").status_code == 401


PLANTED: list[tuple[Trap, Callable[[], list[Object]], Callable[[Mesh], None]]] = [
    (Trap.IDENTITY_HEADERS_PASS, lambda: [policy(paths=["/orders/*"])], forged_passes),
    (Trap.PATH_NORMALIZATION_BASE, lambda: [policy(paths=["/orders/*"]), config()], slashes_pass),
    (Trap.NOT_PATHS_BYPASS, lambda: [policy(notPaths=["/public/*"]), config()], encoded_slash_passes),
    (Trap.METHODS_NOT_ASKED, lambda: [policy(methods=["GET"])], other_method_passes),
    (Trap.HOST_PORT_NOT_ASKED, lambda: [policy(hosts=["shop.example.com"])], host_with_port_passes),
    (Trap.ASKED_BY_HEADER, lambda: [by_header()], header_decides),
    (Trap.SELECTS_NOTHING, at_nobody, everything_passes),
    (Trap.PORTS_MATCH_NOTHING, lambda: by_port("80"), everything_passes),
    (Trap.PATH_TEMPLATE_BYPASS, lambda: [policy(paths=["/{**}"])], brackets_pass),
    (Trap.FILTER_DISABLED, lambda: [without_the_filter(), *load(GATEWAY)], everything_passes),
    (Trap.FAIL_OPEN, lambda: [config(failOpen=True), *load(GATEWAY)], outage_lets_in),
    (Trap.STATUS_ON_ERROR_MISSING, lambda: [config(statusOnError=None), *load(GATEWAY)], outage_reads_as_a_denial),
    (Trap.UNKNOWN_PROVIDER, lambda: [config(), of_provider("no-such-provider")], everything_is_denied),
    (Trap.CUSTOM_DRY_RUN, lambda: [annotated()], everything_is_denied),
    (Trap.PROVIDER_INVALID, lambda: [config(statusOnError="599"), *load(GATEWAY)], everything_is_denied),
    (Trap.SERVICE_PORT_NOT_GRPC, lambda: [config(), service(), *load(GATEWAY)], everything_is_503),
    (
        Trap.SERVICE_PORT_MISSING,
        lambda: [config(port=9009), service(appProtocol="grpc"), *load(GATEWAY)],
        everything_is_503,
    ),
]


@pytest.mark.parametrize(("trap", "plant", "harm"), PLANTED, ids=[str(trap) for trap, _, _ in PLANTED])
def test_a_planted_trap_does_harm_and_is_found(
    mesh: Mesh, tmp_path: Path, trap: Trap, plant: Callable[[], list[Object]], harm: Callable[[Mesh], None]
) -> None:
    objects = plant()
    assert trap in found(tmp_path, *objects)
    with mesh.applied(*objects):
        harm(mesh)


def test_claims_written_after_the_service_override_identity_headers_and_are_found(mesh: Mesh, tmp_path: Path) -> None:
    its = load("policies/request-authentication.yaml")[0]
    assert Trap.CLAIMS_OVERRIDE_IDENTITY not in found(tmp_path, *load(GATEWAY), its)
    rule = its["spec"]["jwtRules"][0]
    rule["outputClaimToHeaders"] = [{"header": "x-user", "claim": "jti"}]
    assert Trap.CLAIMS_OVERRIDE_IDENTITY in found(tmp_path, *load(GATEWAY), its)
    rule |= {"issuer": mesh.provider.issuer, "jwks": httpx.get(f"{mesh.provider.issuer}/jwks", trust_env=False).text}
    del rule["jwksUri"]
    with mesh.applied(*load(GATEWAY), its):
        answer = mesh.get("/orders/7", authorization=mesh.token("alice", jti="something else"))
        assert dict(answer.json()["headers"])["x-user"] == "something else"


def test_a_sidecar_that_hides_the_provider_is_found(tmp_path: Path) -> None:
    """What it does to requests stands in the tests of the policies."""
    its = load("authorizer/sidecar-egress.yaml")[0]
    given = [*load("mesh-config/configmap.yaml"), *load("policies/workload.yaml")]
    assert Trap.SIDECAR_EGRESS_HIDES_PROVIDER not in found(tmp_path, *given, its)
    its["spec"]["egress"][0]["hosts"].pop()
    assert Trap.SIDECAR_EGRESS_HIDES_PROVIDER in found(tmp_path, *given, its)


def test_two_providers_without_istiod_s_flag_are_found(tmp_path: Path) -> None:
    values = load("several-providers/values.yaml")[0]
    policies = load("several-providers/policies.yaml")
    assert Trap.SEVERAL_PROVIDERS not in found(tmp_path, values, *policies)
    values["pilot"]["env"] = {}
    assert Trap.SEVERAL_PROVIDERS in found(tmp_path, values, *policies)


def test_an_envoy_filter_that_fails_open_is_found(tmp_path: Path) -> None:
    its = load("envoy-filter/gateway.yaml")[0]
    assert Trap.FAIL_OPEN not in found(tmp_path, its)
    its["spec"]["configPatches"][0]["patch"]["value"]["typed_config"]["failure_mode_allow"] = True
    assert Trap.FAIL_OPEN in found(tmp_path, its)
