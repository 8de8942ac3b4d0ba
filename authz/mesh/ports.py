"""Which ports the pods that a policy selects listen on, and what Istio takes each for."""

from __future__ import annotations

from typing import Any, Final

from authz.mesh.extensions import read_protocol
from authz.mesh.facts import Scope
from authz.mesh.objects import MeshObject, as_items, as_labels, as_mapping
from authz.mesh.survey import Survey
from authz.mesh.workloads import Workload

NOT_HTTP: Final = frozenset({"tcp", "tls", "https", "mongo", "redis", "mysql"})
HTTP: Final = frozenset({"http", "http2", "grpc", "kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"})


def find_ports(survey: Survey, scope: Scope) -> list[tuple[int, str]]:
    """Return the container's ports behind Services of the given workloads, with their protocols.

    Empty where the objects do not tell them all.
    """
    found: list[tuple[int, str]] = []
    for workload in survey.selected(scope):
        services = services_of(survey, workload)
        if not services:
            return []
        for service in services:
            for port in map(as_mapping, as_items(service.spec.get("ports"))):
                number = find_target(port, workload)
                if number is None:
                    return []
                found.append((number, read_protocol(port)))
    return found


def services_of(survey: Survey, workload: Workload) -> list[MeshObject]:
    """Return the Services that lead to these pods."""
    return [
        its
        for its in survey.services.get(workload.its.namespace, ())
        if (selector := read_selector(its)) and selector.items() <= workload.labels.items()
    ]


def read_selector(service: MeshObject) -> dict[str, str]:
    """Return the labels by which a Service finds its pods."""
    return as_labels(service.spec.get("selector"))


def pods_of(survey: Survey, service: MeshObject) -> list[Workload]:
    """Return the given workloads behind a Service."""
    selector = read_selector(service).items()
    near = survey.by_namespace.get(service.namespace, ())
    return [its for its in near if selector and selector <= its.labels.items()]


def is_declared_http(port: Any) -> bool:
    """Say whether Istio takes a port for HTTP without looking at what comes in."""
    protocol = read_protocol(port)
    return protocol in HTTP or protocol.startswith("grpc-web")


def find_target(port: Any, workload: Workload) -> int | None:
    """Return the container's port that a Service's port leads to, None where the objects do not tell."""
    target = port.get("targetPort", port.get("port"))
    if isinstance(target, str):
        target = int(target) if target.isdecimal() else workload.ports.get(target)
    return target if isinstance(target, int) and not isinstance(target, bool) else None
