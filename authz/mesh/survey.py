"""What all checks look at: the mesh, what follows from it, and the rules file where one was named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from authz.config import Configuration
from authz.core.policy import Keep, Policy
from authz.mesh.facts import Extension, Mesh, Scope, find_extensions, make_mesh, read_proxy_scope, read_scope
from authz.mesh.objects import MeshObject, as_items, as_mapping, as_text, as_texts
from authz.mesh.policies import CustomPolicy, Way, find_policies
from authz.mesh.traps import MeshFinding, Trap
from authz.mesh.workloads import Workload, find_workloads

DRY_RUN: Final = "istio.io/dry-run"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The mesh and what follows from it, by namespace where one object looks for others.

    ``ours`` names the provider that is this service, as far as can be told.

    ``rules`` None means that no rules file was named; ``rules_file`` is then empty.
    """

    mesh: Mesh
    extensions: tuple[Extension, ...]
    policies: tuple[CustomPolicy, ...]
    workloads: tuple[Workload, ...]
    by_namespace: Mapping[str, tuple[Workload, ...]]
    services: Mapping[str, tuple[MeshObject, ...]]
    asking: Mapping[str, tuple[CustomPolicy, ...]]
    sidecars: Mapping[str, tuple[tuple[MeshObject, Scope], ...]]
    ours: str
    rules: Configuration | None
    rules_file: str
    identity_headers: tuple[str, ...] | None
    """Those of the rules file in each spelling, None where no file was named."""

    def extension(self, name: str) -> Extension | None:
        """Return the ext_authz provider of a name."""
        return next((its for its in self.extensions if its.name == name), None)

    def around(self, policy: CustomPolicy) -> Iterator[CustomPolicy]:
        """Yield the policies of the same provider that hold on every workload of this one, and itself."""
        root = self.mesh.root_namespace
        for other in (*self.asking.get(root, ()), *self.asking.get(policy.scope.namespace, ())):
            if other is policy or (other.provider == policy.provider and other.scope.covers(policy.scope)):
                yield other

    def narrow_ways(self, policy: CustomPolicy) -> list[Way]:
        """Return the ways of a policy that leave something out, but for those that another one outdoes."""
        known = [way for other in self.around(policy) for way in other.ways]
        return [way for way in policy.ways if way.narrowed and not any(its.outdoes(way) for its in known)]

    def selected(self, scope: Scope) -> list[Workload]:
        """Return the given workloads that an object applies to."""
        near = self.workloads if scope.everywhere else self.by_namespace.get(scope.namespace, ())
        return [its for its in near if scope.selects(its.its.namespace, its.labels)]

    def is_ambient(self, namespace: str) -> bool:
        """Say whether a namespace is known to be of ambient mode."""
        space = self.mesh.named("Namespace", "", namespace)
        return space is not None and space.labels.get("istio.io/dataplane-mode") == "ambient"


def make_survey(
    objects: tuple[MeshObject, ...], *, provider: str, rules: Configuration | None, rules_file: str
) -> Survey:
    """Work out what follows from the objects.

    Without a provider of that name the only ext_authz provider counts as ours.
    """
    mesh = make_mesh(objects)
    workloads = tuple(find_workloads(mesh))
    policies = find_policies(mesh)
    sidecars = [(its, read_proxy_scope(its, mesh)) for its in mesh.of("Sidecar")]
    extensions = find_extensions(mesh)
    names = {its.name for its in extensions}
    return Survey(
        mesh=mesh,
        extensions=extensions,
        policies=policies,
        sidecars=_by_namespace(sidecars, lambda its: its[0].namespace),
        asking=_by_namespace(policies, lambda its: its.scope.namespace),
        workloads=workloads,
        by_namespace=_by_namespace(workloads, lambda its: its.its.namespace),
        services=_by_namespace(mesh.of("Service"), lambda its: its.namespace),
        ours=next(iter(names)) if len(names) == 1 and provider not in names else provider,
        rules=rules,
        rules_file=rules_file,
        identity_headers=None if rules is None else _read_identity_headers(rules.policy),
    )


def _read_identity_headers(policy: Policy) -> tuple[str, ...]:
    plans = [rule.outfit.identity for rule in policy.rules]
    own = {name for plan in plans for name, _ in plan.templates}
    return tuple(sorted(own | {edit.name for plan in plans for edit in plan.also_removed}))


def _by_namespace(items: Iterable[T], namespace_of: Callable[[T], str]) -> dict[str, tuple[T, ...]]:
    found: dict[str, list[T]] = {}
    for its in items:
        found.setdefault(namespace_of(its), []).append(its)
    return {name: tuple(those) for name, those in found.items()}


def report(trap: Trap, its: MeshObject | Extension, path: tuple[str | int, ...], text: str) -> MeshFinding:
    """Return a finding in an object; ``path`` leads to where it stands there."""
    file = its.file if isinstance(its, MeshObject) else its.mesh_config.file
    return MeshFinding(trap=trap, place=str(its), file=file, line=its.line(*path), text=text)


def touches_authorization(policy: Policy) -> bool:
    """Say whether some rule that takes tokens removes or replaces `authorization`."""
    taking = [rule for rule in policy.rules if rule.branches]
    return any(rule.outfit.authorization not in (Keep.PROVED, Keep.ALWAYS) for rule in taking)


def find_early_removals(mesh: Mesh, scope: Scope) -> frozenset[str]:
    """Return the headers that EnvoyFilters of all these workloads remove before all filters."""
    return frozenset(
        name.lower()
        for its in mesh.of("EnvoyFilter")
        if read_proxy_scope(its, mesh).covers(scope)
        for extension in find_keys(its.body, "early_header_mutation_extensions", "earlyHeaderMutationExtensions")
        for name in find_keys(extension, "remove")
        if isinstance(name, str)
    )


def find_refused_headers(mesh: Mesh, scope: Scope, paths: tuple[str, ...]) -> frozenset[str]:
    """Return the headers with which DENY policies refuse every request for these paths on these workloads."""
    found: dict[str, set[str]] = {path: set() for path in paths}
    for its in mesh.of("AuthorizationPolicy"):
        tried = str(its.annotations.get(DRY_RUN, "")).lower() not in ("", "false")
        if its.spec.get("action") != "DENY" or tried or not read_scope(its, mesh).covers(scope):
            continue
        for rule in map(as_mapping, as_items(its.spec.get("rules"))):
            header = _refused_header(rule)
            operations = [as_mapping(as_mapping(to).get("operation")) for to in as_items(rule.get("to"))]
            for path, names in found.items():
                plain = not operations or any(
                    {*its} == {"paths"} and path in as_texts(its["paths"]) for its in operations
                )
                if header and plain:
                    names.add(header)
    return frozenset[str]().union(*found.values()).intersection(*found.values())


def _refused_header(rule: Mapping[str, Any]) -> str:
    """Return the header that a rule of a DENY policy refuses whatever its value, an empty text if it asks for more."""
    whens = [as_mapping(item) for item in as_items(rule.get("when"))]
    if rule.get("from") or len(whens) != 1 or "*" not in as_texts(whens[0].get("values")) or whens[0].get("notValues"):
        return ""
    name = as_text(whens[0].get("key")).removeprefix("request.headers[")
    return name.removesuffix("]").lower() if name.endswith("]") else ""


def find_keys(value: object, *names: str) -> Iterator[Any]:
    """Yield the values of all keys with one of these names, at any depth, outermost first."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in names:
                yield item
            else:
                yield from find_keys(item, *names)
    elif isinstance(value, list):
        for item in value:
            yield from find_keys(item, *names)
