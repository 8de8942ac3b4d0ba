"""What stands around the policies: ambient namespaces, and ports of the workloads that are not HTTP."""

from __future__ import annotations

from collections.abc import Iterator

from authz.mesh.extensions import read_protocol
from authz.mesh.facts import GATEWAY_LABELS, Scope, read_proxy_scope
from authz.mesh.filters import inserts_filter
from authz.mesh.objects import MeshObject, as_items, as_mapping
from authz.mesh.policies import CustomPolicy
from authz.mesh.ports import NOT_HTTP, is_declared_http, read_selector, services_of
from authz.mesh.survey import Survey, report
from authz.mesh.traps import MeshFinding, Trap


def check_surroundings(survey: Survey) -> Iterator[MeshFinding]:
    """Find what the policies meet."""
    for policy in survey.policies:
        yield from _check_ambient(survey, policy)
        yield from _check_tcp(survey, policy)
    for its in survey.mesh.of("EnvoyFilter"):
        contexts = {context for context, _ in inserts_filter(its)}
        if contexts & {"ANY", "SIDECAR_INBOUND"}:
            yield from _check_undeclared(survey, its)


def _check_ambient(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    if policy.scope.targets or policy.scope.everywhere or policy.scope.is_gateways:
        return
    if survey.is_ambient(policy.scope.namespace):
        text = f"namespace `{policy.scope.namespace}` has `istio.io/dataplane-mode: ambient`"
        yield report(Trap.SELECTOR_IGNORED, policy.its, ("spec",), text)


def _check_tcp(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    """Find ports that are declared as no HTTP, of workloads that surely ask on every port."""
    extension = survey.extension(policy.provider)
    everything = any(not {"ports", "notPorts"} & way.narrowed for way in policy.ways)
    if extension is None or not extension.grpc or not everything:
        return
    for service in _services_at(survey, policy.scope):
        for number, port in enumerate(as_items(service.spec.get("ports"))):
            protocol = read_protocol(port)
            if protocol in NOT_HTTP:
                text = f"port {as_mapping(port).get('port')} is `{protocol}`, and {policy} asks about it"
                yield report(Trap.TCP_PORTS_ASKED, service, ("spec", "ports", number), text)


def _check_undeclared(survey: Survey, its: MeshObject) -> Iterator[MeshFinding]:
    """Find ports on which a filter among those of HTTP need not be passed."""
    for service in _services_at(survey, read_proxy_scope(its, survey.mesh)):
        for number, port in enumerate(as_items(service.spec.get("ports"))):
            if as_mapping(port).get("protocol") in (None, "TCP") and not is_declared_http(port):
                what = f"`{read_protocol(port)}`" if read_protocol(port) in NOT_HTTP else "not declared"
                text = f"the protocol of port {as_mapping(port).get('port')} is {what}, and {its} puts ext_authz there"
                yield report(Trap.FILTER_NOT_ON_PORT, service, ("spec", "ports", number), text)


def _services_at(survey: Survey, scope: Scope) -> list[MeshObject]:
    """Return the Services of sidecars that an object applies to."""
    found: dict[tuple[str, str], MeshObject] = {}
    for workload in survey.selected(scope):
        if workload.injected and not workload.gateway:
            for its in services_of(survey, workload):
                if not GATEWAY_LABELS & read_selector(its).keys():
                    found[its.namespace, its.name] = its
    return [*found.values()]
