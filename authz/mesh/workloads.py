"""The pods that were given: their labels, whether they have a sidecar, and whether they are a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from authz.mesh.facts import GATEWAY_LABELS, NETWORKING, Mesh, values_of
from authz.mesh.objects import VALUES, MeshObject, as_items, as_labels, as_mapping, as_text

_WORKLOADS: Final = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Pod"})

_ISTIOD: Final = "pilot"
"""The label `istio` of the control plane, which is no gateway for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Pods as a Deployment or the like makes them. ``injected`` None means that nothing given tells."""

    its: MeshObject
    labels: Mapping[str, str]
    injected: bool | None
    gateway: bool
    pod: Mapping[str, Any]

    @property
    def ports(self) -> Mapping[str, int]:
        """The named ports of its containers."""
        ports = [as_mapping(port) for its in _containers(self.pod) for port in as_items(its.get("ports"))]
        known = [(as_text(port.get("name")), port.get("containerPort")) for port in ports]
        return {name: number for name, number in known if name and isinstance(number, int)}


def _containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [as_mapping(its) for key in ("containers", "initContainers") for its in as_items(pod.get(key))]


def find_workloads(mesh: Mesh) -> list[Workload]:
    """Return the workloads that were given."""
    found = []
    everywhere = _is_injected_everywhere(mesh)
    selectors = [as_mapping(its.spec.get("selector")) for its in mesh.of("Gateway", NETWORKING)]
    for its in mesh.objects:
        if its.kind not in _WORKLOADS:
            continue
        template = its.body if its.kind == "Pod" else as_mapping(its.spec.get("template"))
        metadata = as_mapping(template.get("metadata"))
        labels = as_labels(metadata.get("labels"))
        annotations = as_mapping(metadata.get("annotations"))
        chosen = any(selector and selector.items() <= labels.items() for selector in selectors)
        said = labels.get("sidecar.istio.io/inject") or annotations.get("sidecar.istio.io/inject")
        pod = as_mapping(template.get("spec"))
        injected = _injected(mesh, its.namespace, str(said) if said is not None else None, everywhere=everywhere)
        if any(container.get("name") == "istio-proxy" for container in _containers(pod)):
            injected = True
        elif pod.get("hostNetwork") is True:
            injected = False
        elif injected is False and said is None and "istio.io/rev" in labels:
            injected = None
        found.append(
            Workload(
                its=its,
                labels=labels,
                injected=injected,
                gateway=chosen or (bool(GATEWAY_LABELS.intersection(labels)) and labels.get("istio") != _ISTIOD),
                pod=pod,
            )
        )
    return found


def _injected(mesh: Mesh, namespace: str, said: str | None, *, everywhere: bool) -> bool | None:
    if said is not None:
        return said.lower() == "true"
    space = mesh.named("Namespace", "", namespace)
    if space is None:
        return None
    if space.labels.get("istio-injection") == "enabled" or "istio.io/rev" in space.labels:
        return True
    return None if everywhere and "istio-injection" not in space.labels else False


def _is_injected_everywhere(mesh: Mesh) -> bool:
    """Say whether istiod may have been told to take namespaces that say nothing."""
    settings = [its for kind in ("IstioOperator", "Istio", VALUES) for its in mesh.of(kind)]
    return any("true" in values_of(its.body, "enableNamespacesByDefault") for its in settings)
