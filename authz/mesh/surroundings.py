"""What stands around: ambient namespaces, TCP ports, and this service's own pods and port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from authz.mesh.extensions import find_service, read_protocol
from authz.mesh.facts import GATEWAY_LABELS, Extension, Workload, read_scope
from authz.mesh.objects import MeshObject, as_items, as_mapping
from authz.mesh.policies import CustomPolicy
from authz.mesh.survey import Survey, labels_of, report
from authz.mesh.traps import MeshFinding, Trap

_TCP: Final = frozenset({"tcp", "tls", "https", "mongo", "redis", "mysql"})


def check_surroundings(survey: Survey) -> Iterator[MeshFinding]:
    """Find what the policies meet."""
    for policy in survey.policies:
        yield from _check_ambient(survey, policy)
        yield from _check_tcp(survey, policy)
    for extension in survey.extensions:
        service = find_service(survey, extension)
        if service is not None and service.kind == "Service":
            yield from _check_own_pods(survey, extension, service)
            yield from _check_callers(survey, service)


def _check_ambient(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    if policy.scope.targets or policy.scope.everywhere or policy.scope.is_gateways:
        return
    space = next((its for its in survey.mesh.of("Namespace") if its.name == policy.scope.namespace), None)
    if labels_of(space).get("istio.io/dataplane-mode") == "ambient":
        text = f"namespace `{policy.scope.namespace}` has `istio.io/dataplane-mode: ambient`"
        yield report(Trap.SELECTOR_IGNORED, policy.its, ("spec",), text)


def _check_tcp(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    """Find ports that are declared as no HTTP, of workloads that surely ask on every port."""
    extension = survey.extension(policy.provider)
    everything = any(not {"ports", "notPorts"} & way.narrowed for way in policy.ways)
    if extension is None or not extension.grpc or not everything:
        return
    for service in survey.mesh.of("Service"):
        if GATEWAY_LABELS & _selector(service).keys():
            continue
        pods = [its for its in _pods(survey, service) if its.injected and not its.gateway]
        if not any(policy.scope.selects(service.namespace, its.labels) for its in pods):
            continue
        for number, port in enumerate(as_items(service.spec.get("ports"))):
            if read_protocol(port) in _TCP:
                text = f"port {as_mapping(port).get('port')} is `{read_protocol(port)}`, and {policy} asks about it"
                yield report(Trap.TCP_PORTS_ASKED, service, ("spec", "ports", number), text)


def _check_own_pods(survey: Survey, extension: Extension, service: MeshObject) -> Iterator[MeshFinding]:
    """Find policies that make this service's own sidecar ask it."""
    for policy in survey.policies:
        asks = policy.provider == extension.name and any(not way.narrowed for way in policy.ways)
        for its in _pods(survey, service):
            if asks and its.injected and policy.scope.selects(service.namespace, its.labels):
                text = f"it selects {its.its}, the pods of `{extension.host}`"
                yield report(Trap.AUTHORIZER_ASKS_ITSELF, policy.its, ("spec",), text)


def _check_callers(survey: Survey, service: MeshObject) -> Iterator[MeshFinding]:
    """Find out whether anything keeps strangers from the port. Two objects do it together."""
    labels = [its.labels for its in _pods(survey, service)] or [_selector(service)]
    strict = [
        its for its in survey.mesh.of("PeerAuthentication") if as_mapping(its.spec.get("mtls")).get("mode") == "STRICT"
    ]
    allows = [its for its in survey.mesh.of("AuthorizationPolicy") if its.spec.get("action") in (None, "ALLOW")]
    missing = [
        name
        for name, objects in (("PeerAuthentication with `mode: STRICT`", strict), ("ALLOW policy", allows))
        if not any(read_scope(its, survey.mesh).selects(service.namespace, pod) for its in objects for pod in labels)
    ]
    if missing:
        text = f"for its pods in namespace `{service.namespace}` there is no {' and no '.join(missing)}"
        yield report(Trap.AUTHORIZER_OPEN, service, ("metadata",), text)


def _selector(service: MeshObject) -> dict[str, str]:
    return {str(key): str(value) for key, value in as_mapping(service.spec.get("selector")).items()}


def _pods(survey: Survey, service: MeshObject) -> list[Workload]:
    """Return the given workloads behind a Service."""
    selector = _selector(service).items()
    return [
        its
        for its in survey.workloads
        if selector and its.its.namespace == service.namespace and selector <= its.labels.items()
    ]
