"""CUSTOM policies that istiod refuses, or turns into denials of all that they match."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any, Final

from authz.config.document import Loc
from authz.mesh.facts import MANY_PROVIDERS, allows_many_providers
from authz.mesh.objects import MESH_CONFIG, as_items, as_mapping, as_text
from authz.mesh.policies import CustomPolicy
from authz.mesh.survey import DRY_RUN, Survey, report
from authz.mesh.traps import MeshFinding, Trap

_SOURCES: Final = ("principals", "requestPrincipals", "namespaces", "serviceAccounts", "trustDomains")
_UNSUPPORTED: Final = frozenset(name for source in _SOURCES for name in (source, f"not{source[0].upper()}{source[1:]}"))
_UNSUPPORTED_KEYS: Final = frozenset(
    {f"source.{name}" for name in ("namespace", "serviceAccount", "trustDomain", "principal")}
)


def check_refused(survey: Survey) -> Iterator[MeshFinding]:
    """Find what istiod does not do as it was written."""
    for policy in survey.policies:
        yield from _check_form(policy)
        if DRY_RUN in policy.its.annotations:
            text = f"`{DRY_RUN}: {policy.its.annotations[DRY_RUN]}`"
            yield report(Trap.CUSTOM_DRY_RUN, policy.its, ("metadata", "annotations", DRY_RUN), text)
    yield from _check_names(survey)
    yield from _check_several(survey)


def _check_form(policy: CustomPolicy) -> Iterator[MeshFinding]:
    spec = policy.its.spec
    rules = as_items(spec.get("rules"))
    if not rules:
        yield report(Trap.CUSTOM_REFUSED, policy.its, ("spec", "rules"), "no `rules`: write `rules: [{}]`")
    if rules and not policy.provider:
        text = "no `provider.name`: write the name of the extension provider"
        yield report(Trap.CUSTOM_REFUSED, policy.its, ("spec", "provider"), text)
    for number, rule in enumerate(rules):
        for loc, text in _unsupported(rule, ("spec", "rules", number)):
            yield report(Trap.CUSTOM_REFUSED, policy.its, loc, text)


def _unsupported(rule: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if not isinstance(rule, dict):
        yield loc, "an empty rule: write `{}` for every request"
        return
    for name, inner in (("from", "source"), ("to", "operation")):
        if name in rule and not as_items(rule[name]):
            yield (*loc, name), f"`{name}` is empty: leave it out"
        for number, item in enumerate(as_items(rule.get(name))):
            found = as_mapping(as_mapping(item).get(inner))
            if not found:
                yield (*loc, name, number), f"`{name}` without `{inner}`: leave it out"
            for key in _UNSUPPORTED.intersection(found):
                text = f"`from.source.{key}` is not supported with CUSTOM: leave it out"
                yield (*loc, name, number, inner, key), text
    for number, item in enumerate(as_items(rule.get("when"))):
        key = as_text(as_mapping(item).get("key"))
        if key in _UNSUPPORTED_KEYS or key.startswith("request.auth."):
            yield (*loc, "when", number), f"`when` with `{key}` is not supported with CUSTOM: leave it out"


def _check_names(survey: Survey) -> Iterator[MeshFinding]:
    """Find policies of a provider that is not there. A meshConfig without providers may be a part of one."""
    configs = [its for its in survey.mesh.of(MESH_CONFIG) if "extensionProviders" in its.body]
    known = {its.name for its in survey.extensions}
    told: set[str] = set()
    for policy in survey.policies:
        if not policy.provider or policy.provider in known | told:
            continue
        if configs:
            names = ", ".join(f"`{name}`" for name in sorted(known)) or "none"
            text = f"no ext_authz provider `{policy.provider}`: known are {names}"
            yield report(Trap.UNKNOWN_PROVIDER, policy.its, ("spec", "provider", "name"), text)
        else:
            told.add(policy.provider)
            text = f"the meshConfig that defines provider `{policy.provider}`: neither it nor its service is judged"
            yield report(Trap.NOT_GIVEN, policy.its, ("spec", "provider", "name"), text)


def _pairs(survey: Survey) -> Iterator[tuple[CustomPolicy, CustomPolicy]]:
    """Yield the policies that may share workloads: those of one namespace, and the root namespace's with each other."""
    root = survey.mesh.root_namespace
    order = {id(policy): number for number, policy in enumerate(survey.policies)}
    for name, policies in survey.asking.items():
        yield from combinations(policies, 2)
        if name != root:
            for first, second in product(policies, survey.asking.get(root, ())):
                yield (first, second) if order[id(first)] < order[id(second)] else (second, first)


def _check_several(survey: Survey) -> Iterator[MeshFinding]:
    allowed = allows_many_providers(survey.mesh)
    if allowed:
        return
    for first, second in _pairs(survey):
        if first.provider == second.provider or not first.scope.meets(second.scope):
            continue
        text = f"provider `{second.provider}`, and `{first.provider}` of {first}"
        if allowed is None:
            text += f": whether istiod has `{MANY_PROVIDERS}=true`; without it all that both match is denied"
        trap = Trap.NOT_GIVEN if allowed is None else Trap.SEVERAL_PROVIDERS
        yield report(trap, second.its, ("spec", "provider", "name"), text)
