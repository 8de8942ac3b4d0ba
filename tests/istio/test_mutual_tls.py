"""Who is who between the proxies: identities as istiod really has them set, and impostors."""

from __future__ import annotations

import ssl

import grpc
import pytest

from tests.istio.certificates import Trust
from tests.istio.files import load
from tests.istio.mesh import GATEWAY, Mesh
from tests.istio.talk import ask_authorizer, call_over_tls

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1_500)]

STRANGER = "other.example/ns/istio-ingress/sa/istio-ingressgateway"


def test_the_sidecar_tells_the_service_who_called(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/workload.yaml")):
        forwarded = f"By=spiffe://cluster.local/ns/x/sa/y;URI=spiffe://{STRANGER}"
        answer = mesh.get("/public/news", x__forwarded__client__cert=forwarded)
        assert answer.status_code == 200
        attributes = mesh.recorder.asked[-1].message.attributes
        assert attributes.source.principal == f"spiffe://{GATEWAY}"
        assert attributes.destination.principal == "spiffe://cluster.local/ns/shop/sa/orders"
        asked = attributes.request.http.headers["x-forwarded-client-cert"]
        assert "By=spiffe://cluster.local/ns/shop/sa/orders;" in asked
        assert f"URI=spiffe://{GATEWAY}" in asked
        assert STRANGER not in asked
        upstream = dict(answer.json()["headers"])["x-forwarded-client-cert"]
        assert f"URI=spiffe://{GATEWAY}" in upstream
        assert STRANGER not in upstream


def test_the_gateway_knows_no_principal_of_a_client_in_plain_text(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/gateway.yaml")):
        assert mesh.get("/public/news").status_code == 200
        assert mesh.recorder.asked[-1].message.attributes.source.principal == ""


def test_another_trust_domain_is_refused_and_the_own_is_not(mesh: Mesh) -> None:
    with mesh.applied(*load("policies/workload.yaml")):
        before = mesh.count()
        assert call_over_tls(mesh, GATEWAY, "/public/news").status == 200
        assert mesh.count() == before + 1
        for identity, trust in ((STRANGER, None), (GATEWAY, Trust())):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                call_over_tls(mesh, identity, "/public/news", trust)
        assert mesh.count() == before + 1


@pytest.mark.parametrize("namespace", ["istio-ingress", "shop"])
def test_the_mesh_s_proxies_may_ask_the_authorizer(mesh: Mesh, namespace: str) -> None:
    answer = ask_authorizer(mesh, f"cluster.local/ns/{namespace}/sa/any")
    assert answer.WhichOneof("http_response") == "ok_response"


@pytest.mark.parametrize(
    ("identity", "code", "words"),
    [
        ("cluster.local/ns/default/sa/any", grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied"),
        (STRANGER, grpc.StatusCode.UNAVAILABLE, ""),
        (None, grpc.StatusCode.UNAVAILABLE, ""),
    ],
)
def test_nobody_else_may_ask_it(mesh: Mesh, identity: str | None, code: grpc.StatusCode, words: str) -> None:
    before = mesh.count()
    with pytest.raises(grpc.RpcError) as refused:
        ask_authorizer(mesh, identity)
    call: grpc.Call = refused.value  # type: ignore[assignment]  # an RpcError of a call is one
    assert (call.code(), words in str(call.details())) == (code, True)
    assert mesh.count() == before
