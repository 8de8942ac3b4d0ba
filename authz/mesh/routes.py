"""Which hosts a gateway routes: Gateways of both kinds, VirtualServices, HTTPRoutes and GRPCRoutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from authz.mesh.facts import GATEWAY_API, NETWORKING, Scope
from authz.mesh.objects import MeshObject, as_items, as_labels, as_mapping, as_text, as_texts
from authz.mesh.survey import Survey

_ROUTES: Final = ("HTTPRoute", "GRPCRoute")
_NAME_LABEL: Final = f"{GATEWAY_API}/gateway-name"


def find_wildcard(survey: Survey, scope: Scope) -> str:
    """Name a route for every host at the gateways that a policy applies to, an empty text if none was given."""
    names = {name for kind, name in scope.targets if kind == "Gateway"}
    names |= {value for key, value in scope.labels if key == _NAME_LABEL}
    for gateway in survey.mesh.of("Gateway", GATEWAY_API):
        if gateway.namespace == scope.namespace and gateway.name in names:
            for route in _routes_of(survey, gateway):
                return str(route)
    for gateway in survey.mesh.of("Gateway", NETWORKING):
        labels = as_labels(gateway.spec.get("selector")).items()
        if labels and scope.labels and (labels <= scope.labels or scope.labels <= labels):
            for route in _virtual_services_of(survey, gateway):
                return str(route)
    return ""


def are_routes_given(survey: Survey) -> bool:
    """Say whether any object was given that tells which hosts a gateway routes."""
    return any(survey.mesh.of(kind) for kind in ("VirtualService", *_ROUTES))


def _virtual_services_of(survey: Survey, gateway: MeshObject) -> Iterator[MeshObject]:
    """Yield the VirtualServices for every host at a Gateway that has a server for every host."""
    servers = map(as_mapping, as_items(gateway.spec.get("servers")))
    if not any(host.rpartition("/")[2] == "*" for its in servers for host in as_texts(its.get("hosts"))):
        return
    for its in survey.mesh.of("VirtualService"):
        names = {name if "/" in name else f"{its.namespace}/{name}" for name in as_texts(its.spec.get("gateways"))}
        if f"{gateway.namespace}/{gateway.name}" in names and "*" in as_texts(its.spec.get("hosts")):
            yield its


def _routes_of(survey: Survey, gateway: MeshObject) -> Iterator[MeshObject]:
    """Yield the routes for every host at a Gateway's listeners for every host."""
    listeners = [as_mapping(its) for its in as_items(gateway.spec.get("listeners"))]
    wide = {as_text(its.get("name")) for its in listeners if as_text(its.get("hostname")) in ("", "*")}
    for kind in _ROUTES:
        for its in survey.mesh.of(kind):
            hosts = as_texts(its.spec.get("hostnames"))
            parents = map(as_mapping, as_items(its.spec.get("parentRefs")))
            if (not hosts or "*" in hosts) and any(_leads_to(its, gateway, wide, parent) for parent in parents):
                yield its


def _leads_to(route: MeshObject, gateway: MeshObject, wide: set[str], parent: Mapping[str, Any]) -> bool:
    section = as_text(parent.get("sectionName"))
    return (
        as_text(parent.get("kind")) in ("", "Gateway")
        and (as_text(parent.get("namespace")) or route.namespace, parent.get("name"))
        == (gateway.namespace, gateway.name)
        and bool({section} & wide if section else wide)
    )
