"""EnvoyFilters that put ext_authz into the proxies by hand, or take it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from authz.config.document import Loc
from authz.mesh.objects import MeshObject, as_items, as_mapping, as_text
from authz.mesh.survey import Survey, find_keys, report
from authz.mesh.traps import MeshFinding, Trap

FILTER: Final = "envoy.filters.http.ext_authz"
ROUTER: Final = "envoy.filters.http.router"

_TYPE: Final = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
_SETTINGS: Final[Mapping[str, tuple[Trap, object]]] = {
    "failure_mode_allow": (Trap.FAIL_OPEN, True),
    "shadow_mode": (Trap.SHADOW_MODE, True),
    "clear_route_cache": (Trap.ROUTE_CACHE_CLEARED, True),
    "allowed_headers": (Trap.HEADERS_HIDDEN, None),
    "disallowed_headers": (Trap.HEADERS_HIDDEN, None),
}
"""What each setting of the filter does where it is set so; None stands for any value."""


def check_filters(survey: Survey) -> Iterator[MeshFinding]:
    """Find what EnvoyFilters do to ext_authz."""
    for its in survey.mesh.of("EnvoyFilter"):
        for number, item in enumerate(as_items(its.spec.get("configPatches"))):
            patch, loc = as_mapping(item), ("spec", "configPatches", number)
            change = as_mapping(patch.get("patch"))
            yield from _check_routes(its, change, (*loc, "patch"))
            value = as_mapping(change.get("value"))
            config = as_mapping(value.get("typed_config")) or as_mapping(value.get("typedConfig"))
            if patch.get("applyTo") != "HTTP_FILTER" or not _is_ours(value, config):
                continue
            yield from _check_order(its, patch, as_text(change.get("operation")), (*loc, "patch", "operation"))
            key = "typed_config" if "typed_config" in value else "typedConfig"
            place = (*loc, "patch", "value", key)
            yield from _check_config(its, config, place)
            if as_text(change.get("operation")) != "MERGE":
                yield from _check_missing(its, config, place)


def _is_ours(value: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return as_text(config.get("@type")).endswith(_TYPE) or (value.get("name") == FILTER and bool(config))


def _get(config: Mapping[str, Any], name: str) -> Any:
    """Return a setting by its name or by its name in JSON."""
    first, *others = name.split("_")
    return config.get(name, config.get(first + "".join(map(str.capitalize, others))))


def _check_order(its: MeshObject, patch: Mapping[str, Any], operation: str, loc: Loc) -> Iterator[MeshFinding]:
    after_router = operation == "INSERT_AFTER" and ROUTER in find_keys(patch.get("match"), "name")
    if after_router or operation == "ADD":
        yield report(Trap.FILTER_AFTER_ROUTER, its, loc, f"`operation: {operation}`")


def _check_config(its: MeshObject, config: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    for name, (trap, wanted) in _SETTINGS.items():
        value = _get(config, name)
        if value is not None and (wanted is None or value == wanted):
            yield report(trap, its, (*loc, name), f"`{name}`" if wanted is None else f"`{name}: true`")


def _check_missing(its: MeshObject, config: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    if _get(config, "status_on_error") is None:
        yield report(Trap.STATUS_ON_ERROR_MISSING, its, loc, "no `status_on_error`")
    service = as_mapping(_get(config, "grpc_service"))
    if service and service.get("timeout") is None:
        yield report(Trap.FILTER_TIMEOUT_MISSING, its, (*loc, "grpc_service"), "no `timeout`")
    envoy_grpc = as_mapping(_get(service, "envoy_grpc"))
    cluster = as_text(_get(envoy_grpc, "cluster_name"))
    if "|" in cluster and not envoy_grpc.get("authority"):
        place = (*loc, "grpc_service", "envoy_grpc")
        yield report(Trap.FILTER_AUTHORITY_MISSING, its, place, f"`{cluster}` without `authority`")


def _check_routes(its: MeshObject, change: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    """Find settings of routes that take the filter out."""
    for configs in find_keys(change.get("value"), "typed_per_filter_config", "typedPerFilterConfig"):
        if as_mapping(as_mapping(configs).get(FILTER)).get("disabled") is True:
            yield report(Trap.FILTER_DISABLED, its, loc, f"`{FILTER}` has `disabled: true` there")
