"""The policies of `istio/`, as istiod understands them, through a real gateway and a real sidecar."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.istio.cluster import Object
from tests.istio.files import load
from tests.istio.mesh import GATEWAY, Mesh
from tests.istio.talk import call_over_tls, tell
from tests.servers.service import RULES, RunningProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

ASKERS = ("policies/gateway.yaml", "policies/gateway-hosts.yaml", "policies/namespace.yaml", "policies/workload.yaml")
"""Each makes every request to the shop ask, at the gateway or at the sidecar."""


def _seen(answer: httpx.Response) -> list[list[str]]:
    """Return the headers that the upstream got."""
    headers: list[list[str]] = answer.json()["headers"]
    return headers


def _named(answer: httpx.Response, *names: str) -> dict[str, str]:
    return {name: value for name, value in _seen(answer) if name in names}


@pytest.mark.parametrize("file", ASKERS)
def test_every_request_asks_and_the_answer_holds(mesh: Mesh, file: str) -> None:
    with mesh.applied(*load(file)):
        before = mesh.count()
        allowed = mesh.get("/orders/7", authorization=mesh.token("alice"), x__user="mallory", x_roles="orders-admin")
        assert allowed.status_code == 200
        assert _named(allowed, "x-user", "x-roles", "x_roles") == {"x-user": "alice", "x-roles": "orders-reader"}
        assert mesh.count() == before + 1

        without = mesh.get("/orders/7")
        assert (without.status_code, mesh.reason()) == (401, "no_credential")
        assert without.headers["www-authenticate"].startswith("Bearer")
        assert without.headers["cache-control"] == "no-store"
        wrong = mesh.get("/orders/7", authorization=mesh.token("bob"))
        assert (wrong.status_code, mesh.reason()) == (403, "role_missing")
        unknown = mesh.get("/nowhere", authorization=mesh.token("alice"))
        assert (unknown.status_code, mesh.reason()) == (403, "no_rule")
        public = mesh.get("/public/news", x__user="mallory", x_user="mallory")
        assert (public.status_code, public.headers["x-authz"]) == (200, "checked")
        assert _named(public, "x-user", "x_user") == {}
        plain = mesh.get("/plain/x", authorization=mesh.token("alice"))
        assert plain.status_code == 200
        assert _named(plain, "authorization", "x-user") == {"x-user": "alice"}
        assert mesh.count() == before + 6


def test_without_a_policy_nobody_is_asked(mesh: Mesh) -> None:
    before = mesh.count()
    answer = mesh.get("/orders/7", x__user="mallory")
    assert (answer.status_code, _named(answer, "x-user")) == (200, {"x-user": "mallory"})
    assert mesh.count() == before


def test_a_gateway_of_the_gateway_api_asks(mesh: Mesh) -> None:
    with mesh.routed_by_gateway_api(), mesh.applied(*load("policies/gateway-api.yaml")):
        before = mesh.count()
        allowed = mesh.get("/orders/7", authorization=mesh.token("alice"), x__user="mallory")
        assert (allowed.status_code, _named(allowed, "x-user")) == (200, {"x-user": "alice"})
        assert mesh.get("/orders/7").status_code == 401
        assert mesh.count() == before + 2


def test_a_host_is_the_same_with_a_port_and_in_capitals(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/gateway-hosts.yaml")):
        for host in (
            "shop.example.com",
            "shop.example.com:80",
            "SHOP.example.com",
            "shop.example.com.",
            "shop.example.com.:80",
        ):
            before = mesh.count()
            assert mesh.get("/orders/7", host=host).status_code == 401, host
            assert mesh.count() == before + 1, host


def test_paths_in_a_policy_leave_identity_headers_untouched(mesh: Mesh) -> None:
    """The trap that whole hosts avoid: on what is not matched, a client is whoever it says."""
    policy = load("policies/gateway.yaml")[0]
    policy["spec"]["rules"] = [{"to": [{"operation": {"paths": ["/orders/*"]}}]}]
    with mesh.applied(policy):
        before = mesh.count()
        forged = mesh.get("/public/news", x__user="mallory")
        assert (forged.status_code, _named(forged, "x-user")) == (200, {"x-user": "mallory"})
        assert mesh.count() == before
        assert mesh.get("/orders/7", x__user="mallory").status_code == 401


def test_a_health_check_that_is_left_out_brings_no_identity(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/health.yaml")):
        before = mesh.count()
        assert mesh.get("/healthz").status_code == 200
        for name in ("x-user", "x_user", "x.user", "x-roles", "x_roles", "x.roles"):
            forged = mesh.get("/healthz", **{name.replace("-", "__"): "mallory"})
            assert (forged.status_code, forged.text) == (403, "RBAC: access denied"), name
        assert mesh.count() == before
        asked = {"/healthz/": 200, "/healthz/../orders/7": 401, "//healthz": 400, "/healthz;x": 400, "/healthz%2f": 400}
        for path, status in asked.items():
            before = mesh.count()
            assert mesh.get(path).status_code == status, path
            assert mesh.count() == before + 1, path
        assert mesh.get("/healthz", method="POST").status_code == 403
        assert mesh.count() == before + 2


def test_istio_verifies_the_token_again_after_the_service(mesh: Mesh) -> None:
    asking, (again,) = load("policies/gateway.yaml"), _request_authentication(mesh)
    with mesh.applied(*asking, again):
        before = mesh.count()
        good = mesh.get("/orders/7", authorization=mesh.token("alice"))
        assert (good.status_code, _named(good, "x-user")) == (200, {"x-user": "alice"})
        assert _named(good, "authorization")["authorization"].startswith("Bearer ey")
        removed = mesh.get("/plain/x", authorization=mesh.token("alice"))
        assert (removed.status_code, _named(removed, "x-user")) == (200, {"x-user": "alice"})
        assert mesh.count() == before + 2
    again["spec"]["jwtRules"][0]["audiences"] = ["another-api"]
    with mesh.applied(*asking, again):
        before = mesh.count()
        refused = mesh.get("/orders/7", authorization=mesh.token("alice"))
        assert (refused.status_code, refused.text) == (403, "Audiences in Jwt are not allowed")
        assert mesh.count() == before + 1


def _request_authentication(mesh: Mesh) -> list[Object]:
    """Return the file's object with the keys inside: istiod cannot fetch them where the file says."""
    objects = load("policies/request-authentication.yaml")
    rule = objects[0]["spec"]["jwtRules"][0]
    rule["issuer"] = mesh.provider.issuer
    rule["jwks"] = httpx.get(f"{mesh.provider.issuer}/jwks", trust_env=False).text
    del rule["jwksUri"]
    return objects


def test_deny_and_allow_hold_after_the_service(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/gateway.yaml"), *load("policies/allow-and-deny.yaml")):
        before = mesh.count()
        denied = mesh.get("/internal/x")
        assert (denied.status_code, denied.text) == (403, "RBAC: access denied")
        assert mesh.get("/orders/7", authorization=mesh.token("alice")).status_code == 200
        odd = mesh.get("/orders/7", method="PROPFIND", authorization=mesh.token("alice"))
        assert (odd.status_code, odd.text) == (403, "RBAC: access denied")
        assert mesh.count() == before + 3


def test_deny_all_lets_in_what_came_through_the_gateway(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/workload.yaml"), *load("policies/deny-all.yaml")):
        assert mesh.get("/orders/7", authorization=mesh.token("alice")).status_code == 200
        before = mesh.count()
        for identity, status in ((GATEWAY, 200), ("cluster.local/ns/shop/sa/other", 403)):
            answer = call_over_tls(mesh, identity, "/orders/7", authorization=mesh.token("alice"))
            assert answer.status == status, identity
        assert answer.body == "RBAC: access denied"
        assert mesh.count() == before + 2


def test_an_authorizer_that_is_down_is_503_until_it_is_back(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/gateway.yaml")):
        mesh.call(mesh.recorder.stop())
        try:
            down = mesh.get("/public/news")
            assert (down.status_code, down.text) == (503, "")
        finally:
            mesh.call(mesh.recorder.start())
        until = time.monotonic() + 20  # outlier detection and reconnecting take their time
        while (back := mesh.get("/public/news")).status_code != 200:
            assert (back.status_code, time.monotonic() < until) == (503, True)
            time.sleep(0.1)


def test_a_slow_authorizer_is_503_at_the_timeout(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/gateway.yaml")):
        mesh.recorder.delay_s = 3
        try:
            started = time.monotonic()
            slow = mesh.get("/public/news")
        finally:
            mesh.recorder.delay_s = 0
        assert (slow.status_code, slow.text) == (503, "")
        assert 0.45 <= time.monotonic() - started < 2.5
        assert mesh.get("/public/news").status_code == 200
        patience_s = mesh.recorder.asked[-1].patience_s
        assert patience_s is not None
        assert 0 < patience_s <= 0.5


def test_several_providers_each_with_its_hosts(mesh: Mesh) -> None:
    values, policies = load("several-providers/values.yaml")[0], load("several-providers/policies.yaml")
    with mesh.applied(*mesh.second_service()), mesh.configured(values["meshConfig"]), mesh.applied(*policies):
        for host, service in (("shop.example.com", "authz"), ("partners.example.com:80", "authz-partners")):
            before, calls = mesh.count(), mesh.calls()
            assert mesh.get("/public/news", host=host).headers["x-authz"] == "checked"
            assert mesh.count() == before + 1
            assert {name for name, count in mesh.calls().items() if count > calls.get(name, 0)} == {service}
        unknown = mesh.get("/orders/7", host="partners.example.com", authorization=mesh.token("alice"))
        assert (unknown.status_code, mesh.reason()) == (403, "no_rule")


def test_a_provider_that_the_mesh_does_not_know_denies_what_would_ask(mesh: Mesh) -> None:
    policy = load("policies/gateway-hosts.yaml")[0]
    policy["spec"]["provider"] = {"name": "no-such-provider"}
    with mesh.applied(policy):
        before = mesh.count()
        denied = mesh.get("/public/news")
        assert (denied.status_code, denied.text) == (403, "RBAC: access denied")
        assert mesh.get("/public/news", host="other.example.com").status_code == 200
        assert mesh.count() == before


def test_a_sidecar_whose_egress_hides_the_service_answers_503(mesh: Mesh) -> None:
    """The shipped hosts hold; without the service among them its cluster is not there."""
    hosts = load("authorizer/sidecar-egress.yaml")[0]["spec"]["egress"][0]["hosts"]
    here = mesh.sidecar_of_app(hosts)
    hidden = mesh.sidecar_of_app([its for its in hosts if not its.startswith("authz/")])
    with mesh.applied(*load("policies/workload.yaml")):
        with mesh.applied(here):
            assert mesh.get("/public/news").status_code == 200
        with mesh.applied(hidden):
            before = mesh.count()
            answer = mesh.get("/public/news")
            assert (answer.status_code, mesh.count()) == (503, before)
            assert "authz.authz" not in mesh.clusters("app")


@pytest.mark.parametrize("at", ["gateway", "sidecar"])
def test_an_envoy_filter_does_what_the_provider_does(mesh: Mesh, at: str) -> None:
    filters = load(f"envoy-filter/{at}.yaml")
    with mesh.applied(*filters):
        before = mesh.count()
        allowed = mesh.get("/orders/7", authorization=mesh.token("alice"), x__user="mallory")
        assert (allowed.status_code, _named(allowed, "x-user")) == (200, {"x-user": "alice"})
        http = mesh.recorder.asked[-1].message.attributes.request.http
        assert {its.key for its in http.header_map.headers} >= {"x-user", ":path"}
        assert mesh.get("/orders/7").status_code == 401
        assert mesh.count() == before + 2
        names = mesh.http_filters("gateway" if at == "gateway" else "app")
        assert names[0] == "envoy.filters.http.ext_authz"
        assert names[-1] == "envoy.filters.http.router"


def test_what_the_envoy_filter_names_as_a_choice_works(mesh: Mesh) -> None:
    filters = load("envoy-filter/sidecar.yaml")
    chosen = load("envoy-filter/sidecar.yaml", "# include_peer_certificate", "# metadata_context_namespaces")
    with mesh.applied(*filters):
        assert mesh.get("/public/news").status_code == 200
        assert not mesh.recorder.asked[-1].message.attributes.source.certificate
    with mesh.applied(*chosen):
        assert mesh.get("/public/news").status_code == 200
        assert "BEGIN%20CERTIFICATE" in mesh.recorder.asked[-1].message.attributes.source.certificate


@pytest.mark.parametrize(("name", "status"), [("authz.example.com", 200), ("other.example.com", 503)])
def test_an_authorizer_outside_the_mesh_is_called_over_tls_by_its_name(
    mesh: Mesh, tmp_path: Path, name: str, status: int
) -> None:
    ca, certificate, key = (tmp_path / its for its in ("ca.pem", "tls.pem", "tls.key"))
    ca.write_bytes(mesh.trust.root)
    for file, content in zip((certificate, key), mesh.trust.issue("outside", name), strict=True):
        file.write_bytes(content)
    rules = tmp_path / "rules.yaml"
    tls = f"grpc: [{{address: '127.0.0.1:0', tls: {{cert_file: {certificate}, key_file: {key}}}}}]"
    rules.write_text(f"{RULES}\nserver:\n  {tls}\n  http: 127.0.0.1:0\n  drain_s: 0\n")
    service = RunningProcess(rules)
    mesh.call(service.start({}))
    try:
        entry, rule = load("authorizer/outside-mesh.yaml")
        port = int(service.address.rpartition(":")[2])
        entry["spec"] |= {
            "resolution": "STATIC",
            "endpoints": [{"address": "127.0.0.1", "ports": {"grpc-authz": port}}],
        }
        rule["spec"]["trafficPolicy"]["tls"]["caCertificates"] = str(ca)
        config = yaml.safe_load(load("mesh-config/configmap.yaml")[0]["data"]["mesh"])
        config["extensionProviders"][0]["envoyExtAuthzGrpc"]["service"] = "authz.example.com"
        with mesh.applied(entry, rule), mesh.configured(config), mesh.applied(*load("policies/gateway.yaml")):
            assert mesh.get("/x", host="a.example").status_code == status
        assert len(service.lines) == (1 if status == 200 else 0)
    finally:
        mesh.call(service.stop())


def test_a_tcp_service_is_denied(mesh: Mesh) -> None:
    with mesh.applied():
        assert tell(mesh, GATEWAY, 5432, b"select 1") == b"hello"
    for file in ("policies/workload.yaml", "envoy-filter/sidecar.yaml"):
        with mesh.applied(*load(file)):
            before = mesh.count()
            assert tell(mesh, GATEWAY, 5432, b"select 1") == b"", file
            assert mesh.count() == before + 1, file
            assert not mesh.recorder.asked[-1].message.attributes.HasField("request")
