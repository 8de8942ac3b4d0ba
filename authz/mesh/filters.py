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
_STRUCT: Final = ".TypedStruct"
_WHOLES: Final[Mapping[str, int]] = {"TEN_THOUSAND": 10_000, "MILLION": 1_000_000}
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
            if patch.get("applyTo") == "HTTP_FILTER":
                yield from _check_patch(its, patch, change, (*loc, "patch"))


def _check_patch(
    its: MeshObject, patch: Mapping[str, Any], change: Mapping[str, Any], loc: Loc
) -> Iterator[MeshFinding]:
    operation, value = as_text(change.get("operation")), as_mapping(change.get("value"))
    config, place = _unwrap(value, (*loc, "value"))
    ours = _is_ours(value, config)
    chosen = any(as_text(name).startswith(FILTER) for name in find_keys(patch.get("match"), "name"))
    if chosen and (operation == "REMOVE" or (operation == "REPLACE" and not ours)):
        yield report(Trap.FILTER_DISABLED, its, (*loc, "operation"), f"`operation: {operation}` of `{FILTER}`")
    if not ours and not (chosen and operation == "MERGE"):
        return
    yield from _check_order(its, patch, operation, (*loc, "operation"))
    yield from _check_config(its, config, place)
    yield from _check_enabled(its, value, config, (*loc, "value"), place, merged=operation == "MERGE")
    if operation != "MERGE" and config:
        yield from _check_missing(its, config, place)


def inserts_filter(its: MeshObject) -> Iterator[tuple[str, Loc]]:
    """Yield for each patch that puts ext_authz in by hand its context, and where it stands."""
    for number, item in enumerate(as_items(its.spec.get("configPatches"))):
        patch = as_mapping(item)
        change = as_mapping(patch.get("patch"))
        value = as_mapping(change.get("value"))
        ours = _is_ours(value, _unwrap(value, ())[0])
        if patch.get("applyTo") == "HTTP_FILTER" and ours and change.get("operation") not in ("MERGE", "REMOVE"):
            yield as_text(as_mapping(patch.get("match")).get("context")) or "ANY", ("spec", "configPatches", number)


def _unwrap(value: Mapping[str, Any], loc: Loc) -> tuple[Mapping[str, Any], Loc]:
    """Return a filter's settings and where they stand; a ``TypedStruct`` has them inside."""
    key = "typed_config" if "typed_config" in value else "typedConfig"
    config = as_mapping(value.get(key))
    if not as_text(config.get("@type")).endswith(_STRUCT):
        return config, (*loc, key)
    return {"@type": _get(config, "type_url"), **as_mapping(config.get("value"))}, (*loc, key, "value")


def _is_ours(value: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    named = as_text(value.get("name")).startswith(FILTER)
    return as_text(config.get("@type")).endswith(_TYPE) or (named and (bool(config) or "disabled" in value))


def _get(config: Mapping[str, Any], name: str) -> Any:
    """Return a setting by its name or by its name in JSON."""
    return config.get(_key(config, name))


def _key(config: Mapping[str, Any], name: str) -> str:
    first, *others = name.split("_")
    return name if name in config else first + "".join(map(str.capitalize, others))


def _check_order(its: MeshObject, patch: Mapping[str, Any], operation: str, loc: Loc) -> Iterator[MeshFinding]:
    filters = [as_text(as_mapping(its).get("name")) for its in find_keys(patch.get("match"), "subFilter")]
    after_router = operation == "INSERT_AFTER" and (not filters or ROUTER in filters)
    if after_router or operation == "ADD":
        yield report(Trap.FILTER_AFTER_ROUTER, its, loc, f"`operation: {operation}`")


def _check_config(its: MeshObject, config: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    for name, (trap, wanted) in _SETTINGS.items():
        value = _get(config, name)
        if value is not None and (wanted is None or value == wanted):
            yield report(trap, its, (*loc, _key(config, name)), f"`{name}`" if wanted is None else f"`{name}: true`")


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


def _check_enabled(
    its: MeshObject, value: Mapping[str, Any], config: Mapping[str, Any], outer: Loc, loc: Loc, *, merged: bool
) -> Iterator[MeshFinding]:
    """Find what makes the filter pass some requests over."""
    if value.get("disabled") is True:
        yield report(Trap.FILTER_DISABLED, its, (*outer, "disabled"), "`disabled: true`")
    enabled = _get(config, "filter_enabled")
    if isinstance(enabled, dict):
        share = as_mapping(_get(enabled, "default_value"))
        parts, whole = share.get("numerator", 0), _WHOLES.get(as_text(share.get("denominator")), 100)
        if not isinstance(parts, int) or parts < whole:
            text = f"`filter_enabled` is {parts} of {whole}: the others are not asked about"
            yield report(Trap.FILTER_DISABLED, its, (*loc, _key(config, "filter_enabled")), text)
    if merged and _get(config, "filter_enabled_metadata") is not None:
        text = "`filter_enabled_metadata` takes the place of what the CUSTOM policy matches"
        yield report(Trap.FILTER_DISABLED, its, (*loc, _key(config, "filter_enabled_metadata")), text)


def _check_routes(its: MeshObject, change: Mapping[str, Any], loc: Loc) -> Iterator[MeshFinding]:
    """Find settings of routes that take the filter out."""
    for configs in find_keys(change.get("value"), "typed_per_filter_config", "typedPerFilterConfig"):
        for name, config in as_mapping(configs).items():
            if name.startswith(FILTER) and True in find_keys(config, "disabled"):
                yield report(Trap.FILTER_DISABLED, its, loc, f"`{name}` has `disabled: true` there")
