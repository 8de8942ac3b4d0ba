"""What a cluster's controllers make of manifests: pods with an address, and the endpoints of services."""

from __future__ import annotations

from typing import Any

from tests.istio.cluster import Object


def run_pod(workload: Object, address: str) -> Object:
    """Return one pod of a Deployment, as if it ran at the address with a sidecar of the mesh beside it."""
    template = workload["spec"]["template"]
    metadata = workload["metadata"]
    labels = {**template["metadata"]["labels"], "security.istio.io/tlsMode": "istio"}
    spec = {"serviceAccountName": "default", **template["spec"], "nodeName": "node"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{metadata['name']}-0", "namespace": metadata["namespace"], "labels": labels},
        "spec": spec,
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def expose(service: Object, *pods: Object) -> Object:
    """Return the service's endpoints: these pods, at the ports that its target ports name."""
    metadata = service["metadata"]
    containers = [its for pod in pods[:1] for its in pod["spec"].get("containers", [])]
    named = {
        port["name"]: port["containerPort"] for its in containers for port in its.get("ports", []) if "name" in port
    }
    ports = []
    for port in service["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        found = {"name": port.get("name", ""), "port": named.get(target, target), "protocol": "TCP"}
        ports.append({**found, **{key: port[key] for key in ("appProtocol",) if key in port}})
    endpoints = [
        {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {"ready": True, "serving": True},
            "nodeName": "node",
            "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]},
        }
        for pod in pods
    ]
    labels = {"kubernetes.io/service-name": metadata["name"]}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{metadata['name']}-0", "namespace": metadata["namespace"], "labels": labels},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }


def give_address(service: Object, number: int) -> Object:
    """Return the service with the cluster address that an API server would have given it."""
    address = f"10.96.0.{number}"
    return {**service, "spec": {"type": "ClusterIP", **service["spec"], "clusterIP": address, "clusterIPs": [address]}}


def namespace(name: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    }


def deployment(name: str, where: str, labels: dict[str, str], ports: dict[str, int], account: str) -> Object:
    """Return the smallest Deployment: something that a test runs itself."""
    found: list[dict[str, Any]] = [{"name": its, "containerPort": number} for its, number in ports.items()]
    pod = {"serviceAccountName": account, "containers": [{"name": name, "image": "none", "ports": found}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": where},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def service(name: str, where: str, labels: dict[str, str], ports: list[dict[str, Any]]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": where},
        "spec": {"selector": labels, "ports": ports},
    }
