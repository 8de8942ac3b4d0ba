"""CUSTOM policies that apply to nothing: no such pods, no such Gateway, or pods without a proxy."""

from __future__ import annotations

from collections.abc import Iterator

from authz.mesh.facts import GATEWAY_API
from authz.mesh.objects import MeshObject, as_labels, as_mapping
from authz.mesh.policies import CustomPolicy
from authz.mesh.survey import Survey, find_keys, report
from authz.mesh.traps import MeshFinding, Trap
from authz.mesh.workloads import Workload


def check_selection(survey: Survey) -> Iterator[MeshFinding]:
    """Find policies that select nobody, where objects of the kind were given that they could select."""
    for policy in survey.policies:
        if policy.scope.targets:
            yield from _check_targets(survey, policy)
        elif survey.workloads:
            yield from _check_pods(survey, policy)
    unknown = next((its for its in survey.policies if not its.scope.targets), None)
    if unknown is not None and not survey.workloads:
        text = "the workloads: whether the policies select any pods, and whether these have a sidecar"
        yield report(Trap.NOT_GIVEN, unknown.its, ("spec", "selector"), text)


def _check_targets(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    for kind, name in sorted(policy.scope.targets):
        group = GATEWAY_API if kind == "Gateway" else None
        known = survey.mesh.of(kind, group) if kind in ("Gateway", "Service", "ServiceEntry") else []
        near = [its for its in known if its.namespace == policy.scope.namespace]
        # A Gateway is one of few, and they are given together; of Services those of the namespace must be known.
        if (known if kind == "Gateway" else near) and not any(its.name == name for its in near):
            text = f"in namespace `{policy.scope.namespace}` there is no {kind} `{name}`"
            yield report(Trap.SELECTS_NOTHING, policy.its, ("spec", "targetRefs"), text)


def _check_pods(survey: Survey, policy: CustomPolicy) -> Iterator[MeshFinding]:
    scope = policy.scope
    if any(scope.selects(its.namespace, _labels_of_pods(its)) for its in survey.mesh.of("Gateway", GATEWAY_API)):
        return  # its pods are made by istiod, and need not be given
    selected = survey.selected(scope)
    labels = ", ".join(f"{key}={value}" for key, value in sorted(scope.labels))
    if not selected and _candidates(survey, policy):
        where = "anywhere" if scope.everywhere else f"in namespace `{scope.namespace}`"
        text = f"no workload {where}" + (f" has the labels `{labels}`" if labels else "")
        yield report(Trap.SELECTS_NOTHING, policy.its, ("spec", "selector"), text)
    elif selected and (labels or not scope.everywhere) and all(_is_bare(survey, its) for its in selected):
        text = f"{selected[0].its}, which it selects, has no sidecar"
        yield report(Trap.SELECTS_NOTHING, policy.its, ("spec", "selector"), text)


def _labels_of_pods(gateway: MeshObject) -> dict[str, str]:
    """Return the labels that istiod gives to the pods of a Gateway of the Gateway API."""
    more = as_labels(as_mapping(gateway.spec.get("infrastructure")).get("labels"))
    return {**gateway.labels, **more, f"{GATEWAY_API}/gateway-name": gateway.name}


def _candidates(survey: Survey, policy: CustomPolicy) -> list[Workload]:
    """Return the given workloads of the kind that a policy is for: its namespace's, or for a gateway's labels those."""
    scope = policy.scope
    if scope.is_gateways:
        operators = [its.body for its in survey.mesh.of("IstioOperator")]
        if any(find_keys(operators, "ingressGateways", "egressGateways")):
            return []
        gateways = [its for its in survey.workloads if its.gateway]
        return gateways or list(survey.by_namespace.get(scope.namespace, ()))
    return [*survey.workloads] if scope.everywhere else list(survey.by_namespace.get(scope.namespace, ()))


def _is_bare(survey: Survey, workload: Workload) -> bool:
    """Say whether pods surely have no proxy. In ambient mode another trap tells."""
    return workload.injected is False and not workload.gateway and not survey.is_ambient(workload.its.namespace)
