"""What stands in the cluster before any policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.istio.cluster import Object
from tests.istio.files import istio_object, load, mesh_config
from tests.istio.workloads import deployment, expose, give_address, namespace, run_pod, service

if TYPE_CHECKING:
    from tests.istio.mesh import Mesh

NAMESPACES: Final = ("istio-system", "istio-ingress", "authz", "authz-partners", "shop", "echoserver", "monitoring")
GATEWAY_LABELS: Final = {"istio": "ingressgateway", "gateway.networking.k8s.io/gateway-name": "public"}
AUTHZ_LABELS: Final = {"app.kubernetes.io/name": "authz"}
_PLUMBING: Final = {
    "rootNamespace": "istio-system",
    "trustDomain": "cluster.local",
    "ingressControllerMode": "OFF",
    "enableAutoMtls": True,
    "accessLogFile": "",
}


def make_world(mesh: Mesh) -> list[Object]:
    """Return what stands in the cluster before any policy: who runs, and how the authorizer is called and guarded."""
    http = {"name": "http", "port": 80, "targetPort": "http"}
    tcp = {"name": "tcp", "port": 5432, "targetPort": "tcp"}
    gateway = deployment(
        "istio-ingressgateway", "istio-ingress", GATEWAY_LABELS, {"http": 8080}, "istio-ingressgateway"
    )
    authz = mesh.manifest("Deployment")
    pods = [run_pod(gateway, mesh.gateway), mesh.pod_of_app(), run_pod(authz, mesh.authz)]
    services = [
        service("istio-ingressgateway", "istio-ingress", {"istio": "ingressgateway"}, [http]),
        service(mesh.name, mesh.namespace, {"app": mesh.name}, [http, tcp]),
        mesh.manifest("Service"),
    ]
    strict = istio_object(
        "security.istio.io/v1", "PeerAuthentication", "strict", mesh.namespace, {"mtls": {"mode": "STRICT"}}
    )
    return [
        *map(namespace, NAMESPACES),
        *load("mesh-config/configmap.yaml"),
        mesh_config(_PLUMBING) | {"metadata": {"name": "plumbing", "namespace": "istio-system"}},
        make_marker(0),
        *(give_address(its, 10 + number) for number, its in enumerate(services)),
        *pods,
        *(expose(its, pod) for its, pod in zip(services, pods, strict=True)),
        *make_routes(mesh),
        *(its for its in mesh.manifests if its["kind"] in {"Namespace", "ServiceAccount", "ConfigMap"}),
        strict,
        *load("authorizer/callers.yaml"),
        *load("authorizer/destination-rule.yaml"),
        mesh.sidecar_of_app(["authz/*"]),
        sidecar("authz", AUTHZ_LABELS, [(mesh.authz, 9001, "GRPC", mesh.recorder.port)], []),
    ]


def make_routes(mesh: Mesh) -> list[Object]:
    """Return the routes of every host to the application."""
    server = {"bind": mesh.gateway, "port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
    destination = {"host": f"{mesh.name}.{mesh.namespace}.svc.cluster.local", "port": {"number": 80}}
    spec = {"hosts": ["*"], "gateways": ["everything"], "http": [{"route": [{"destination": destination}]}]}
    return [
        istio_object(
            "networking.istio.io/v1",
            "Gateway",
            "everything",
            "istio-ingress",
            {"selector": {"istio": "ingressgateway"}, "servers": [server]},
        ),
        istio_object("networking.istio.io/v1", "VirtualService", "everything", "istio-ingress", spec),
    ]


def make_gateway_api(mesh: Mesh) -> list[Object]:
    """Return the same with objects of the Gateway API."""
    version = "gateway.networking.k8s.io/v1"
    listener = {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    # A gateway that was deployed by hand: the address names its Service.
    address = {"type": "Hostname", "value": "istio-ingressgateway.istio-ingress.svc.cluster.local"}
    gateway = {"gatewayClassName": "istio", "addresses": [address], "listeners": [listener]}
    route = {
        "parentRefs": [{"name": "public", "namespace": "istio-ingress"}],
        "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}],
    }
    # It knows no bind address: keep the listener on loopback.
    bind = {"address": {"socket_address": {"address": mesh.gateway, "port_value": 8080}}}
    patch = {"applyTo": "LISTENER", "match": {"context": "GATEWAY"}, "patch": {"operation": "MERGE", "value": bind}}
    filters = "networking.istio.io/v1alpha3"
    return [
        {
            "apiVersion": version,
            "kind": "GatewayClass",
            "metadata": {"name": "istio"},
            "spec": {"controllerName": "istio.io/gateway-controller"},
        },
        istio_object(version, "Gateway", "public", "istio-ingress", gateway),
        istio_object(version, "HTTPRoute", "orders", "shop", route),
        istio_object(filters, "EnvoyFilter", "loopback", "istio-ingress", {"configPatches": [patch]}),
    ]


def sidecar(where: str, labels: dict[str, str], ingress: list[tuple[str, int, str, int]], egress: list[str]) -> Object:
    """Return what binds a sidecar to its pod's address, and lets it know these hosts on the authorizer's port."""
    spec: Object = {
        "workloadSelector": {"labels": labels},
        "ingress": [
            {
                "bind": bind,
                "captureMode": "NONE",
                "defaultEndpoint": f"127.0.0.1:{port}",
                "port": {"number": number, "name": f"{protocol.lower()}-{number}", "protocol": protocol},
            }
            for bind, number, protocol, port in ingress
        ],
        "egress": [{"hosts": ["~/*"]}],
    }
    if egress:
        port = {"number": 9001, "name": "grpc-authz", "protocol": "GRPC"}
        spec["egress"] = [{"bind": ingress[0][0], "captureMode": "NONE", "hosts": egress, "port": port}]
    return istio_object("networking.istio.io/v1", "Sidecar", "here", where, spec)


def make_marker(generation: int) -> Object:
    """Return what writes a number on every listener, so that what was written with it is seen to have arrived."""
    metadata = {"filter_metadata": {"marker": {"generation": str(generation)}}}
    patch = {"applyTo": "LISTENER", "match": {"context": "ANY"}}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "marker", "namespace": "istio-system"},
        "spec": {"configPatches": [{**patch, "patch": {"operation": "MERGE", "value": {"metadata": metadata}}}]},
    }
