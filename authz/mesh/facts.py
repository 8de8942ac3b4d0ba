"""What a mesh's objects say together: its configuration, its extension providers, and what an object applies to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from authz.config.document import Loc
from authz.mesh.objects import MESH_CONFIG, VALUES, MeshObject, as_items, as_labels, as_mapping, as_text

NORMALIZATIONS: Final = ("NONE", "DEFAULT", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES")
"""From the worst to the best."""

MANY_PROVIDERS: Final = "PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS"
GATEWAY_API: Final = "gateway.networking.k8s.io"
NETWORKING: Final = "networking.istio.io"
WAYPOINT: Final = "istio-waypoint"
GATEWAY_LABELS: Final = frozenset({"istio", f"{GATEWAY_API}/gateway-name"})
"""By what the pods of ingress and egress gateways are selected."""

_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(ns|us|µs|ms|s|m|h)")
_UNITS_S: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3_600,
}  # fmt: skip
_KINDS: Final[Mapping[str, bool]] = {"envoyExtAuthzGrpc": True, "envoyExtAuthzHttp": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """All objects that were given, by kind and by name."""

    objects: tuple[MeshObject, ...]
    kinds: Mapping[str, tuple[MeshObject, ...]]
    names: Mapping[tuple[str, str, str], tuple[MeshObject, ...]]
    root_namespace: str
    """The namespace whose policies hold everywhere."""

    def of(self, kind: str, group: str | None = None) -> list[MeshObject]:
        """Return the objects of a kind, in the order of the files."""
        return [its for its in self.kinds.get(kind, ()) if group in (None, its.group)]

    def named(self, kind: str, namespace: str, name: str, group: str | None = None) -> MeshObject | None:
        """Return one object by its name."""
        found = self.names.get((kind, namespace, name), ())
        return next((its for its in found if group in (None, its.group)), None)


def make_mesh(objects: tuple[MeshObject, ...]) -> Mesh:
    """Put objects where they are found without looking at all the others."""
    kinds: dict[str, list[MeshObject]] = {}
    names: dict[tuple[str, str, str], list[MeshObject]] = {}
    for its in objects:
        kinds.setdefault(its.kind, []).append(its)
        names.setdefault((its.kind, its.namespace, its.name), []).append(its)
    roots = [as_text(its.body.get("rootNamespace")) for its in kinds.get(MESH_CONFIG, ())]
    return Mesh(
        objects=objects,
        kinds={kind: tuple(found) for kind, found in kinds.items()},
        names={name: tuple(found) for name, found in names.items()},
        root_namespace=next(filter(None, roots), "istio-system"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """An ext_authz extension provider. ``loc`` leads to its settings in ``mesh_config``."""

    name: str
    grpc: bool
    settings: Mapping[str, Any]
    mesh_config: MeshObject
    loc: Loc

    @property
    def host(self) -> str:
        """The host of its service, without a namespace before it."""
        return as_text(self.settings.get("service")).rpartition("/")[2]

    @property
    def namespace(self) -> str:
        """The namespace of its service, as far as its name tells."""
        before, _, host = as_text(self.settings.get("service")).rpartition("/")
        labels = host.split(".")
        return before or (labels[1] if labels[2:3] == ["svc"] else "")

    @property
    def port(self) -> int:
        """The service's port, 0 for what is none."""
        port = self.settings.get("port")
        number = int(port) if isinstance(port, str) and port.isdecimal() else port
        return number if isinstance(number, int) and 0 < number < 65_536 else 0  # noqa: PLR2004 - the last port

    def line(self, *path: str | int) -> int:
        """Return the line of a setting, or of the provider."""
        return self.mesh_config.line(*self.loc, *path)

    def __str__(self) -> str:
        """Render as people name it."""
        return f"extensionProvider {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The workloads that an object applies to: all of a namespace (or everywhere), or those with labels, or targets."""

    namespace: str
    everywhere: bool
    labels: frozenset[tuple[str, str]] = frozenset()
    targets: frozenset[tuple[str, str]] = frozenset()
    gateways: frozenset[tuple[str, str]] = frozenset()
    """Those targets that surely are gateways and no waypoints, which pass over what has no ``targetRefs``."""

    @property
    def is_gateways(self) -> bool:
        """Whether its labels are those of ingress or egress gateways."""
        return any(key in GATEWAY_LABELS for key, _ in self.labels)

    def covers(self, other: Scope) -> bool:
        """Say whether every workload of the other is surely one of these."""
        if self.targets:
            return self.namespace == other.namespace and bool(other.targets) and other.targets <= self.targets
        if not self.everywhere and (other.everywhere or self.namespace != other.namespace):
            return False
        if other.targets:
            return not self.labels and other.targets == other.gateways
        return self.labels <= other.labels

    def meets(self, other: Scope) -> bool:
        """Say whether they surely share workloads, if either has any."""
        return self.covers(other) or other.covers(self)

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Say whether pods with these labels are among the workloads."""
        if self.targets or not (self.everywhere or namespace == self.namespace):
            return False
        return self.labels <= set(labels.items())


def read_scope(its: MeshObject, mesh: Mesh) -> Scope:
    """Return what an object of Istio's security API applies to."""
    return _read_scope(its, mesh, as_mapping(its.spec.get("selector")).get("matchLabels"))


def read_proxy_scope(its: MeshObject, mesh: Mesh) -> Scope:
    """Return what a Sidecar or an EnvoyFilter applies to."""
    return _read_scope(its, mesh, as_mapping(its.spec.get("workloadSelector")).get("labels"))


def _read_scope(its: MeshObject, mesh: Mesh, labels: object) -> Scope:
    refs = as_items(its.spec.get("targetRefs")) or [its.spec.get("targetRef")]
    targets = {(as_text(ref.get("kind")), as_text(ref.get("name"))) for ref in map(as_mapping, refs) if ref}
    known = {
        (kind, name): mesh.named(kind, its.namespace, name, GATEWAY_API) for kind, name in targets if kind == "Gateway"
    }
    return Scope(
        namespace=its.namespace,
        everywhere=its.namespace == mesh.root_namespace,
        labels=frozenset(as_labels(labels).items()),
        targets=frozenset(targets),
        gateways=frozenset(name for name, found in known.items() if found is not None and not is_waypoint(found)),
    )


def is_waypoint(gateway: MeshObject) -> bool:
    """Say whether a Gateway of the Gateway API is a waypoint."""
    return as_text(gateway.spec.get("gatewayClassName")) == WAYPOINT


def find_extensions(mesh: Mesh) -> tuple[Extension, ...]:
    """Return the ext_authz providers of every meshConfig."""
    return tuple(its for config in mesh.of(MESH_CONFIG) for its in _extensions(config))


def _extensions(config: MeshObject) -> Iterator[Extension]:
    for number, item in enumerate(as_items(config.body.get("extensionProviders"))):
        provider = as_mapping(item)
        for key, grpc in _KINDS.items():
            if key in provider:
                yield Extension(
                    name=as_text(provider.get("name")),
                    grpc=grpc,
                    settings=as_mapping(provider[key]),
                    mesh_config=config,
                    loc=("extensionProviders", number, key),
                )


def read_normalization(mesh: Mesh) -> str | None:
    """Return how paths are normalised, at the worst of several meshConfigs; None where none was given.

    A ConfigMap that says nothing means the default. Values and the like may be parts of one that another completes.
    """
    configs = mesh.of(MESH_CONFIG)
    if not configs:
        return None
    said = [
        as_text(as_mapping(its.body.get("pathNormalization")).get("normalization")) or ("DEFAULT" if its.name else "")
        for its in configs
    ]
    return min(filter(None, said), key=_rank_normalization, default="DEFAULT")


def _rank_normalization(said: str) -> int:
    return NORMALIZATIONS.index(said) if said in NORMALIZATIONS else NORMALIZATIONS.index("DEFAULT")


def parse_duration_s(value: object) -> float | None:
    """Return the seconds of a duration as Go writes it, such as ``1m0.5s`` or ``500ms``; None for anything else."""
    if not isinstance(value, str) or not value or _DURATION.sub("", value):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(value))


def allows_many_providers(mesh: Mesh) -> bool | None:
    """Say whether istiod takes several CUSTOM providers for one workload; None where its settings were not given."""
    settings = [its for kind in ("IstioOperator", "Istio", VALUES) for its in mesh.of(kind)]
    settings += [its for its in mesh.of("Deployment") if its.name.startswith("istiod")]
    if not settings:
        return None
    return any(value == "true" for its in settings for value in values_of(its.body, MANY_PROVIDERS))


def values_of(value: object, name: str) -> Iterator[str]:
    """Yield what a variable is set to, as a mapping's key or as an item of ``env``."""
    if isinstance(value, dict):
        if value.get("name") == name:
            yield str(value.get("value")).lower()
        for key, item in value.items():
            if key == name:
                yield str(item).lower()
            else:
                yield from values_of(item, name)
    for item in as_items(value):
        yield from values_of(item, name)
