"""Policies that apply to nobody are found; where the objects do not tell, nothing is said."""

from __future__ import annotations

from authz.mesh.traps import Trap
from tests.mesh.planting import GATEWAY_POD, HERE, ROUTED, SHOP, SPEC, Case, asking, span

NAME = "gateway.networking.k8s.io/gateway-name"


CASES = {
    "labels that no pod has": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{istio: ingress}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-ingress", "selector: {matchLabels: {istio: ingressgateway}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "pods of another namespace": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("shop", f"selector: {{matchLabels: {{istio: ingressgateway}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-system", "selector: {matchLabels: {istio: ingressgateway}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a workload's labels that no pod has": Case(
        part=ROUTED,
        planted=ROUTED + asking("shop", f"selector: {{matchLabels: {{app: order}}}} {HERE}"),
        twin=ROUTED + asking("unknown", "selector: {matchLabels: {app: order}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a gateway's labels, where istiod makes its pods": Case(
        part=ROUTED,
        planted=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{{NAME}: publik}}}} {HERE}"),
        twin=ROUTED + GATEWAY_POD + asking("istio-ingress", f"selector: {{matchLabels: {{{NAME}: public}}}}"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a Gateway that is not there": Case(
        part=ROUTED,
        planted=ROUTED + asking("istio-ingress", f"targetRefs: [{{kind: Gateway, name: other}}] {HERE}"),
        twin=ROUTED + asking("istio-ingress", "targetRefs: [{kind: Gateway, name: public}]"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "a Service that is not there": Case(
        part=ROUTED,
        planted=ROUTED + asking("shop", f"targetRefs: [{{kind: Service, name: order}}] {HERE}"),
        twin=ROUTED + asking("shop", "targetRefs: [{kind: Service, name: orders}]"),
        traps=(Trap.SELECTS_NOTHING,),
    ),
    "pods without a sidecar": Case(
        part=span(SHOP, SPEC),
        planted=span(SHOP, SPEC).replace("istio-injection: enabled", "team: shop", 1)
        .replace("{app: orders}}\n  action", f"{{app: orders}}}} {HERE}\n  action"),
        twin=span(SHOP, SPEC).replace("istio-injection: enabled", "istio.io/rev: stable", 1),
        traps=(Trap.SELECTS_NOTHING,),
    ),
}  # fmt: skip
