"""RequestAuthentications beside this service: jwt_authn runs after ext_authz, on what ext_authz left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from authz.config.document import Loc
from authz.core.headers import fold_name
from authz.core.policy import Policy
from authz.mesh.facts import read_scope
from authz.mesh.objects import MeshObject, as_items, as_mapping, as_text, as_texts
from authz.mesh.survey import Survey, report, touches_authorization
from authz.mesh.traps import MeshFinding, Trap
from authz.model import CredentialPlace, PlaceKind

_BEARER: Final = CredentialPlace(kind=PlaceKind.HEADER, name="authorization")
_DEFAULT_PLACES: Final = frozenset({_BEARER, CredentialPlace(kind=PlaceKind.QUERY, name="access_token")})
"""Where Istio looks if a JWT rule does not say."""


def check_tokens(survey: Survey) -> Iterator[MeshFinding]:
    """Find RequestAuthentications that undo what this service did, on workloads that surely ask it."""
    if survey.rules is None:
        return
    root = survey.mesh.root_namespace
    for its in survey.mesh.of("RequestAuthentication"):
        scope = read_scope(its, survey.mesh)
        near = [*survey.asking] if scope.everywhere else dict.fromkeys((root, scope.namespace))
        policies = [policy for name in near for policy in survey.asking.get(name, ())]
        if any(policy.provider == survey.ours and scope.meets(policy.scope) for policy in policies):
            for number, item in enumerate(as_items(its.spec.get("jwtRules"))):
                rule, loc = as_mapping(item), ("spec", "jwtRules", number)
                yield from _check_output(survey, its, rule, loc)
                yield from _check_token(survey.rules.policy, its, rule, loc)


def _check_output(survey: Survey, its: MeshObject, rule: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    ours = {fold_name(name) for name in survey.identity_headers or ()}
    claims = [as_text(as_mapping(item).get("header")) for item in as_items(rule.get("outputClaimToHeaders"))]
    written: list[tuple[str, Loc]] = [
        (as_text(rule.get("outputPayloadToHeader")), (*loc, "outputPayloadToHeader")),
        *((name, (*loc, "outputClaimToHeaders", number)) for number, name in enumerate(claims)),
    ]
    for name, place in written:
        if name and fold_name(name) in ours:
            yield report(Trap.CLAIMS_OVERRIDE_IDENTITY, its, place, f"it writes `{name}`, an identity header of ours")


def _check_token(policy: Policy, its: MeshObject, rule: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    places = set(_places(rule)) or _DEFAULT_PLACES
    takes_bearer = _BEARER in places
    forwards = rule.get("forwardOriginalToken") is True
    touched = touches_authorization(policy)
    if touched and takes_bearer:
        text = "it reads `authorization`, which some rule removes or replaces"
        yield report(Trap.TOKEN_READ_AFTER, its, loc, text)
    known = {place for rule in policy.rules for place in rule.places}
    others = sorted(f"{its.kind} `{its.name}`" for its in places - known - {_BEARER})
    if touched and forwards and others:
        text = f"it forwards the token of {others[0]}, which no rule takes tokens from"
        yield report(Trap.TOKEN_FORWARDED, its, (*loc, "forwardOriginalToken"), text)
    keeps = any(rule.branches for rule in policy.rules) and not touched
    if keeps and takes_bearer and not forwards:
        yield report(Trap.TOKEN_STRIPPED, its, loc, "no `forwardOriginalToken: true`")


def _places(rule: Mapping[str, Any]) -> Iterator[CredentialPlace]:
    """Yield where a JWT rule looks, if it says so."""
    for item in as_items(rule.get("fromHeaders")):
        yield CredentialPlace(kind=PlaceKind.HEADER, name=as_text(as_mapping(item).get("name")).lower())
    for name in as_texts(rule.get("fromParams")):
        yield CredentialPlace(kind=PlaceKind.QUERY, name=name)
    for name in as_texts(rule.get("fromCookies")):
        yield CredentialPlace(kind=PlaceKind.COOKIE, name=name)
