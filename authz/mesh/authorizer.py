"""This service's own pods: who may call them, whether they ask themselves, and whether they can answer mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from authz.config.document import Loc
from authz.mesh.extensions import find_service
from authz.mesh.facts import Extension, read_scope
from authz.mesh.objects import MeshObject, as_items, as_mapping, as_text, as_texts
from authz.mesh.ports import find_target, pods_of, read_selector
from authz.mesh.survey import Survey, report
from authz.mesh.traps import MeshFinding, Trap
from authz.mesh.workloads import Workload


def check_authorizer(survey: Survey) -> Iterator[MeshFinding]:
    """Find what keeps the pods behind the extension providers from answering, or leaves them to anybody."""
    for extension in survey.extensions:
        service = find_service(survey, extension)
        if service is not None and service.kind == "Service":
            pods = pods_of(survey, service)
            yield from _check_own_pods(survey, extension, service, pods)
            yield from _check_callers(survey, extension, service, pods)
            yield from _check_mutual_tls(survey, extension, service, pods)


def _check_own_pods(
    survey: Survey, extension: Extension, service: MeshObject, pods: list[Workload]
) -> Iterator[MeshFinding]:
    """Find policies that make this service's own sidecar ask it."""
    for policy in survey.policies:
        asks = policy.provider == extension.name and any(not way.narrowed for way in policy.ways)
        own = (its for its in pods if asks and its.injected and policy.scope.selects(service.namespace, its.labels))
        first = next(own, None)
        if first is not None:
            text = f"it selects {first.its}, the pods of `{extension.host}`"
            yield report(Trap.AUTHORIZER_ASKS_ITSELF, policy.its, ("spec",), text)


def _check_callers(
    survey: Survey, extension: Extension, service: MeshObject, pods: list[Workload]
) -> Iterator[MeshFinding]:
    """Find out whether anything keeps strangers from the port: a NetworkPolicy, or two objects of Istio together."""
    if _is_closed(survey, extension, service, pods):
        return
    labels = [its.labels for its in pods] or [read_selector(service)]
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
    elif _are_bare(pods):
        text = "a PeerAuthentication and an ALLOW policy are there, but nothing enforces them: the pods have no sidecar"
        yield report(Trap.AUTHORIZER_OPEN, service, ("metadata",), text)


def _are_bare(pods: list[Workload]) -> bool:
    return bool(pods) and all(its.injected is False for its in pods)


def _is_closed(survey: Survey, extension: Extension, service: MeshObject, pods: list[Workload]) -> bool:
    """Say whether NetworkPolicies leave the port to named callers for all the pods.

    They add up: one that lets everybody in undoes the others.
    """
    ports = map(as_mapping, as_items(service.spec.get("ports")))
    port = next((its for its in ports if its.get("port") == extension.port), {})
    labels = [(its.labels, find_target(port, its)) for its in pods]
    labels = labels or [(read_selector(service), None)]
    policies = [its for its in survey.mesh.of("NetworkPolicy") if its.namespace == service.namespace]
    for pod, number in labels:
        near = [its for its in policies if _guards(its, pod)]
        rules = [as_mapping(rule) for its in near for rule in as_items(its.spec.get("ingress"))]
        if not near or any(_opens(rule, number) for rule in rules):
            return False
    return True


def _guards(policy: MeshObject, labels: Any) -> bool:
    """Say whether a NetworkPolicy surely closes what its rules do not open, for pods with these labels."""
    selector = as_mapping(policy.spec.get("podSelector"))
    chosen = as_mapping(selector.get("matchLabels")).items() <= labels.items() and not selector.get("matchExpressions")
    return chosen and "Ingress" in (as_texts(policy.spec.get("policyTypes")) or ("Ingress",))


def _opens(rule: Any, number: int | None) -> bool:
    """Say whether a rule may let everybody in to a port. A port's name is not looked up, but taken for it."""
    ports = [as_mapping(its) for its in as_items(rule.get("ports"))]
    numbers = [its.get("port") for its in ports]
    ends = [its.get("endPort", its.get("port")) for its in ports]
    apart = number is not None and all(
        isinstance(first, int) and isinstance(last, int) and not first <= number <= last
        for first, last in zip(numbers, ends, strict=True)
    )
    if ports and apart:
        return False
    peers = [as_mapping(its) for its in as_items(rule.get("from"))]
    return not peers or any(_is_anybody(its) for its in peers)


def _is_anybody(peer: Any) -> bool:
    space = peer.get("namespaceSelector")
    everywhere = isinstance(space, dict) and not any((*space.values(), *as_mapping(peer.get("podSelector")).values()))
    return not peer or everywhere or as_text(as_mapping(peer.get("ipBlock")).get("cidr")).endswith("/0")


def _check_mutual_tls(
    survey: Survey, extension: Extension, service: MeshObject, pods: list[Workload]
) -> Iterator[MeshFinding]:
    """Find DestinationRules that have the proxies speak Istio's mutual TLS to pods without a sidecar."""
    if not _are_bare(pods):
        return
    for its in survey.mesh.of("DestinationRule"):
        host = as_text(its.spec.get("host"))
        short = host == service.name and its.namespace == service.namespace
        if short or host == extension.host or (host.startswith("*") and extension.host.endswith(host[1:])):
            for loc in _mutual(its, extension.port):
                text = f"`mode: ISTIO_MUTUAL` for `{extension.host}`, and {pods[0].its} has no sidecar"
                yield report(Trap.MTLS_WITHOUT_SIDECAR, its, loc, text)


def _mutual(rule: MeshObject, port: int) -> Iterator[Loc]:
    policy = as_mapping(rule.spec.get("trafficPolicy"))
    own = [(as_mapping(its), number) for number, its in enumerate(as_items(policy.get("portLevelSettings")))]
    exact = [
        (its, ("spec", "trafficPolicy", "portLevelSettings", number))
        for its, number in own
        if as_mapping(its.get("port")).get("number") == port
    ]
    places: list[tuple[Any, Loc]] = [*exact] or [(policy, ("spec", "trafficPolicy"))]
    for its, loc in places:
        if as_mapping(its.get("tls")).get("mode") == "ISTIO_MUTUAL":
            yield (*loc, "tls", "mode")
