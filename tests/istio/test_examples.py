"""The whole examples, each with its own rules: Keycloak's groups, deny-all, locks in a row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from authz.demo.service import choose_door
from tests.istio.conftest import SERVER
from tests.istio.files import ROOT, load
from tests.istio.mesh import GATEWAY, Mesh, started
from tests.istio.talk import call_over_tls
from tests.istio.workloads import expose, give_address, run_pod, service
from tests.manifests.render import build, template
from tests.parts import require_envoy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

ISSUER = "https://sso.example.com/realms/shop"
INTERNAL = "    internal_url: http://keycloak.keycloak.svc.cluster.local:8080/realms/shop\n"
DOOR = "server: {door: fast, deadline_ms: 400}"


def _rules(name: str) -> str:
    """Return an example's rules with a provider that is here."""
    text = (ROOT / "istio" / name / "rules.yaml").read_text()
    assert [text.count(its) for its in (ISSUER, INTERNAL, DOOR)] == [1, 1, 1]
    text = text.replace(INTERNAL, "").replace(ISSUER, "${env:DEMO_ISSUER}")
    return text.replace(DOOR, SERVER.format(door=choose_door()))


@pytest.fixture(scope="module")
def echoserver() -> Iterator[Mesh]:
    require_envoy()
    with started(_rules("echoserver"), template(), ("echoserver", "echoserver")) as mesh:
        app = {its["kind"]: its for its in load("echoserver/app.yaml")}
        pod = run_pod(app["Deployment"], mesh.app)
        objects = [
            pod,
            give_address(app["Service"], 30),
            expose(app["Service"], pod),
            *load("echoserver/policies.yaml"),
        ]
        with mesh.applied(*objects), mesh.routed_by(*load("echoserver/gateway.yaml")):
            yield mesh


def test_members_of_the_group_come_in(echoserver: Mesh) -> None:
    host = "echoserver.example.com"
    user = {"aud": ["echoserver"], "groups": ["/echoserver-users/berlin"]}
    member = echoserver.get("/", host, authorization=echoserver.token("alice", **user), x__groups="/echoserver-admins")
    assert member.status_code == 200
    assert dict(member.json()["headers"])["x-groups"] == "echoserver-users/berlin"
    for claims, reason in (
        ({**user, "groups": ["/others"]}, "group_missing"),
        ({**user, "groups": ["/echoserver-users-too"]}, "group_missing"),
        ({**user, "aud": ["orders-api"]}, "audience_mismatch"),
    ):
        denied = echoserver.get("/", host, authorization=echoserver.token("alice", **claims))
        assert (denied.status_code in {401, 403}, echoserver.reason()) == (True, reason)
    admin = {"aud": ["echoserver"], "groups": ["/echoserver-admins"]}
    assert echoserver.get("/admin/x", host, authorization=echoserver.token("alice", **user)).status_code == 403
    assert echoserver.get("/admin/x", host, authorization=echoserver.token("carol", **admin)).status_code == 200


def test_the_gateway_serves_no_other_host_and_the_workload_no_other_caller(echoserver: Mesh) -> None:
    token = echoserver.token("alice", aud=["echoserver"], groups=["/echoserver-users"])
    assert echoserver.get("/", "other.example.com", authorization=token).status_code in {403, 404}
    for identity, status in ((GATEWAY, 200), ("cluster.local/ns/shop/sa/orders", 403)):
        assert call_over_tls(echoserver, identity, "/").status == status, identity


@pytest.fixture(scope="module")
def observability() -> Iterator[Mesh]:
    require_envoy()
    with started(_rules("observability"), build("overlays/production"), ("grafana", "monitoring")) as mesh:
        labels = {"app": "grafana"}
        services = [
            service("grafana", "monitoring", labels, [{"name": "http", "port": 80, "targetPort": 8080}]),
            service("prometheus", "monitoring", labels, [{"name": "http", "port": 9090, "targetPort": 8080}]),
        ]
        pod = mesh.pod_of_app()
        objects = [give_address(its, 30 + number) for number, its in enumerate(services)]
        objects += [expose(its, pod) for its in services]
        gateway, *routes = load("observability/routes.yaml")
        policies = [its for its in routes if its["kind"] != "VirtualService"]
        routes = [its for its in routes if its["kind"] == "VirtualService"]
        with mesh.applied(*objects, *policies, *load("policies/gateway.yaml")), mesh.routed_by(gateway, *routes):
            yield mesh


def test_nobody_but_the_gateway_may_call_grafana(observability: Mesh) -> None:
    for identity, status in ((GATEWAY, 200), ("cluster.local/ns/monitoring/sa/other", 403)):
        assert call_over_tls(observability, identity, "/d/1").status == status, identity


@pytest.mark.parametrize(
    ("groups", "host", "path", "status", "reason"),
    [
        ("/observers", "grafana.example.com", "/d/1", 200, None),
        ("/observers", "prometheus.example.com", "/api/v1/query", 200, None),
        ("/operators", "prometheus.example.com", "/api/v1/admin/tsdb/snapshot", 200, None),
        ("/observers", "prometheus.example.com", "/api/v1/admin/tsdb/snapshot", 403, "group_missing"),
        ("/others", "grafana.example.com", "/d/1", 403, "group_missing"),
        ("/others", "prometheus.example.com", "/api/v1/query", 403, "group_missing"),
    ],
)
def test_observers_look_and_operators_write(
    observability: Mesh, groups: str, host: str, path: str, status: int, reason: str | None
) -> None:
    claims = {"aud": ["observability"], "groups": [groups], "preferred_username": "admin"}
    token = observability.token("7f3a", **claims)
    answer = observability.get(path, host, authorization=token, x__webauth__user="admin")
    assert (answer.status_code, observability.reason()) == (status, reason)
    if host.startswith("grafana") and status == 200:
        seen = dict(answer.json()["headers"])
        assert (seen["x-webauth-user"], seen["x-webauth-name"]) == ("7f3a", "admin")
        assert "authorization" not in seen
