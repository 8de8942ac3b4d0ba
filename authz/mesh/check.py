"""All checks of a mesh, in the order of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from authz.config import Configuration
from authz.istio_config import PROVIDER
from authz.mesh.asked import check_asked
from authz.mesh.authorizer import check_authorizer
from authz.mesh.extensions import check_extensions
from authz.mesh.facts import read_normalization
from authz.mesh.filters import check_filters
from authz.mesh.objects import MeshObject
from authz.mesh.refused import check_refused
from authz.mesh.routes import are_routes_given
from authz.mesh.selection import check_selection
from authz.mesh.surroundings import check_surroundings
from authz.mesh.survey import Survey, make_survey, report
from authz.mesh.tokens import check_tokens
from authz.mesh.traps import MeshFinding, Trap


def check_mesh(
    objects: list[MeshObject], *, provider: str = PROVIDER, rules: Configuration | None = None, rules_file: str = ""
) -> list[MeshFinding]:
    """Return every finding, once, by file and line. With the rules file more can be judged."""
    survey = make_survey(tuple(objects), provider=provider, rules=rules, rules_file=rules_file)
    files = {name: number for number, name in enumerate(dict.fromkeys(its.file for its in objects))}
    found = dict.fromkeys(finding for check in _CHECKS for finding in check(survey))
    return sorted(found, key=lambda its: (files.get(its.file, len(files)), its.line))


def _check_given(survey: Survey) -> Iterator[MeshFinding]:
    """Say once what was missing for all policies."""
    if not survey.policies:
        if not survey.mesh.objects or survey.mesh.of("EnvoyFilter"):
            return
        its = survey.mesh.objects[0]
        text = "no AuthorizationPolicy with action CUSTOM: nothing asks this service, as far as these files tell"
        yield MeshFinding(trap=Trap.NOT_GIVEN, place="mesh", file=its.file, line=its.line(), text=text)
        return
    yield from _check_routes(survey)
    matched = [
        (policy, way)
        for policy in survey.policies
        for way in policy.ways
        if way.rank > 1 and {"paths", "notPaths"} & way.narrowed
    ]
    if matched and read_normalization(survey.mesh) is None:
        policy, way = matched[0]
        text = "the meshConfig: how `pathNormalization` spells paths before they are matched is not judged"
        yield report(Trap.NOT_GIVEN, policy.its, way.loc, text)


def _check_routes(survey: Survey) -> Iterator[MeshFinding]:
    """Say once that the routes were missing, where some policy asks about hosts of a gateway."""
    if are_routes_given(survey):
        return
    for policy in survey.policies:
        for way in policy.ways:
            name = next((name for name in ("hosts", "notHosts") if name in way.lists), None)
            if name and (policy.scope.gateways or policy.scope.is_gateways):
                text = "the VirtualServices or HTTPRoutes: whether the gateway routes hosts that are not asked about"
                yield report(Trap.NOT_GIVEN, policy.its, (*way.loc, name), text)
                return


_CHECKS: Final[tuple[Callable[[Survey], Iterator[MeshFinding]], ...]] = (
    check_asked,
    check_selection,
    check_refused,
    check_extensions,
    check_tokens,
    check_filters,
    check_surroundings,
    check_authorizer,
    _check_given,
)
